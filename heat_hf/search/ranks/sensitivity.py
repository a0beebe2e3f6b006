"""Training-free ranks: what every option would do to the model's outputs, and the exact choice within a budget.

The loss of a tensor's option is ½ ‖G^{1/2}(W − W′)C^{1/2}‖_F², the divergence of the model's outputs that its error causes to
second order (`heat_hf.formats.projection`): the error of the layer's outputs on calibration inputs, weighted by the Fisher
information. One factorization gives the curve of all ranks, no network is run beyond one pass for C and one for G, and no
labels are used. Losses add over tensors; the choice is `heat_hf.search.ranks.allocation`'s, exact under ΣE·ΣT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from heat_hf.encoders.linears import matrix_size
from heat_hf.formats import Rank, Solver, TensorShape, get_format
from heat_hf.formats.projection import OUTPUT_DAMPING, triangular_root
from heat_hf.formats.setting import Execution, TensorSetting
from heat_hf.search.ranks.allocation import BudgetKind, Option, allocate
from heat_hf.search.ranks.space import Choice, Costs, RankSpace, setting_options, undominated

Shapes = Mapping[tuple[str, str], TensorShape]  # (format, matrix size) → shape


def sensitivity_curves(
    linears: Mapping[str, nn.Linear],
    second_moments: Mapping[str, Tensor],
    output_moments: Mapping[str, Tensor],
    costs: Costs,
    shapes: Shapes,
    units: Sequence[int],
    solver: Solver | None = None,
    execution: Execution = "auto",
) -> tuple[RankSpace, list[list[float]]]:
    """Every tensor's options, dense included, and the loss of each.

    Where a side of the matrix is folded into several modes, its root would mix them; there C or G enter by their mean only.

    Args:
        linears: dense layers by name.
        second_moments: C of every layer.
        output_moments: G of every layer.
        costs: of the network.
        shapes: the shape of each format and matrix size; all formats of a size compete.
        units: widths of the accelerator, see `rank_units`.
        solver: limits of the iterative methods.
        execution: of the settings, see `TensorSetting`.

    Returns:
        The space, and the divergence caused by each option of each tensor; 0 for the dense matrix.
    """
    options, losses = {}, []
    for name, linear in tqdm(linears.items(), desc="Sensitivity", unit="matrix"):
        curve: list[tuple[TensorSetting | None, float]] = []
        for (format, size), shape in shapes.items():
            if size == matrix_size(linear):
                curve += _curve(linear.weight, format, shape, second_moments[name], output_moments[name], units, solver)
        curve = [(setting and replace(setting, execution=execution), loss) for setting, loss in curve]
        kept = undominated(costs, name, [*curve, (None, 0.0)])
        options[name] = tuple(setting for setting, _ in kept)
        losses.append([loss for _, loss in kept])
    return RankSpace(costs, options), losses


def _curve(
    weight: Tensor,
    format: str,
    shape: TensorShape,
    second_moment: Tensor,
    output_moment: Tensor,
    units: Sequence[int],
    solver: Solver | None,
) -> list[tuple[TensorSetting | None, float]]:
    codec, whitened, scale = get_format(format), weight.detach().double(), 1.0
    if _is_folded(shape.out_modes):
        scale *= float(output_moment.diagonal().mean())
    else:
        whitened = triangular_root(output_moment.to(whitened), OUTPUT_DAMPING).T @ whitened
    if _is_folded(shape.in_modes):
        scale *= float(second_moment.diagonal().mean())
    else:
        whitened = whitened @ triangular_root(second_moment.to(whitened))
    whole = scale * float(whitened.square().sum())

    def errors(ranks: Sequence[Rank]) -> list[float]:
        return codec.rank_errors(whitened, shape, ranks, solver)

    return [(setting, whole * error**2 / 2) for setting, error in setting_options(format, shape, units, errors)]


def _is_folded(modes: Sequence[int]) -> bool:
    return sum(extent > 1 for extent in modes) > 1


def allocate_ranks(
    space: RankSpace, losses: Sequence[Sequence[float]], kind: BudgetKind, budget: float
) -> tuple[Choice, float]:
    """The options of all tensors with the least sum of losses within a budget. Exact.

    Args:
        space: the options.
        losses: of every option.
        kind: "edp", "seconds" or "parameters" of the whole network.
        budget: in J·s, s, or a number.

    Returns:
        Places of the options, and the sum of their losses.

    Raises:
        ValueError: if no choice keeps the budget; the message has the least that is reachable.
    """
    energy, seconds, parameters = space.figures
    own = [
        [
            Option(loss, energy[row, place] * 1e-12, seconds[row, place], int(parameters[row, place]))
            for place, loss in enumerate(curve)
        ]
        for row, curve in enumerate(losses)
    ]
    chosen = allocate(own, kind, budget)
    return np.array(chosen), float(sum(curve[place] for curve, place in zip(losses, chosen, strict=True)))
