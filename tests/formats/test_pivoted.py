"""Pivoted low rank: the same matrix in fewer elements, both ways, with or without calibration, in any state of the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from heat_hf import FactorizedLinear, TensorSetting, TensorShape
from heat_hf.formats import get_format
from heat_hf.formats.decomposition import decompose, match_variance
from heat_hf.hardware import cost_model
from heat_hf.hardware.protocol import ways

LOW_RANK, PIVOTED = get_format("low_rank"), get_format("pivoted")


def moments(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    x, g = (torch.randn(400, size, generator=generator, dtype=torch.float64) for size in (columns, rows))
    return x.T @ x / 400, g.T @ g / 400


@pytest.mark.parametrize(("rows", "columns", "rank"), [(384, 384, 96), (1536, 384, 160), (384, 1536, 128), (2, 3, 1)])
@pytest.mark.parametrize("calibrated", [False, True])
def test_it_is_the_matrix_of_two_factors(rows: int, columns: int, rank: int, calibrated: bool) -> None:
    shape = TensorShape.matrix(rows, columns)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    known = dict(zip(("second_moment", "output_moment"), moments(rows, columns), strict=True)) if calibrated else {}
    plain, pivoted = (decompose(codec, weight, shape, rank, **known) for codec in (LOW_RANK, PIVOTED))
    expected, ours = (c.reconstruct(r.cores, shape) for c, r in ((LOW_RANK, plain), (PIVOTED, pivoted)))
    assert float((ours - expected).norm() / expected.norm()) < 1e-6
    assert pivoted.relative_error == pytest.approx(plain.relative_error, rel=1e-5)
    left, right, order = pivoted.cores
    assert left.numel() + right.numel() == PIVOTED.parameters(shape, (rank,)) == rank * (rows + columns - rank)
    assert sorted(order.tolist()) == list(range(rows)) and left.abs().max() < 10
    assert torch.equal(ours[order < rank], right[order[order < rank]])  # pivots are rows of W′, bit for bit


@given(rows=st.integers(2, 12), columns=st.integers(1, 12), true=st.integers(0, 12), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=80, deadline=None)
def test_matrices_of_less_rank_than_asked(rows: int, columns: int, true: int, seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, true, generator=generator).double() @ torch.randn(true, columns, generator=generator).double()
    shape = TensorShape.matrix(rows, columns)
    rank = data.draw(st.integers(1, PIVOTED.max_rank(shape)[0]))
    cores = decompose(PIVOTED, weight, shape, rank).cores
    expected = LOW_RANK.reconstruct(decompose(LOW_RANK, weight, shape, rank).cores, shape)
    torch.testing.assert_close(PIVOTED.reconstruct(cores, shape), expected, rtol=1e-7, atol=1e-7)
    assert all(torch.isfinite(core).all() for core in cores)


@pytest.mark.parametrize("bias", [True, False])
def test_conversion_both_ways(bias: bool) -> None:
    shape = TensorShape.matrix(48, 40)
    linear = nn.Linear(40, 48, bias)
    setting = TensorSetting("low_rank", shape, (12,))
    layer = FactorizedLinear.from_linear(linear, setting, decompose(LOW_RANK, linear.weight, shape, 12)).eval()
    pivoted = layer.converted("pivoted")
    back = pivoted.converted("low_rank")
    x = torch.randn(3, 5, 40)
    for other in (pivoted, back):
        torch.testing.assert_close(other(x), layer(x), rtol=1e-5, atol=1e-6)
        assert not other.training and other.setting.rank == (12,)
    torch.testing.assert_close(back.reconstruct(), pivoted.reconstruct(), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="a low_rank layer cannot be converted to 'tucker'"):
        layer.converted("tucker")


def test_what_is_done_to_modules_and_weights() -> None:
    setting = TensorSetting("pivoted", TensorShape.matrix(48, 40), (12,))
    linear = nn.Linear(40, 48)
    layer = FactorizedLinear.from_linear(linear, setting, decompose(PIVOTED, linear.weight, setting.shape, 12))
    x = torch.randn(7, 40)
    for change in (lambda own: own.data.mul_(0.9).add_(0.01), lambda own: own.detach().normal_()):
        for parameter in layer.parameters():
            change(parameter)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.reconstruct(), layer.bias), rtol=1e-4, atol=1e-5)
    half = copy.deepcopy(layer).bfloat16()
    assert half.order.dtype == torch.int32 and half(x.bfloat16()).dtype == torch.bfloat16
    fresh = FactorizedLinear(setting)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))


def test_variance_is_matched_in_the_pivots() -> None:
    shape, weight = TensorShape.matrix(24, 36), torch.randn(24, 36)
    cores = match_variance(weight, decompose(PIVOTED, weight, shape, 3).cores, PIVOTED, shape)
    torch.testing.assert_close(PIVOTED.reconstruct(cores, shape).var(), weight.var(), rtol=1e-4, atol=0)


def test_what_it_costs() -> None:
    plain, pivoted = (TensorSetting(name, TensorShape.matrix(384, 384), (96,)) for name in ("low_rank", "pivoted"))
    (plan,) = ways(pivoted, 128)
    assert plan.macs == 128 * 96 * (384 + 384 - 96) and plan.steps[-1].gemm == (1, 128, 288, 96)
    simba = cost_model("simba-l")
    assert simba.setting(pivoted, 128).edp < 0.85 * simba.setting(plain, 128).edp


def test_what_is_refused() -> None:
    shape = TensorShape.matrix(24, 36)
    with pytest.raises(ValueError, match="pivoted is never executed by rebuilding W′"):
        TensorSetting("pivoted", shape, (4,), "reconstruct")
    with pytest.raises(ValueError, match="an integer from 1 to 23, got 24"):
        TensorSetting("pivoted", shape, (24,))
    with pytest.raises(ValueError, match="order-2 shape 1:36 with two rows or more"):
        TensorSetting("pivoted", TensorShape.matrix(1, 36), (1,))
    layer = FactorizedLinear(TensorSetting("pivoted", shape, (4,)))
    with pytest.raises(ValueError, match=r"a pivoted layer has one rank, \(4,\): use low_rank"):
        layer.set_rank(2)
    with pytest.raises(ValueError, match="hold no rank 2"):
        PIVOTED.truncate(layer.cores, shape, (2,))
