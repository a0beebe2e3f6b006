"""Shared bases: query, key and value of an attention block on one basis, as options beside the ranks of each.

Their input is multiplied with the basis once: four products instead of six, and r·(N + 3M) elements. What that loses follows
from C and G, as for ranks: it is what a low rank of the three matrices on top of each other loses, each weighted by its G.
"""

from __future__ import annotations

from collections.abc import Sequence

from tqdm.auto import tqdm

from heat_hf.encoders.together import attention_groups
from heat_hf.formats import LowRank, TensorShape
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.shared import MEMBERS, shared_losses
from heat_hf.formats.size import MatrixSize
from heat_hf.search.ranks.groups import Joint, fits
from heat_hf.search.ranks.problem import Problem
from heat_hf.search.ranks.space import BUDGETS
from heat_hf.search.shapes.ranks import choose_ranks


def basis_options(problem: Problem) -> dict[tuple[str, ...], dict[Joint, float]]:
    """For every query, key and value, settings of all three by the rank of their basis, with their losses.

    Args:
        problem: with statistics and gradients.
    """
    assert problem.statistics is not None
    found = {}
    groups = attention_groups(problem.model, problem.linears)
    for names in tqdm(groups, desc="Bases", unit="block", disable=not groups):
        sizes = [MatrixSize.of(problem.linears[name]) for name in names]
        moment = problem.statistics.second_moments[names[0]]
        weights = [problem.linears[name].weight for name in names]
        losses = shared_losses(weights, moment, [problem.statistics.output_moments[name] for name in names])
        options = {on_basis(sizes, rank): float(losses[rank]) for rank in _ranks(sizes, problem.units)}
        found[names] = {settings: loss for settings, loss in options.items() if fits(problem.costs, names, settings)}
    return found


def on_basis(sizes: Sequence[MatrixSize], rank: int) -> Joint:
    """Joint of the matrices with a basis of this rank."""
    return tuple(TensorSetting(name, TensorShape.matrix(*size), (rank,)) for name, size in zip(MEMBERS, sizes, strict=True))


def _ranks(sizes: Sequence[MatrixSize], units: Sequence[int]) -> list[int]:
    """Those that a matrix with the rows of all would get: it has as many elements, of rank r, as the group."""
    stacked = TensorShape.matrix(sum(size.rows for size in sizes), sizes[0].columns)
    # Of a single rank the errors are not asked for.
    return [rank for (rank,) in choose_ranks(LowRank(), stacked, units, BUDGETS, lambda ranks: [0.0] * len(ranks))]
