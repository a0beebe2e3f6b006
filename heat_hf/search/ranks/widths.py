"""Widths: fewer inner neurons for the two matrices of a feed-forward network, fewer heads for the four of an attention.

They are options beside the ranks of each. All matrices shrink by the same share and stay single products, which fill an
accelerator better than two products of a low rank. What is lost when a neuron or a head goes follows from C and G of the last
matrix, as for ranks, with that matrix fitted again (`heat_hf.formats.narrowed`): the others lose nothing. Losses of widths and
of ranks are in the same unit, and one allocation weighs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from tqdm.auto import tqdm

from heat_hf.encoders.together import narrowed, width_groups
from heat_hf.formats.narrowed import Neurons
from heat_hf.formats.size import MatrixSize
from heat_hf.search.ranks.groups import Joint, fits
from heat_hf.search.ranks.problem import Problem

LEVELS = 20  # widths of a pair
NARROWEST, WIDEST = 1 / 48, 5 / 6  # parts of all neurons


def width_options(problem: Problem) -> dict[tuple[str, ...], dict[Joint, float]]:
    """Settings of several matrices by the width between them, with their losses.

    Of every pair of matrices with element-wise work between them, and of the query, key, value and output of every attention
    that can lose heads.

    Args:
        problem: with statistics and gradients.
    """
    found = {}
    for names, size in tqdm(width_groups(problem.model, problem.linears).items(), desc="Widths", unit="group"):
        neurons = MatrixSize.of(problem.linears[names[-1]]).columns
        widths = _widths(neurons, max(problem.units, default=8)) if len(names) == 2 else [*range(size, neurons, size)]
        if widths:
            found[names] = _options(problem, names, widths, size)
    return found


def _options(problem: Problem, names: tuple[str, ...], widths: Sequence[int], size: int) -> dict[Joint, float]:
    """Settings of matrices by their width, with their losses, where the accelerator can run them."""
    assert problem.statistics is not None
    weight: Any = problem.linears[names[-1]].weight
    moments = problem.statistics.second_moments[names[-1]], problem.statistics.output_moments[names[-1]]
    neurons = Neurons.ranked(weight, *moments, least=widths[0], size=size)
    sizes = [MatrixSize.of(problem.linears[name]) for name in names]
    options = {narrowed(sizes, width): neurons.lost(width) for width in widths}
    return {settings: loss for settings, loss in options.items() if fits(problem.costs, names, settings)}


def _widths(neurons: int, unit: int) -> list[int]:
    """From few neurons to many, in multiples of a unit of the hardware."""
    parts = neurons * np.geomspace(NARROWEST, WIDEST, LEVELS)
    return sorted({cast(int, max(1, round(part / unit)) * unit) for part in parts if unit < neurons} - {neurons})
