"""What every option of every tensor would do to the model's outputs, and the exact choice within a budget.

The loss of a tensor's option is ½ ‖G^{1/2}(W − W′)C^{1/2}‖_F², the divergence of the model's outputs that its error causes to
second order (`heat_hf.formats.projection`): the error of the layer's outputs on calibration inputs, weighted by the Fisher
information. One factorization gives the curve of all ranks, no network is run beyond the pass that collects C and G, and no
labels are used. Losses add over tensors; the choice is `heat_hf.search.ranks.allocation`'s, exact under ΣE·ΣT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from heat_hf.formats import Rank, TensorShape, get_format
from heat_hf.formats.decomposition import rank_errors
from heat_hf.formats.projection import OUTPUT_DAMPING, triangular_root
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.search.ranks.allocation import BudgetKind, allocate
from heat_hf.search.ranks.problem import Problem
from heat_hf.search.ranks.space import Choice, RankSpace, setting_options, undominated


@dataclass(frozen=True)
class Curves:
    """Options and their losses.

    Attributes:
        space: every tensor's options, the dense matrix included.
        losses: divergence that each option of each tensor causes; 0 for the dense matrix.
    """

    space: RankSpace
    losses: tuple[tuple[float, ...], ...]


def sensitivity_curves(problem: Problem, shapes: Mapping[tuple[str, MatrixSize], TensorShape]) -> Curves:
    """Every tensor's options and the loss of each.

    Where a side of the matrix is folded into several modes, its root would mix them; there C or G enter by their mean only.

    Args:
        problem: linears, statistics, costs, units, solver, execution.
        shapes: the shape of each format and matrix size; all formats of a size compete.
    """
    assert problem.statistics is not None
    options, losses, roots = {}, [], _Roots()
    for name, linear in tqdm(problem.linears.items(), desc="Sensitivity", unit="matrix"):
        moments = problem.statistics.second_moments[name], problem.statistics.output_moments[name]
        curve: list[tuple[TensorSetting | None, float]] = []
        for (format, size), shape in shapes.items():
            if size == MatrixSize.of(linear):
                curve += _curve(problem, linear.weight, format, shape, moments, roots)
        kept = undominated(problem.costs, name, [*curve, (None, 0.0)])
        options[name] = tuple(setting for setting, _ in kept)
        losses.append(tuple(loss for _, loss in kept))
    return Curves(RankSpace(problem.costs, options), tuple(losses))


class _Roots:
    """Triangular roots of moments; layers that share an input share its root."""

    def __init__(self) -> None:
        self.moment: Tensor | None = None
        self.root: Tensor | None = None

    def of(self, moment: Tensor) -> Tensor:
        """The root, kept while the same moment is asked for again."""
        if self.moment is not moment or self.root is None:
            self.moment, self.root = moment, triangular_root(moment.double())
        return self.root


def _curve(
    problem: Problem, weight: Tensor, format: str, shape: TensorShape, moments: tuple[Tensor, Tensor], roots: _Roots
) -> list[tuple[TensorSetting | None, float]]:
    codec, whitened, scale = get_format(format), weight.detach().double(), 1.0
    second_moment, output_moment = moments
    rows, columns = codec.whitens(shape)
    if rows:
        whitened = triangular_root(output_moment.to(whitened), OUTPUT_DAMPING).T @ whitened
    else:
        scale *= float(output_moment.diagonal().mean())
    if columns:
        whitened = whitened @ roots.of(second_moment).to(whitened)
    else:
        scale *= float(second_moment.diagonal().mean())
    whole = scale * float(whitened.square().sum())

    def errors(ranks: Sequence[Rank]) -> list[float]:
        return rank_errors(codec, whitened, shape, ranks, problem.solver)

    options = setting_options(format, shape, problem.units, errors, execution=problem.execution)
    return [(setting, whole * error**2 / 2) for setting, error in options]


def allocate_ranks(curves: Curves, kind: BudgetKind, budget: float) -> tuple[Choice, float]:
    """The options of all tensors with the least sum of losses within a budget. Exact.

    Args:
        curves: the options and their losses.
        kind: "edp", "seconds" or "parameters" of the whole network.
        budget: in J·s, s, or a number.

    Returns:
        Numbers of the options, and the sum of their losses.

    Raises:
        ValueError: if no choice keeps the budget; the message has the least that is reachable.
    """
    chosen = allocate(curves.space.priced(curves.losses), kind, budget)
    lost = sum(curve[number] for curve, number in zip(curves.losses, chosen, strict=True))
    return np.array(chosen), float(lost)
