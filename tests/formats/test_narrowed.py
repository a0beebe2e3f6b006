"""Fewer neurons between two matrices: what goes, what that loses, and layers that say what they are."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moments import lost, moment
from torch import Tensor, nn

from heat_hf import FactorizedLinear, TensorSetting, TensorShape
from heat_hf.formats import FORMATS, PAIRED, get_format
from heat_hf.formats.decomposition import decompose, narrow
from heat_hf.formats.narrowed import Neurons, refitted

UP, DOWN = TensorShape.matrix(20, 8), TensorShape.matrix(6, 20)


@pytest.mark.parametrize("gradients", [True, False])
def test_losses_are_those_of_the_best_fit(gradients: bool) -> None:
    weight = torch.randn(6, 120, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    c, g = moment(120, 1), moment(6, 2) if gradients else None
    neurons = Neurons.ranked(weight, c, g)
    assert sorted(neurons.order) == list(range(120)) and len(neurons.losses) == 120
    assert list(neurons.losses) == sorted(neurons.losses) and neurons.lost(120) == 0
    for count in (1, 7, 60, 119):
        assert neurons.lost(count) == pytest.approx(lost(weight, c, g, neurons.kept(count)), rel=0.05)
        fit = refitted(weight, c, neurons.kept(count))
        torch.testing.assert_close(
            fit, weight @ c[:, neurons.kept(count)] @ torch.linalg.inv(c[neurons.kept(count)][:, neurons.kept(count)]),
            rtol=0.02, atol=0.02,
        )  # fmt: skip


@given(seed=st.integers(0, 200), count=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_few_neurons_are_nearly_the_best_choice(seed: int, count: int) -> None:
    weight = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    c, g = moment(7, seed), moment(4, seed + 1)
    best = min(lost(weight, c, g, list(kept)) for kept in itertools.combinations(range(7), count))
    ours = lost(weight, c, g, Neurons.ranked(weight, c, g).kept(count))
    assert ours <= 1.25 * best + 1e-9


def test_neurons_that_say_the_same_or_nothing_go_first() -> None:
    x = torch.randn(400, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 7], x[:, 2] = 0, x[:, 4]
    weight = torch.randn(5, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c = x.T @ x / len(x)
    neurons = Neurons.ranked(weight, c)
    assert set(neurons.order[:2]) in ({7, 2}, {7, 4}) and neurons.lost(8) < 1e-3 * neurons.lost(1)
    kept = neurons.kept(8)
    torch.testing.assert_close(x[:, kept] @ refitted(weight, c, kept).T, x @ weight.T, rtol=0.01, atol=0.01)


def layers(count: int) -> tuple[nn.Linear, nn.Linear, FactorizedLinear, FactorizedLinear, Tensor]:
    torch.manual_seed(0)
    up, down = nn.Linear(8, 20), nn.Linear(20, 6)
    inputs = torch.randn(300, 8)
    with torch.no_grad():
        inner = nn.functional.gelu(up(inputs)).double()
    found = narrow([up.weight], down.weight, count, inner.T @ inner / len(inner))
    narrowed = [
        FactorizedLinear.from_linear(linear, TensorSetting(name, shape, (count,)), result)
        for linear, name, shape, result in zip((up, down), PAIRED, (UP, DOWN), found, strict=True)
    ]
    return up, down, *narrowed, inputs


def test_two_layers_with_fewer_neurons_between_them() -> None:
    up, down, first, second, x = layers(12)
    ours, dense = second(nn.functional.gelu(first(x))), down(nn.functional.gelu(up(x)))
    assert first(x).shape == (300, 12) and first.bias.shape == (12,) and second.bias.shape == (6,)
    assert float((ours - dense).norm() / dense.norm()) < 0.5
    assert [type(child) for layer in (first, second) for child in layer.children()] == [nn.Linear, nn.Linear]
    one, other = first.to_linear(), second.to_linear()
    assert one.weight.shape == up.weight.shape and other.weight.shape == down.weight.shape
    torch.testing.assert_close(other(nn.functional.gelu(one(x))), ours)
    whole_up, whole_down, *narrowed, _ = layers(20)
    torch.testing.assert_close(
        narrowed[1](nn.functional.gelu(narrowed[0](x))), whole_down(nn.functional.gelu(whole_up(x))), rtol=1e-2, atol=1e-3
    )


def test_what_they_cost_and_store() -> None:
    first, second = (TensorSetting(name, shape, (5,)) for name, shape in zip(PAIRED, (UP, DOWN), strict=True))
    assert (first.parameters, second.parameters) == (5 * 8, 6 * 5)
    assert first.plan(10).macs == 10 * 5 * 8 and second.plan(10).macs == 10 * 6 * 5
    assert TensorSetting.from_dict(first.to_dict()) == first


def test_what_is_refused() -> None:
    assert not set(PAIRED) & set(FORMATS)
    for name, bound in zip(PAIRED, (20, 20), strict=True):
        shape = UP if name == "fewer_outputs" else DOWN
        with pytest.raises(ValueError, match=f"from 1 to {bound}"):
            TensorSetting(name, shape, (bound + 1,))
        with pytest.raises(ValueError, match=f"{name} takes the order-2 shape"):
            TensorSetting(name, TensorShape((4, 5), (8,)), (2,))
        with pytest.raises(ValueError, match="several matrices together"):
            decompose(get_format(name), torch.randn(shape.rows, shape.columns), shape, 3)
    *_, second, _ = layers(12)
    with pytest.raises(ValueError, match="a fewer_inputs layer has one rank"):
        second.set_rank(3)
