"""The Pareto front of shapes and ranks, and the choice of one of them (paper, section 2.2.1).

The rule. Of the settings within the budgets, those that no other one beats are the front: four objectives, error, compression
ratio, energy and latency, each the smaller the better.

- Without a budget, the knee with the least error is chosen. There is a knee for each of ratio, energy, latency and EDP: the
  point of the front farthest below the straight line from a matrix of zeros (error 1, no cost) to the dense matrix (no error,
  its cost). Points with the dense layer's EDP or more have no say, unless there are no others.
- With a budget, the least EDP is chosen among the points whose error is at most `SLACK` above the least: shapes that lose the
  same, but for noise, are told apart by the hardware.

Ties go to the lower error and EDP, to columns that are not folded, for which the activation-aware projection has a closed form,
to fewer parameters, then to the order of formats, of shapes as text, and of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heat_hf.formats import FORMATS
from heat_hf.search.shapes.table import Candidate, SizeInfo

SLACK = 0.02


def pareto_front(points: ArrayLike) -> NDArray[np.bool_]:
    """Which rows of n×k values no other row dominates: none is nowhere larger and somewhere smaller. Exact; equal rows stay.

    Raises:
        ValueError: if the values are not an n×k array, or one is NaN.
    """
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2 or np.isnan(values).any():
        raise ValueError(f"points must be an n×k array without NaN, got extents {values.shape}")
    unique, inverse = np.unique(values, axis=0, return_inverse=True)  # sorted by the first column, then the second, …
    kept = np.zeros(len(unique), dtype=bool)
    for i, row in enumerate(unique):  # only a row before it can dominate one, and if any does, one of the front does
        kept[i] = not (unique[:i][kept[:i]] <= row).all(axis=1).any()
    return kept[inverse.reshape(-1)]


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates that no other one beats in error, ratio, energy and latency, in their order."""
    if not candidates:
        return []
    kept = pareto_front([candidate.objectives for candidate in candidates])
    return [candidate for candidate, keep in zip(candidates, kept, strict=True) if keep]


def select(
    candidates: Sequence[Candidate],
    dense: SizeInfo,
    max_ratio: float | None = None,
    max_edp: float | None = None,
    slack: float = SLACK,
) -> Candidate:
    """The setting to take, by the rule of this module.

    Args:
        candidates: settings of one matrix size.
        dense: what the table says of that size.
        max_ratio: most parameters, as a fraction of the matrix's.
        max_edp: most EDP in J·s.
        slack: relative error above the least at which EDP decides.

    Raises:
        ValueError: if there is no candidate, or none is within the budgets; the message has the least that is reachable.
    """
    within = _within(candidates, max_ratio, max_edp)
    best = front(within)
    if max_ratio is None and max_edp is None:
        cheaper = [candidate for candidate in best if candidate.cost.objective < dense.dense_cost.objective]
        return min(knees(cheaper or best, dense), key=_order)
    least = min(candidate.error for candidate in best)
    near = [candidate for candidate in best if candidate.error <= (1 + slack) * least]
    return min(near, key=lambda candidate: (candidate.cost.objective, *_order(candidate)))


def _within(candidates: Sequence[Candidate], max_ratio: float | None, max_edp: float | None) -> list[Candidate]:
    """Candidates that keep both limits; raises ValueError if there are none."""
    if not candidates:
        raise ValueError("there is no candidate to select from")
    limits: dict[str, tuple[float, Callable[[Candidate], float]]] = {}
    if max_ratio is not None:
        limits["max_ratio"] = max_ratio, lambda candidate: candidate.ratio
    if max_edp is not None:
        limits["max_edp"] = max_edp, lambda candidate: candidate.edp
    within = list(candidates)
    for name, (limit, figure) in limits.items():
        least = min(map(figure, candidates))
        if least > limit:
            raise ValueError(f"{name}={limit:.4g} is below what any candidate reaches, {least:.4g}")
        within = [candidate for candidate in within if figure(candidate) <= limit]
    if not within:
        raise ValueError(f"no candidate keeps both max_ratio={max_ratio:.4g} and max_edp={max_edp:.4g}")
    return within


def knees(points: Sequence[Candidate], dense: SizeInfo) -> list[Candidate]:
    """Of a front, the knees of error against ratio, latency and, where energies are known, energy and EDP."""
    costs: list[Callable[[Candidate], float]] = [
        lambda c: c.ratio,
        lambda c: c.seconds / dense.dense_seconds,
        lambda c: c.cost.objective / dense.dense_cost.objective,
    ]
    energy = dense.dense_energy_pJ
    if energy is not None:
        costs.append(lambda c: (c.energy_pJ or 0.0) / energy)
    return [min(points, key=lambda c: (c.error + cost(c), *_order(c))) for cost in costs]


def _order(candidate: Candidate) -> tuple[float | int | str | tuple[int, ...], ...]:
    names = list(FORMATS)
    position = names.index(candidate.format) if candidate.format in names else len(names)  # a table may know others
    # As text: a table may come from elsewhere, with shapes of formats that are not known here.
    mixes = sum(extent != "1" for extent in candidate.shape.partition(":")[2].split("x")) > 1
    return candidate.error, candidate.cost.objective, mixes, candidate.parameters, position, candidate.shape, candidate.rank
