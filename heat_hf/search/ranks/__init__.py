"""Level 2: a rank for every tensor (paper, section 2.2.2)."""
