"""Rank-search methods: one file each, and one line here. Importing them loads nothing heavy."""

from __future__ import annotations

from heat_hf.search.ranks.methods.base import RankSearch, Solution
from heat_hf.search.ranks.methods.manual import Manual
from heat_hf.search.ranks.methods.pareto import Pareto
from heat_hf.search.ranks.methods.random import Random
from heat_hf.search.ranks.methods.rule import Rule
from heat_hf.search.ranks.methods.sensitivity import Sensitivity
from heat_hf.search.ranks.methods.supernet import SuperNet
from heat_hf.search.ranks.methods.tensorly import TensorLy
from heat_hf.search.ranks.methods.uniform import Uniform

MIXED = "mixed"  # a decomposition: every tensor gets the format that suits it
RANK_SEARCHES: dict[str, RankSearch] = {
    method.name: method for method in (Uniform(), Pareto(), Sensitivity(), SuperNet(), TensorLy(), Manual(), Random())
}


def get_rank_search(name: str) -> RankSearch:
    """The method registered under `name`.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    if name not in RANK_SEARCHES:
        raise ValueError(f"rank_search must be one of {', '.join(RANK_SEARCHES)}, got {name!r}")
    return RANK_SEARCHES[name]


__all__ = ["MIXED", "RANK_SEARCHES", "RankSearch", "Rule", "Solution", "get_rank_search"]
