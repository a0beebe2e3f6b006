"""The best choice of options under a budget: equal to brute force, reachable limits in its errors."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heat_hf.search.ranks.allocation import Option, allocate, knapsack, least_budget

FIGURES = st.integers(0, 9).map(float)
COSTS = st.integers(1, 9).map(float)
OPTIONS = st.lists(
    st.lists(st.builds(Option, FIGURES, COSTS, COSTS, st.integers(0, 9)), min_size=1, max_size=4), min_size=1, max_size=4
)


def sums(choice: tuple[Option, ...]) -> tuple[float, float, float, float]:
    loss, energy, seconds, parameters = (
        sum(getattr(o, name) for o in choice) for name in ("loss", "energy", "seconds", "parameters")
    )
    return loss, energy * seconds, seconds, parameters


@given(options=OPTIONS, kind=st.sampled_from(["edp", "seconds", "parameters"]), budget=st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_it_is_the_best_of_all_choices(options: list[list[Option]], kind: str, budget: int) -> None:
    column = {"edp": 1, "seconds": 2, "parameters": 3}[kind]
    every = [sums(choice) for choice in itertools.product(*options)]
    within = [own for own in every if own[column] <= budget]
    if not within:
        with pytest.raises(ValueError, match=f"no choice keeps {kind} within"):
            allocate(options, kind, budget)
        return
    chosen = allocate(options, kind, budget)
    found = sums(tuple(own[place] for own, place in zip(options, chosen, strict=True)))
    assert found[column] <= budget * (1 + 1e-9)
    assert found[0] == pytest.approx(min(own[0] for own in within), abs=1e-9)
    assert allocate(options, kind, budget) == chosen


def test_a_realistic_size_is_exact_by_its_bound() -> None:
    """36 tensors of 30 options: no single exchange, nor pair of exchanges, improves the choice within the budget."""
    rng = random.Random(0)
    options = []
    for _ in range(36):
        weight, size = rng.lognormvariate(0, 1), rng.choice([1, 4])
        steps = [(k / 30, 1 + 0.05 * rng.random()) for k in range(1, 31)]
        options.append(
            [Option(weight * (1 - x) ** 2, size * (1 + 5 * x * e), size * (1 + 2 * x * e), int(1000 * x)) for x, e in steps]
        )
    dense = sums(tuple(own[-1] for own in options))[1]
    chosen = allocate(options, "edp", dense / 5.7)
    best = [own[place] for own, place in zip(options, chosen, strict=True)]
    edp = sums(tuple(best))[1]
    assert 0.99 < edp / (dense / 5.7) <= 1 + 1e-9
    energy, seconds = sum(o.energy for o in best), sum(o.seconds for o in best)
    moves = [
        (i, o.loss - best[i].loss, o.energy - best[i].energy, o.seconds - best[i].seconds)
        for i, own in enumerate(options)
        for o in own
    ]
    rows = np.array([move[1:] for move in moves])
    owner = np.array([move[0] for move in moves])
    change = rows[:, None] + rows[None]
    better = (change[..., 0] < -1e-9) & (owner[:, None] != owner)
    keeps = (energy + change[..., 1]) * (seconds + change[..., 2]) <= dense / 5.7
    assert not (better & keeps).any()


def test_many_tensors_with_many_options_are_near_their_bound() -> None:
    """96 tensors of 400 options, as BERT-large's blocks have: without a gap, this takes hours."""
    rng = np.random.default_rng(0)
    costs = [np.sort(rng.lognormal(0, 1) * rng.uniform(0.05, 1, 400)) for _ in range(96)]
    losses = [np.sort(rng.lognormal(0, 1) * rng.uniform(0, 1, 400) ** 2)[::-1].copy() for _ in costs]
    limit = 0.3 * sum(float(cost.max()) for cost in costs)
    chosen = knapsack(costs, losses, limit)
    assert chosen is not None
    assert sum(cost[place] for cost, place in zip(costs, chosen, strict=True)) <= limit * (1 + 1e-9)
    found = sum(loss[place] for loss, place in zip(losses, chosen, strict=True))
    prices = np.geomspace(1e-3, 1e3, 2000)  # of the cost, in losses: each gives a bound that no choice is below
    bound = max(
        sum(float((loss + price * cost).min()) for cost, loss in zip(costs, losses, strict=True)) - price * limit
        for price in prices
    )
    assert bound <= found <= bound * (1 + 3e-3)


def test_the_budget_is_met_exactly_at_its_edge() -> None:
    options = [[Option(0.0, 3.0, 2.0, 1), Option(5.0, 1.0, 1.0, 1)], [Option(0.0, 1.0, 4.0, 1), Option(5.0, 1.0, 1.0, 1)]]
    assert allocate(options, "edp", 24.0) == [0, 0]  # (3 + 1)·(2 + 4)
    assert allocate(options, "edp", 23.999) in ([0, 1], [1, 0])
    assert least_budget(options, "edp") == 4.0
    assert allocate(options, "edp", 4.0) == [1, 1]


def test_a_least_product_of_two_options_may_be_out_of_reach() -> None:
    """The option with the least energy is not that with the least time: 1·1 is no choice's product."""
    options = [[Option(0.0, 1.0, 9.0, 1), Option(0.0, 9.0, 1.0, 1)]]
    assert least_budget(options, "edp") == 1.0
    with pytest.raises(ValueError, match="no choice keeps edp within 5: every product"):
        allocate(options, "edp", 5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is no tensor"),
        ([[]], "tensor 0 has no option"),
        ([[Option(1.0, -1.0, 1.0, 1)]], "an option needs finite figures"),
        ([[Option(1.0, 0.0, 1.0, 1)]], "energy and time above 0"),
        ([[Option(float("nan"), 1.0, 1.0, 1)]], "an option needs finite figures"),
        ([[Option(1.0, 3.0, 4.0, 1)]], "no choice keeps edp within 2: the least that is reachable is 12"),
    ],
)
def test_bad_options_are_refused(options: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(options, "edp", 2.0)


def test_a_knapsack_without_room_has_no_choice() -> None:
    assert knapsack([np.array([2.0, 3.0])], [np.array([1.0, 0.0])], 1.0) is None
    assert knapsack([np.array([2.0, 3.0])], [np.array([1.0, 0.0])], 2.5) == [0]
