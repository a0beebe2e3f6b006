"""Names that options take, for parsers: importing them loads no library."""

from __future__ import annotations

MIXED = "mixed"
RANK_SEARCHES = ("uniform", "pareto", "sensitivity", "supernet", "tensorly", "manual", "random")
