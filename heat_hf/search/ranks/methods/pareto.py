"""Shape and rank of every matrix size from the Pareto front of its cost table (paper, section 2.2.1)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from heat_hf.search.ranks.methods.base import RankSearch, Solution, checked_setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from heat_hf.formats.setting import TensorSetting
    from heat_hf.formats.size import MatrixSize
    from heat_hf.search.ranks.allocation import Option
    from heat_hf.search.ranks.budgets import Budget
    from heat_hf.search.ranks.problem import Problem
    from heat_hf.search.shapes.table import Candidate


class Pareto(RankSearch):
    """One setting for each matrix size: the best within the share of parameters, within the network's budget, or the knee."""

    name = "pareto"
    takes_shape = False
    budget_optional = True
    needs_table = True

    def solve(self, problem: Problem, budget: Budget) -> Solution:
        """The front's settings, for every tensor of a size the same."""
        from heat_hf.formats.size import MatrixSize

        by_size = _alone(problem, budget) if budget.kind in (None, "parameters") else _together(problem, budget)
        settings: dict[str, TensorSetting | None] = {}
        for name, linear in problem.linears.items():
            chosen = by_size[MatrixSize.of(linear)]
            settings[name] = checked_setting(problem, chosen.format, chosen.shape, chosen.rank)
        return Solution(settings)


def _alone(problem: Problem, budget: Budget) -> dict[MatrixSize, TensorSetting]:
    """Each size by itself."""
    from heat_hf.search.shapes.pareto import select

    (format,), table = problem.formats, problem.table
    assert table is not None
    settings = {}
    for size in problem.sizes:
        try:
            settings[size] = select(table.of(str(size), format), table.sizes[str(size)], max_ratio=budget.asked).setting
        except ValueError as error:
            raise ValueError(f"matrices of {size}: {error}") from error
    return settings


def _together(problem: Problem, budget: Budget) -> dict[MatrixSize, TensorSetting]:
    """The sizes' fronts: the least sum of squared errors within a budget of all matrices together."""
    from heat_hf.search.ranks.allocation import allocate
    from heat_hf.search.shapes.pareto import front

    (format,), table = problem.formats, problem.table
    assert table is not None and budget.kind is not None and budget.limit is not None
    runs: Counter[MatrixSize] = Counter()
    for matrix in problem.costs.matrices.values():
        runs[matrix.size] += matrix.runs
    fronts = {size: front(table.of(str(size), format)) for size in problem.sizes}
    options = [_options(problem, size, fronts[size], runs[size]) for size in problem.sizes]
    try:
        chosen = allocate(options, budget.kind, budget.limit / problem.costs.dense.of(budget.kind))
    except ValueError as error:
        raise ValueError(f"{budget.target}, as a fraction of the dense model's figure: {error}") from error
    return {size: fronts[size][number].setting for size, number in zip(problem.sizes, chosen, strict=True)}


def _options(problem: Problem, size: MatrixSize, candidates: Sequence[Candidate], runs: int) -> list[Option]:
    """All matrices of a size as one tensor: figures as fractions of the dense network's."""
    from heat_hf.search.ranks.allocation import Option

    own = {name: matrix.runs for name, matrix in problem.costs.matrices.items() if matrix.size == size}
    count, dense = len(own), problem.costs.dense.cost
    assert dense is not None
    others = {name: cost for name in own if (cost := problem.costs.between(name)) is not None}  # in the dense figure, too
    more = sum(own[name] * cost.seconds for name, cost in others.items())
    return [
        Option(
            count * candidate.error**2,
            None if candidate.energy_pJ is None or dense.energy_pJ is None else runs * candidate.energy_pJ / dense.energy_pJ,
            (runs * candidate.seconds + more) / dense.seconds,
            count * candidate.parameters,
        )
        for candidate in candidates
    ]
