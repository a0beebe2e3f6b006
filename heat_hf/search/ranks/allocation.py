"""The best choice of one option for every tensor, or matrix size, under a budget of the whole model.

Energies and times add over tensors, and the energy-delay product is the product of the two sums. Where the ratio ΣT/ΣE lies
between two bounds, all that keeps ΣE·ΣT ≤ B lies below a straight line, the chord of the hyperbola between these ratios; beyond
them, what lies below that line keeps the budget in any case. So the best choice below the chord is either within the budget, or
its own ratio splits the range in two, whose chords exclude it. Below a line the problem is a multiple-choice knapsack, solved
by dynamic programming over what no other partial choice beats, less what a Lagrangian bound rules out to be better by more than
a ten-thousandth than a choice that is known: without that, hundreds of tensors would take hours.
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
GAP = 1e-4  # of the least sum of losses: what a choice may be off by; the losses are not known nearly as well


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
    """Choose an option for every tensor so that the sum of losses is least within a budget, to `GAP`.

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
    """Multiple-choice knapsack: one option of each tensor, the least sum of losses, to `GAP`, with costs within a budget.

    Returns:
        The places chosen, or None if no choice keeps the budget.
    """
    limit = budget * (1 + ROUNDING) + 1e-300
    if sum(float(array.min()) for array in costs) > limit:
        return None
    multiplier, chosen = _lagrange(costs, losses, limit)
    chosen = _exchanged(costs, losses, chosen, limit)
    best = _sum(losses, chosen) * (1 - GAP)
    # An option alone that puts the bound of all above the best is in no better choice: of hundreds a few are left.
    priced = [loss + multiplier * cost for cost, loss in zip(costs, losses, strict=True)]
    bounds = np.cumsum([0.0, *(float(price.min()) for price in reversed(priced))])[::-1]
    slack = best + multiplier * limit - bounds[0]
    kept = [np.flatnonzero(price - price.min() < slack) for price in priced]
    if not all(map(len, kept)):  # nothing is better by more than the gap
        return chosen
    costs, losses = ([array[own] for array, own in zip(arrays, kept, strict=True)] for arrays in (costs, losses))
    cheapest = np.cumsum([0.0, *(float(array.min()) for array in reversed(costs))])[::-1]
    spent, lost = np.zeros(1), np.zeros(1)
    trail: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for k, (cost, loss) in enumerate(zip(costs, losses, strict=True), start=1):
        total, sum_lost = (spent[:, None] + cost).ravel(), (lost[:, None] + loss).ravel()
        open_ = total + cheapest[k] <= limit
        bound = sum_lost + bounds[k] + multiplier * (total - limit)
        places = np.flatnonzero(open_ & (bound < best))
        if not len(places):
            return chosen
        order = places[np.lexsort((places, sum_lost[places], total[places]))]
        lowest = np.minimum.accumulate(np.concatenate([[np.inf], sum_lost[order]]))
        order = order[sum_lost[order] < lowest[:-1]]
        spent, lost = total[order], sum_lost[order]
        trail.append(np.divmod(order, len(cost)))
    state, better = int(np.argmin(lost)), []
    for own, (before, option) in zip(reversed(kept), reversed(trail), strict=True):
        better.append(int(own[option[state]]))
        state = int(before[state])
    return better[::-1]


def _sum(values: Sequence[Array], chosen: Sequence[int]) -> float:
    return sum(float(array[place]) for array, place in zip(values, chosen, strict=True))


def _exchanged(costs: Sequence[Array], losses: Sequence[Array], chosen: Sequence[int], limit: float) -> list[int]:
    """A choice within a limit, with the options of one or two tensors exchanged as long as that loses less and fits."""
    chosen = list(chosen)
    owner = np.concatenate([np.full(len(cost), tensor) for tensor, cost in enumerate(costs)])
    place = np.concatenate([np.arange(len(cost)) for cost in costs])
    cost, loss = np.concatenate(costs), np.concatenate(losses)
    starts = np.cumsum([0, *map(len, costs)])[:-1]
    while True:
        now = starts + chosen
        more, lost = cost - cost[now][owner], loss - loss[now][owner]  # of each option in place of its tensor's own
        order = np.argsort(more, kind="stable")
        # For each option as the first of two, the best second one with what room is left; an option that is taken already as
        # the second is no exchange.
        least = np.minimum.accumulate(lost[order])
        first = np.maximum.accumulate(np.where(lost[order] == least, np.arange(len(order)), 0))
        room = np.searchsorted(more[order], limit - cost[now].sum() - more, side="right") - 1
        second = order[first[room]]
        gains = np.where((room >= 0) & ((owner != owner[second]) | (second == now[owner])), lost + lost[second], np.inf)
        best = int(gains.argmin())
        if not gains[best] < -ROUNDING * loss[now].sum():
            return chosen
        for option in (second[best], best):
            chosen[owner[option]] = int(place[option])


def _lagrange(costs: Sequence[Array], losses: Sequence[Array], limit: float) -> tuple[float, list[int]]:
    """A multiplier near the best one of the relaxation, and the best choice within the limit that is met on the way."""

    def choice(multiplier: float) -> list[int]:
        return [int(np.lexsort((cost, loss + multiplier * cost))[0]) for cost, loss in zip(costs, losses, strict=True)]

    chosen = choice(0.0)
    if _sum(costs, chosen) <= limit:
        return 0.0, chosen
    low, high = 0.0, max(float(array.max()) for array in losses) / limit
    for _ in range(40):
        chosen = choice(high)
        if _sum(costs, chosen) <= limit:
            break
        low, high = high, 8 * high
    else:  # the budget is about the least there is: few choices are left
        return 0.0, [int(np.lexsort((loss, cost))[0]) for cost, loss in zip(costs, losses, strict=True)]
    for _ in range(60):
        middle = (low + high) / 2
        other = choice(middle)
        if _sum(costs, other) <= limit:
            high, chosen = middle, min(chosen, other, key=lambda own: _sum(losses, own))
        else:
            low = middle
    return high, chosen
