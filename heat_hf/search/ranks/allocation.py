"""The exact choice of one option for every tensor, or matrix size, under a budget of the whole model.

Energies and times add over tensors, and the energy-delay product is the product of the two sums. Where the ratio ΣT/ΣE lies
between two bounds, all that keeps ΣE·ΣT ≤ B lies below a straight line, the chord of the hyperbola between these ratios; beyond
them, what lies below that line keeps the budget in any case. So the best choice below the chord is either within the budget, or
its own ratio splits the range in two, whose chords exclude it. Below a line the problem is a multiple-choice knapsack, solved
by dynamic programming over what no other partial choice beats, less what a Lagrangian bound rules out.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heat_hf.hardware.cost import energy_delay

Array = NDArray[np.float64]
BudgetKind = Literal["edp", "seconds", "parameters"]
ROUNDING = 1e-12  # relative: sums in another order are the same


@dataclass(frozen=True)
class Option:
    """What one tensor may get.

    Attributes:
        loss: what it adds to the loss of quality.
        energy: of all its runs, in any unit, positive; None where it is not known.
        seconds: of all its runs, positive; likewise.
        parameters: stored elements.
    """

    loss: float
    energy: float | None
    seconds: float | None
    parameters: float


def allocate(options: Sequence[Sequence[Option]], kind: BudgetKind, budget: float) -> list[int]:
    """Choose an option for every tensor so that the sum of losses is least within a budget. Exact.

    Args:
        options: of each tensor.
        kind: what is limited: "edp", the sum of energies times the sum of seconds; "seconds" or "parameters", their sum.
        budget: the limit.

    Returns:
        The place of the option chosen for each tensor. Of equally good choices it is always the same one.

    Raises:
        ValueError: if a tensor has no option, a figure cannot be, or no choice keeps the budget; the message says what is
            reachable.
    """
    _check(options, kind)
    losses = _figures(options, "loss")
    least = least_budget(options, kind)
    if budget < least * (1 - ROUNDING):
        raise ValueError(f"no choice keeps {kind} within {budget:.6g}: the least that is reachable is {least:.6g}")
    if kind != "edp":
        chosen = knapsack(_figures(options, kind), losses, budget)
        assert chosen is not None
        return chosen
    return _below_hyperbola(_figures(options, "energy"), _figures(options, "seconds"), losses, budget)


def _figures(options: Sequence[Sequence[Option]], name: str) -> list[Array]:
    """A figure of every option, an array for each tensor."""
    return [np.array([getattr(option, name) for option in row], dtype=np.float64) for row in options]


def least_budget(options: Sequence[Sequence[Option]], kind: BudgetKind) -> float:
    """The smallest budget that some choice keeps.

    For "edp" it is that of the choice with the least energy and time of each tensor, which may be two options; then the
    smallest reachable product is a little larger, and `allocate` finds whether one is.
    """
    if kind == "edp":
        energy, seconds = (sum(min(getattr(o, name) for o in row) for row in options) for name in ("energy", "seconds"))
        return float(energy_delay(energy, seconds))
    return float(sum(min(getattr(o, kind) for o in row) for row in options))


LIMITED = {"edp": ("energy", "seconds"), "seconds": ("seconds",), "parameters": ()}  # what has to be known and positive


def _check(options: Sequence[Sequence[Option]], kind: BudgetKind) -> None:
    if not options:
        raise ValueError("there is no tensor to choose for")
    for number, row in enumerate(options):
        if not row:
            raise ValueError(f"tensor {number} has no option")
        for option in row:
            figures = [option.energy, option.seconds, option.loss, option.parameters]
            valid = all(value is None or (math.isfinite(value) and value >= 0) for value in figures)
            if not valid or not all(getattr(option, name) for name in LIMITED[kind]):
                raise ValueError(f"an option needs finite figures, energy and time above 0, got {option} for tensor {number}")


def _below_hyperbola(energy: Sequence[Array], seconds: Sequence[Array], losses: Sequence[Array], budget: float) -> list[int]:
    whole = [sum(float(array.max()) for array in values) for values in (energy, seconds)]
    energy, seconds = [array / whole[0] for array in energy], [array / whole[1] for array in seconds]
    root = math.sqrt(budget / energy_delay(*whole))
    ratios = np.concatenate([t / e for e, t in zip(energy, seconds, strict=True)])
    number = itertools.count()
    queue: list[tuple[float, int, float, float, list[int]]] = []

    def push(low: float, high: float) -> None:
        # The chord from (root/√low, root·√low) to (root/√high, root·√high): √(low·high)·E + T = root·(√low + √high).
        slope = math.sqrt(low * high)
        costs = [slope * e + t for e, t in zip(energy, seconds, strict=True)]
        chosen = knapsack(costs, losses, root * (math.sqrt(low) + math.sqrt(high)))
        if chosen is not None:
            total = sum(float(array[o]) for array, o in zip(losses, chosen, strict=True))
            heapq.heappush(queue, (total, next(number), low, high, chosen))

    push(float(ratios.min()), float(ratios.max()))
    while queue:
        _, _, low, high, chosen = heapq.heappop(queue)
        e, t = (sum(float(array[o]) for array, o in zip(values, chosen, strict=True)) for values in (energy, seconds))
        if energy_delay(e, t) <= root * root * (1 + 4 * ROUNDING):
            return chosen
        middle = min(max(t / e, low), high)
        push(low, middle)
        push(middle, high)
    raise ValueError(f"no choice keeps edp within {budget:.6g}: every product of energy and time is larger")


def knapsack(costs: Sequence[Array], losses: Sequence[Array], budget: float) -> list[int] | None:
    """Multiple-choice knapsack: one option of each tensor, the least sum of losses with a sum of costs within a budget.

    Returns:
        The places chosen, or None if no choice keeps the budget.
    """
    limit = budget * (1 + ROUNDING) + 1e-300
    if sum(float(array.min()) for array in costs) > limit:
        return None
    multiplier, best = _lagrange(costs, losses, limit)
    cheapest = np.cumsum([0.0, *(float(array.min()) for array in reversed(costs))])[::-1]
    bounds = np.cumsum(
        [0.0, *(float((loss + multiplier * cost).min()) for cost, loss in zip(reversed(costs), reversed(losses), strict=True))]
    )[::-1]
    spent, lost = np.zeros(1), np.zeros(1)
    trail: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for k, (cost, loss) in enumerate(zip(costs, losses, strict=True), start=1):
        total, sum_lost = (spent[:, None] + cost).ravel(), (lost[:, None] + loss).ravel()
        open_ = total + cheapest[k] <= limit
        bound = sum_lost + bounds[k] + multiplier * (total - limit)
        places = np.flatnonzero(open_ & (bound <= best + 1e-9 * (best + multiplier * limit)))
        order = places[np.lexsort((places, sum_lost[places], total[places]))]
        lowest = np.minimum.accumulate(np.concatenate([[np.inf], sum_lost[order]]))
        order = order[sum_lost[order] < lowest[:-1]]
        spent, lost = total[order], sum_lost[order]
        trail.append(np.divmod(order, len(cost)))
    state, chosen = int(np.argmin(lost)), []
    for before, option in reversed(trail):
        chosen.append(int(option[state]))
        state = int(before[state])
    return chosen[::-1]


def _lagrange(costs: Sequence[Array], losses: Sequence[Array], limit: float) -> tuple[float, float]:
    """A multiplier near the best one of the relaxation, and the least loss of a choice met on the way, infinite if none."""

    def choice(multiplier: float) -> tuple[float, float]:
        places = [np.lexsort((cost, loss + multiplier * cost))[0] for cost, loss in zip(costs, losses, strict=True)]
        picked = [(float(cost[o]), float(loss[o])) for cost, loss, o in zip(costs, losses, places, strict=True)]
        return sum(c for c, _ in picked), sum(q for _, q in picked)

    spent, best = choice(0.0)
    if spent <= limit:
        return 0.0, best
    low, high = 0.0, max(float(array.max()) for array in losses) / limit
    for _ in range(40):
        spent, best = choice(high)
        if spent <= limit:
            break
        low, high = high, 8 * high
    else:  # the budget is about the least there is: few choices are left
        return 0.0, math.inf
    for _ in range(60):
        middle = (low + high) / 2
        spent, lost = choice(middle)
        if spent <= limit:
            high, best = middle, min(best, lost)
        else:
            low = middle
    return high, best
