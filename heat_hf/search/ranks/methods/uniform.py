"""The largest uniform rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heat_hf.search.ranks.methods.rule import Rule

if TYPE_CHECKING:
    from heat_hf.formats import TensorShape
    from heat_hf.search.ranks.problem import Problem


class Uniform(Rule):
    """Every matrix gets the largest uniform rank within its share; or the user's rank."""

    name = "uniform"
    takes_rank = True

    def rank(self, problem: Problem, name: str, shape: TensorShape, share: float) -> object:
        """As large as the share allows."""
        from heat_hf.formats import get_format

        return get_format(*problem.formats).largest_rank(shape, share * shape.rows * shape.columns)
