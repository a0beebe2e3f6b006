"""Training-free ranks: the best allocation of what the model's outputs mind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from heat_hf.search.ranks.methods.base import RankSearch, Solution

if TYPE_CHECKING:
    from heat_hf.formats.setting import Settings
    from heat_hf.search.ranks.budgets import Budget
    from heat_hf.search.ranks.curves import Curves
    from heat_hf.search.ranks.problem import Problem


def _competing(problem: Problem) -> list[str]:
    """The formats asked for, and those that store the same matrices in another way: what is cheaper is known by its cost."""
    from heat_hf.formats import FORMATS

    rebuilt = problem.execution == "reconstruct"
    asked = set(problem.formats)
    return [name for name, codec in FORMATS.items() if {name, codec.solved_as.name} & asked and not (rebuilt and codec.path)]


def _weight(curves: Curves, settings: Settings, lost: float, apart: float) -> float:
    """Of measured divergences beside losses to second order, which are smaller: what both are of one network says how much.

    Args:
        curves: with what blocks lose.
        settings: of the network.
        lost: its loss, blocks and matrices together.
        apart: its divergence.
    """
    from heat_hf.encoders.dropping import dropped_blocks

    blocks = curves.gone.get(tuple(dropped_blocks(settings)), 0.0)
    return min(1.0, (lost - blocks) / max(apart - blocks, lost - blocks, 1e-300))


class Sensitivity(RankSearch):
    """For every tensor a rank or width of its own, or none where it stays dense, by what `heat_hf.search.ranks.curves` says."""

    name = "sensitivity"
    mixes_formats = True
    needs_calibration = True

    def check(self, problem: Problem, budgets: Sequence[Budget]) -> None:
        """As every method; also that the smallest options keep each budget."""
        from heat_hf.search.ranks.evolution import require_within

        super().check(problem, budgets)
        curves = self._curves(problem)
        for budget in budgets:
            if budget.kind is not None and budget.limit is not None:
                least, dense = curves.least(budget.kind), problem.costs.dense.of(budget.kind)
                require_within(least, dense, budget.kind, budget.limit)

    def solve(self, problem: Problem, budget: Budget) -> Solution:
        """The least loss, to `GAP`, within the options of every tensor and the sets of blocks that were measured."""
        from heat_hf.search.ranks.curves import allocate_ranks

        assert budget.kind is not None and budget.limit is not None
        curves = self._curves(problem)
        settings, lost = allocate_ranks(curves, budget.kind, budget.limit)
        apart = problem.diverges(settings) if curves.gone and problem.diverges is not None else None
        if apart is not None:
            settings, lost = allocate_ranks(curves, budget.kind, budget.limit, _weight(curves, settings, lost, apart))
        return Solution(settings, loss=lost)

    def _curves(self, problem: Problem) -> Curves:
        from heat_hf.search.ranks.curves import sensitivity_curves

        shapes = {(name, size): self.shape(problem, name, size) for name in _competing(problem) for size in problem.sizes}
        curves: Curves = problem.once(self.name, lambda: sensitivity_curves(problem, shapes))
        return curves
