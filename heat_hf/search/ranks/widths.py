"""Widths: fewer inner neurons for the two matrices of a feed-forward network, as options beside the ranks of each.

Both matrices shrink by the same share and stay single products, which fill an accelerator better than two products of a low
rank. What is lost when a neuron goes follows from C and G of the second matrix, as for ranks, with the second matrix fitted
again (`heat_hf.formats.narrowed`): losses of widths and of ranks are in the same unit, and one allocation weighs them.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from tqdm.auto import tqdm

from heat_hf.encoders.linears import inner_pairs
from heat_hf.formats import TensorShape
from heat_hf.formats.narrowed import Neurons
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.search.ranks.groups import Joint, fits
from heat_hf.search.ranks.problem import Problem

LEVELS = 20  # widths of a pair
NARROWEST, WIDEST = 1 / 48, 5 / 6  # parts of all neurons


def width_options(problem: Problem) -> dict[tuple[str, ...], dict[Joint, float]]:
    """For every pair of matrices with element-wise work between them, settings of both by width, with their losses.

    Args:
        problem: with statistics and gradients.
    """
    assert problem.statistics is not None
    found = dict[tuple[str, ...], dict[Joint, float]]()
    pairs = inner_pairs(problem.model, problem.linears)
    for first, second in tqdm(pairs.items(), desc="Widths", unit="pair"):
        weight: Any = problem.linears[second].weight
        moments = problem.statistics.second_moments[second], problem.statistics.output_moments[second]
        sizes = MatrixSize.of(problem.linears[first]), MatrixSize.of(problem.linears[second])
        widths = _widths(sizes[0].rows, max(problem.units, default=8))
        if widths:
            neurons = Neurons.ranked(weight, *moments, least=widths[0])
            options = {narrowed(sizes, width): neurons.lost(width) for width in widths}
            found[first, second] = {s: loss for s, loss in options.items() if fits(problem.costs, (first, second), s)}
    return found


def narrowed(sizes: tuple[MatrixSize, MatrixSize], width: int) -> Joint:
    """Joint of two matrices with so many neurons between them."""
    names = ("fewer_outputs", "fewer_inputs")
    return tuple(TensorSetting(name, TensorShape.matrix(*size), (width,)) for name, size in zip(names, sizes, strict=True))


def _widths(neurons: int, unit: int) -> list[int]:
    """From few neurons to many, in multiples of a unit of the hardware."""
    parts = neurons * np.geomspace(NARROWEST, WIDEST, LEVELS)
    return sorted({cast(int, max(1, round(part / unit)) * unit) for part in parts if unit < neurons} - {neurons})
