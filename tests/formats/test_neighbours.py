"""What other libraries do to a layer's modules and parameters: pruning, parametrizations, hooks, writes unseen by autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from test_layer import layer_for
from torch import nn
from torch.nn.utils import parametrize, prune, skip_init

from heat_hf import FactorizedLinear, TensorSetting, TensorShape
from heat_hf.formats import FORMATS

formats = pytest.mark.parametrize("name", FORMATS)


def folded() -> FactorizedLinear:
    """A Tucker layer whose plan multiplies small cores with each other first."""
    layer = FactorizedLinear(TensorSetting("tucker", TensorShape((24,), (36,)), (8, 8), "contract"))
    assert layer.plan.precomputed
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def right(layer: FactorizedLinear, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(x, layer.reconstruct(), layer.bias)


def test_how_layers_present_themselves() -> None:
    low_rank = layer_for("low_rank")
    assert [name for name, _ in low_rank.named_parameters()] == ["right.weight", "left.weight", "left.bias"]
    assert all(type(child) is nn.Linear for child in low_rank.children())
    pivoted = layer_for("pivoted")
    assert [name for name, _ in pivoted.named_parameters()] == ["bias", "right.weight", "left.weight"]
    assert [name for name, _ in pivoted.named_buffers()] == ["order"]
    for name in set(FORMATS) - {"low_rank", "pivoted"}:
        layer = layer_for(name)
        own = [key for key, _ in layer.named_parameters(recurse=False)]
        assert not list(layer.children())
        assert sorted(own) == ["bias", *(f"core_{number}" for number in range(len(layer.cores)))]
    for name in FORMATS:
        assert layer_for(name).bias.shape == (24,) and layer_for(name, bias=False).bias is None
        assert isinstance(layer_for(name).cores, tuple)
        cores = [core for core in layer_for(name).cores if core.is_floating_point()]
        assert [core.shape for core in cores] == [torch.Size(s) for s in layer_for(name).setting.core_shapes]


def test_a_low_rank_layer_has_the_bits_of_its_plan() -> None:
    for bias in (True, False):
        layer = layer_for("low_rank", "contract", bias, rows=384, columns=768)
        for shape in ((768,), (5, 768), (2, 7, 768)):
            x = torch.randn(shape)
            planned = layer.plan.contract({0: x.reshape(-1, 768)}, layer.plan.precompute(layer.cores), layer.bias)
            assert torch.equal(layer(x), planned.reshape(*shape[:-1], 384))


def average(layer: FactorizedLinear) -> None:
    for parameter in layer.parameters():
        parameter.data.mul_(0.9).add_(0.1)


def replace(layer: FactorizedLinear) -> None:
    for parameter in layer.parameters():
        parameter.data = 2 * parameter.data


def storage(layer: FactorizedLinear) -> None:
    for parameter in layer.parameters():
        parameter.detach().numpy()[...] *= 3


def swapped(layer: FactorizedLinear) -> None:
    for parameter, other in zip(layer.parameters(), [torch.randn_like(p) for p in layer.parameters()], strict=True):
        parameter.untyped_storage().copy_(other.untyped_storage())


@pytest.mark.parametrize("write", [average, replace, storage, swapped])
def test_writes_that_autograd_does_not_see(write: object) -> None:
    layer, x = folded(), torch.randn(3, 36)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            layer(x)
        write(layer)
        with context():
            torch.testing.assert_close(layer(x), right(layer, x), rtol=1e-4, atol=1e-4)


def test_layers_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer, x = folded(), torch.randn(3, 36)
        layer(x)
        for parameter in layer.parameters():
            parameter.normal_()
        torch.testing.assert_close(layer(x), right(layer, x), rtol=1e-4, atol=1e-4)


@formats
@pytest.mark.parametrize("execution", ["auto", "contract", "reconstruct"])
def test_autocast_leaves_nothing_behind(name: str, execution: str) -> None:
    execution = "contract" if name == "pivoted" else execution
    layer, x = layer_for(name, execution), torch.randn(3, 36)
    with torch.no_grad():
        before = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = layer(x)
        torch.testing.assert_close(mixed.float(), before, rtol=0.1, atol=0.1)
        assert torch.equal(layer(x), before) and layer(x).dtype == torch.float32


def test_autocast_before_and_after_products_of_cores() -> None:
    layer, x = folded(), torch.randn(3, 36)
    with torch.inference_mode():
        before = layer(x)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                assert (layer(x) - before).norm() < 0.05 * before.norm()
            assert torch.equal(layer(x), before)


@formats
def test_pruning(name: str) -> None:
    layer, x = layer_for(name), torch.randn(3, 36)
    module, parameter = (layer.left, "weight") if hasattr(layer, "left") else (layer, "core_0")
    biased = layer.left if name == "low_rank" else layer
    for owner, what in ((module, parameter), (biased, "bias")):
        prune.l1_unstructured(owner, what, amount=0.5)
        torch.testing.assert_close(layer(x), right(layer, x), rtol=1e-4, atol=1e-5)
    before = layer(x)
    for owner, what in ((module, parameter), (biased, "bias")):
        prune.remove(owner, what)
    assert torch.equal(layer(x), before) and (layer.cores[0] == 0).float().mean() > 0.4


def test_global_pruning_finds_every_linear() -> None:
    layers = nn.Sequential(layer_for("low_rank"), nn.Linear(24, 4))
    found = [(module, "weight") for module in layers.modules() if isinstance(module, nn.Linear)]
    prune.global_unstructured(found, prune.L1Unstructured, amount=0.3)
    assert len(found) == 3 and all((module.weight == 0).any() for module, _ in found)


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


@formats
def test_parametrizations(name: str) -> None:
    layer, x = layer_for(name, "contract" if name == "pivoted" else "reconstruct"), torch.randn(3, 36)
    before = layer(x) - layer.bias
    module, parameter = (layer.right, "weight") if hasattr(layer, "left") else (layer, "core_0")
    parametrize.register_parametrization(module, parameter, Doubled())
    torch.testing.assert_close(layer(x) - layer.bias, 2 * before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.to_linear()(x), layer(x), rtol=1e-4, atol=1e-5)
    parametrize.remove_parametrizations(module, parameter)
    torch.testing.assert_close(layer(x) - layer.bias, 2 * before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("execution", ["auto", "contract", "reconstruct"])
def test_hooks_on_the_linears_run(execution: str) -> None:
    layer, x = layer_for("low_rank", execution), torch.randn(3, 36)
    before = layer(x) - layer.bias
    layer.right.register_forward_hook(lambda module, inputs, output: 3 * output)
    torch.testing.assert_close(layer(x) - layer.bias, 3 * before, rtol=1e-4, atol=1e-5)


@formats
def test_building_without_memory(name: str) -> None:
    layer, x = layer_for(name), torch.randn(3, 36)
    with torch.device("meta"):
        empty = FactorizedLinear(layer.setting)
    assert all(parameter.is_meta for parameter in empty.parameters())
    for built in (skip_init(FactorizedLinear, layer.setting), empty.to_empty(device="cpu")):
        built.load_state_dict(layer.state_dict())
        assert torch.equal(built(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_building_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    FactorizedLinear(layer_for("low_rank").setting)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    FactorizedLinear(TensorSetting("low_rank", TensorShape((24,), (36,)), (8,)))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_not_plain_is_said() -> None:
    layer = layer_for("low_rank")
    layer.right = nn.Sequential(layer.right)
    assert layer(torch.randn(3, 36)).shape == (3, 24)
    for ask in (layer.reconstruct, layer.to_linear, lambda: layer.cores):
        with pytest.raises(ValueError, match=r"'right' of a low-rank layer is now a Sequential.*merge or remove adapters"):
            ask()
    layer.set_rank(2)
    with pytest.raises(ValueError, match=r"set_rank\(\[2\]\) needs plain linears"):
        layer(torch.randn(3, 36))
