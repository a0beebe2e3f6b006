"""Level 1: tensorization shapes of every matrix size (paper, section 2.2.1)."""
