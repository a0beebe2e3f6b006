"""The Pareto front, its knees, and what is selected from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from heat_hf.search.shapes.pareto import SLACK, front, knees, pareto_front, select
from heat_hf.search.shapes.table import Candidate, SizeInfo

DENSE = SizeInfo(1, "d", ("w",), 100.0, 1e-6, {})


def candidate(error: float, parameters: int, energy: float, seconds: float, rank: int = 1, **changes: object) -> Candidate:
    whole = Candidate("10x10", "cp", "10:10", (rank,), error, parameters, 1000, energy, seconds)
    return replace(whole, **changes)


@given(
    points=arrays(np.float64, st.tuples(st.integers(0, 30), st.integers(1, 4)), elements=st.integers(0, 4).map(float)),
)
@settings(max_examples=200, deadline=None)
def test_the_front_is_exactly_what_no_point_dominates(points: np.ndarray) -> None:
    expected = [not any((other <= row).all() and (other < row).any() for other in points) for row in points]
    assert pareto_front(points).tolist() == expected


def test_the_front_refuses_what_has_no_order() -> None:
    with pytest.raises(ValueError, match="without NaN"):
        pareto_front([[1.0, float("nan")]])
    with pytest.raises(ValueError, match="n×k array"):
        pareto_front([1.0, 2.0])
    assert front([]) == []


def test_a_budget_takes_the_least_error_and_lets_edp_decide_near_it() -> None:
    best = candidate(0.500, 50, 80.0, 1e-6, rank=1)
    near = candidate(0.500 * (1 + SLACK / 2), 50, 40.0, 1e-6, rank=2)
    far = candidate(0.500 * (1 + 2 * SLACK), 50, 10.0, 1e-6, rank=3)
    large = candidate(0.100, 90, 90.0, 1e-6, rank=4)
    everything = [large, far, near, best]
    assert select(everything, DENSE, max_ratio=0.5) == near
    assert select(everything, DENSE, max_ratio=0.5, slack=0.0) == best
    assert select(everything, DENSE, max_ratio=0.95) == large
    assert select(everything, DENSE, max_edp=15e-18) == far
    with pytest.raises(ValueError, match=r"max_ratio=0.2 is below what any candidate reaches, 0.5"):
        select(everything, DENSE, max_ratio=0.2)
    with pytest.raises(ValueError, match="max_edp=1e-20 is below"):
        select(everything, DENSE, max_edp=1e-20)
    cheap = candidate(0.9, 95, 5.0, 1e-6)
    with pytest.raises(ValueError, match="no candidate keeps both"):
        select([best, cheap], DENSE, max_ratio=0.5, max_edp=10e-18)
    with pytest.raises(ValueError, match="no candidate"):
        select([], DENSE)


def test_without_a_budget_the_knee_with_the_least_error_is_taken() -> None:
    tiny = candidate(0.95, 5, 5.0, 5e-8, rank=1)
    knee = candidate(0.30, 30, 30.0, 3e-7, rank=2)  # ratio + error = 0.6
    other = candidate(0.25, 60, 30.0, 3e-7, rank=3)  # the knee of energy, latency and EDP
    large = candidate(0.05, 95, 120.0, 9e-7, rank=4)
    points = [large, other, knee, tiny]
    assert knees(points, DENSE) == [knee, other, other, other]
    assert select(points, DENSE) == other
    free = candidate(0.0, 99, 200.0, 1e-6, rank=5)
    assert select([*points, free], DENSE) == other, "what costs more than the dense layer has no say"
    assert select([free], DENSE) == free


def test_ties_do_not_depend_on_the_order() -> None:
    same = [candidate(0.5, 50, 50.0, 5e-7, **other) for other in (
        {"format": "tucker", "rank": (2, 2)}, {"format": "low_rank"}, {"format": "cp"}, {"format": "cp", "shape": "2x5:10"},
    )]  # fmt: skip
    assert {select(order, DENSE).format for order in (same, same[::-1])} == {"low_rank"}
    assert len(front(same)) == 4, "equal points do not dominate each other"
