"""How close to low rank a matrix is: against its singular values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from heat_hf.encoders.low_rankness import low_rankness


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = weight
    return layer


def test_errors_are_those_of_the_singular_values() -> None:
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    own = low_rankness({"w": linear(weight)})["w"]
    values = torch.linalg.svdvals(weight.double())
    expected = [float(values[rank:].square().sum().sqrt() / values.square().sum().sqrt()) for rank in range(7)]
    assert own.errors == pytest.approx(expected, abs=1e-7)
    assert own.share(3) == 3 * 16 / 60
    assert own.error_at(0.8) == own.errors[3] and own.error_at(1.0) == own.errors[3] and own.error_at(5.0) == own.errors[6]
    assert own.rank_for(own.errors[2] + 1e-9) == 2


def test_a_matrix_of_low_rank_is_told_from_one_that_is_not() -> None:
    low = torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 7.0))
    found = low_rankness({"low": linear(low), "full": linear(torch.eye(8, 6)), "zero": linear(torch.zeros(8, 6))})
    assert found["low"].rank_for(0.01) == 1 and found["full"].rank_for(0.01) == 6 and found["zero"].rank_for(0.01) == 0
