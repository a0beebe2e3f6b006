"""Rules that turn a share of parameters into the rank of a matrix, one matrix at a time."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from heat_hf.search.ranks.methods.base import RankSearch, Solution, checked_setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from heat_hf.formats import TensorShape
    from heat_hf.formats.setting import TensorSetting
    from heat_hf.formats.size import MatrixSize
    from heat_hf.search.ranks.budgets import Budget
    from heat_hf.search.ranks.problem import Problem


class Rule(RankSearch):
    """A budget of parameters is a share that every matrix keeps; other budgets are filled by the largest share that fits."""

    shapes_by_share: ClassVar[bool] = True
    """Whether a cost table is asked for the best shape within the share."""
    rounds: ClassVar[bool] = False
    """Whether ranks may take slightly more than their share, so that a budget of parameters is only kept about."""

    @abstractmethod
    def rank(self, problem: Problem, name: str, shape: TensorShape, share: float) -> object:
        """The rank of a tensor that keeps a share of its parameters."""

    def shares(self, problem: Problem, share: float) -> Mapping[str, float]:
        """The share of every tensor; by default the same."""
        return dict.fromkeys(problem.linears, share)

    def solve(self, problem: Problem, budget: Budget) -> Solution:
        """Settings of the budget's share; without a budget, of the user's ranks."""
        from heat_hf.search.ranks.budgets import fit_share

        if budget.kind is None:
            return Solution(self.settings(problem, None))
        assert budget.asked is not None and budget.limit is not None
        if budget.kind == "parameters":
            settings = self.settings(problem, budget.asked)
            if self.rounds or problem.costs.total(settings).parameters <= budget.limit * (1 + 1e-9):
                return Solution(settings)  # else the rule's shares add up to more
        return Solution(fit_share(lambda share: self.settings(problem, share), problem.costs, budget.kind, budget.limit))

    def settings(self, problem: Problem, share: float | None) -> dict[str, TensorSetting | None]:
        """Settings of all tensors for a share of their parameters; None for the user's ranks. What does not gain stays dense.

        Raises:
            ValueError: if a shape or rank is not valid, or a matrix would not shrink; the message names it.
        """
        from heat_hf.formats.size import MatrixSize

        (format,) = problem.formats
        shares = None if share is None else self.shares(problem, share)
        settings: dict[str, TensorSetting | None] = {}
        for name, linear in problem.linears.items():
            size = MatrixSize.of(linear)
            try:
                shape = self._shape(problem, format, size, share)
                rank = _fixed_rank(problem, size) if shares is None else self.rank(problem, name, shape, shares[name])
                settings[name] = problem.costs.or_dense(name, checked_setting(problem, format, shape, rank))
            except ValueError as error:
                raise ValueError(f"{name} ({size.rows}×{size.columns}): {error}") from error
        if shares is None and not any(settings.values()):
            raise ValueError(f"with these ranks no matrix would run faster on {problem.costs.model_name}: choose smaller ones")
        return settings

    def _shape(self, problem: Problem, format: str, size: MatrixSize, share: float | None) -> TensorShape:
        from heat_hf.search.shapes.pareto import select

        table = problem.table
        if table is None or problem.shape is not None or not self.shapes_by_share:
            return self.shape(problem, format, size)
        key = f"shape {size} {share}"
        chosen = problem.once(key, lambda: select(table.of(str(size), format), table.sizes[str(size)], max_ratio=share))
        shape: TensorShape = chosen.setting.shape
        return shape


def _fixed_rank(problem: Problem, size: MatrixSize) -> object:
    rank = problem.fixed("rank", size)
    if rank is None:
        raise ValueError(f"rank has no entry for the size {size}")
    return rank
