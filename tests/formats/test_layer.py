"""FactorizedLinear: equal to dense, trainable, sliceable, exportable, compilable, and honest about what it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from heat_hf import FactorizedLinear, TensorSetting, TensorShape
from heat_hf.formats import FORMATS, get_format
from heat_hf.formats.decomposition import decompose
from heat_hf.formats.setting import EXECUTIONS

EINSUMS = [name for name in FORMATS if get_format(name).path is None]


def layer_for(name: str, execution: str = "auto", bias: bool = True, rows: int = 24, columns: int = 36) -> FactorizedLinear:
    torch.manual_seed(0)
    linear = nn.Linear(columns, rows, bias=bias)
    format = get_format(name)
    shape = format.default_shape(rows, columns)
    setting = TensorSetting(name, shape, format.largest_rank(shape, 0.6 * rows * columns), execution)
    return FactorizedLinear.from_linear(linear, setting, decompose(format, linear.weight, shape, setting.rank))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_forward_equals_the_dense_layer(name: str, execution: str, bias: bool) -> None:
    if execution == "reconstruct" and name not in EINSUMS:
        pytest.skip("never rebuilds W′")
    layer = layer_for(name, execution, bias)
    dense = layer.to_linear()
    for shape in ((36,), (5, 36), (2, 3, 36), (0, 36)):
        x = torch.randn(shape)
        torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-5)
    assert layer(torch.randn(36, 4).T).shape == (4, 24)  # not contiguous


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_equal_those_of_the_reconstruction(name: str) -> None:
    layer = layer_for(name).double()
    x = torch.randn(7, 36, dtype=torch.float64)
    ours = torch.autograd.grad(layer(x).square().sum(), tuple(layer.parameters()))
    dense = nn.functional.linear(x, layer.reconstruct(), layer.bias).square().sum()
    for a, b in zip(ours, torch.autograd.grad(dense, tuple(layer.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_precomputed_cores_follow_the_parameters() -> None:
    setting = TensorSetting("tucker", TensorShape((24,), (36,)), (8, 8), "contract")
    layer = FactorizedLinear(setting)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 36)
    assert layer.plan.precomputed
    with torch.no_grad():
        first = layer(x)
        torch.testing.assert_close(layer(x), first)
        layer.cores[0].mul_(2)
        torch.testing.assert_close(layer(x) - layer.bias, 2 * (first - layer.bias))
        layer.load_state_dict({name: torch.zeros_like(value) for name, value in layer.state_dict().items()})
        assert not layer(x).any()
    with torch.inference_mode():
        assert not layer(x).any()
    assert copy.deepcopy(layer)(x).shape == (3, 24)


@pytest.mark.parametrize("name", EINSUMS)
def test_rank_slices(name: str) -> None:
    layer = layer_for(name)
    format, setting = get_format(name), layer.setting
    small = format.uniform_rank(setting.shape, max(1, max(setting.rank) - 2))
    x = torch.randn(4, 36)
    whole = layer(x)
    layer.set_rank(small)
    cut = format.truncate([core.detach() for core in layer.cores], setting.shape, small)
    expected = nn.functional.linear(x, format.reconstruct(cut, setting.shape), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    layer(x).sum().backward()
    assert all(core.grad is not None and core.grad.shape == core.shape for core in layer.cores)
    assert f"rank={'x'.join(map(str, small))}" in repr(layer)
    layer.set_rank(None)
    torch.testing.assert_close(layer(x), whole)
    with pytest.raises(ValueError, match="exceeds the layer's rank"):
        layer.set_rank(format.uniform_rank(setting.shape, max(setting.rank) + 1))


@pytest.mark.parametrize("name", FORMATS)
def test_export_with_dynamic_tokens_is_exact(name: str) -> None:
    layer = layer_for(name).eval()
    sizes = {"x": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(layer, (torch.randn(2, 5, 36),), dynamic_shapes=sizes).module()
    for shape in ((2, 5, 36), (3, 11, 36)):
        x = torch.randn(shape)
        assert torch.equal(program(x), layer(x))


@pytest.mark.parametrize("name", FORMATS)
def test_no_graph_breaks(name: str) -> None:
    layer = layer_for(name).eval()
    x = torch.randn(2, 5, 36)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for step in layer.plan.all_steps:  # plans are shared: another test may have run this one
        step.__dict__.pop("groups", None)
    layer.set_rank(None)
    torch.testing.assert_close(compiled(x), layer(x))


def test_repr_says_what_it_is() -> None:
    text = repr(layer_for("cp"))
    for part in ("format=cp", "shape=4x6:36", "rank=11", "execution=auto", "ratio=0.586"):
        assert part in text


def test_there_is_no_dense_weight() -> None:
    with pytest.raises(AttributeError):
        _ = layer_for("low_rank").weight


@pytest.mark.parametrize("execution", ["fast", None, 1])
def test_bad_execution(execution: object) -> None:
    with pytest.raises(ValueError, match="execution must be one of auto, contract, reconstruct"):
        TensorSetting("low_rank", TensorShape((4,), (4,)), (2,), execution)


def test_bad_settings_from_json() -> None:
    good = TensorSetting("cp", TensorShape((4,), (2, 3)), (2,)).to_dict()
    assert TensorSetting.from_dict(good).to_dict() == good
    for change in ({"rank": [99]}, {"format": "svd"}, {"shape": [[4]]}, {"shape": 3}, {"extra": 1}):
        with pytest.raises(ValueError, match=r"rank|svd|shape|tensor setting"):
            TensorSetting.from_dict({**good, **change})
    with pytest.raises(ValueError, match="must have format, shape, rank"):
        TensorSetting.from_dict({"format": "cp"})
