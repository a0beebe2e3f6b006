"""Random ranks, S(Ours)-R(Random) in the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heat_hf.search.ranks.methods.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from heat_hf.formats import TensorShape
    from heat_hf.search.ranks.problem import Problem


class Random(Rule):
    """Shares and proportions of ranks are drawn at random, the same for the same seed."""

    name = "random"

    def shares(self, problem: Problem, share: float) -> Mapping[str, float]:
        """Drawn around the share."""
        from heat_hf.search.ranks.baselines import random_shares

        elements = [linear.weight.numel() for linear in problem.linears.values()]
        return dict(zip(problem.linears, random_shares(elements, share, problem.seed), strict=True))

    def rank(self, problem: Problem, name: str, shape: TensorShape, share: float) -> object:
        """Of random proportions, as large as the share allows."""
        import zlib

        from heat_hf.formats import get_format
        from heat_hf.search.ranks.baselines import random_rank

        size = shape.rows * shape.columns
        return random_rank(get_format(*problem.formats), shape, share * size, zlib.crc32(name.encode()) ^ problem.seed)
