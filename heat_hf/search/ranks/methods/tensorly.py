"""TensorLy's ranks, S(Ours)-R(TensorLy) in the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heat_hf.search.ranks.methods.rule import Rule

if TYPE_CHECKING:
    from heat_hf.formats import TensorShape
    from heat_hf.search.ranks.problem import Problem


class TensorLy(Rule):
    """Every matrix gets the rank that TensorLy's rule takes for its share."""

    name = "tensorly"
    rounds = True  # TensorLy rounds to the nearest rank

    def rank(self, problem: Problem, name: str, shape: TensorShape, share: float) -> object:
        """By TensorLy's `validate_*_rank`."""
        from heat_hf.search.ranks.baselines import tensorly_rank

        return tensorly_rank(problem.formats[0], shape, share)
