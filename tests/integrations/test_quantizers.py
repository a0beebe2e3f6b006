"""Weight quantizers on low-rank layers: torchao, quanto and torch's own find their linears as they find any."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_model, token_ids
from torch import nn

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.encoders.linears import factorized_layers


def compressed(decomposition: str = "low_rank", execution: str = "auto") -> Any:
    model = small_model("bert")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(8)
    config = HeatConfig(decomposition=decomposition, target_params_ratio=0.6, accelerator=None, execution=execution)
    HeatCompressor(model).compress(config)
    return model


def said(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids())[0]


def close(quantized: torch.Tensor, expected: torch.Tensor) -> None:
    """As close as int8 comes; and not the same, so that something was quantized."""
    assert 0 < (quantized - expected).norm() < 0.1 * expected.norm()


def linears(model: nn.Module) -> list[nn.Module]:
    return [child for layer in factorized_layers(model).values() for child in layer.children()]


kinds = pytest.mark.parametrize(
    ("decomposition", "execution"), [("low_rank", "auto"), ("low_rank", "reconstruct"), ("pivoted", "auto")]
)


@kinds
@pytest.mark.parametrize("way", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao(way: str, decomposition: str, execution: str, tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = compressed(decomposition, execution)
    expected, quantized = said(model), copy.deepcopy(model)
    quantization.quantize_(quantized, getattr(quantization, way)())
    assert all(type(child.weight.data) is not torch.Tensor for child in linears(quantized))
    close(said(quantized), expected)
    if way == "Int8WeightOnlyConfig":  # with activations as they are
        torch.testing.assert_close(said(copy.deepcopy(quantized).dequantize()), said(quantized), rtol=1e-4, atol=1e-4)
    torch.save(quantized.state_dict(), tmp_path / "weights")
    other = copy.deepcopy(model)
    other.load_state_dict(torch.load(tmp_path / "weights"), assign=True)
    assert torch.equal(said(other), said(quantized))


@kinds
def test_quanto(decomposition: str, execution: str, tmp_path: Path) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    from safetensors.torch import load_file, save_file

    model = compressed(decomposition, execution)
    expected, quantized = said(model), copy.deepcopy(model)
    quanto.quantize(quantized, weights=quanto.qint8)
    quanto.freeze(quantized)
    assert all(isinstance(child, quanto.QLinear) for child in linears(quantized))
    close(said(quantized), expected)
    for layer in factorized_layers(quantized).values():
        x = torch.randn(3, layer.in_features)
        torch.testing.assert_close(layer.to_linear()(x), layer(x), rtol=1e-4, atol=1e-4)
    save_file(quantized.state_dict(), tmp_path / "weights.safetensors")
    other = copy.deepcopy(model)
    quanto.requantize(other, load_file(tmp_path / "weights.safetensors"), quanto.quantization_map(quantized), device="cpu")
    assert torch.equal(said(other), said(quantized))


@kinds
def test_dynamic_quantization(decomposition: str, execution: str, tmp_path: Path) -> None:
    model = compressed(decomposition, execution)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
        assert all(not isinstance(child, nn.Linear) for child in linears(quantized)) and linears(quantized)
        close(said(quantized), said(model))
        torch.save(quantized.state_dict(), tmp_path / "weights")
        other = torch.ao.quantization.quantize_dynamic(compressed(decomposition), {nn.Linear}, dtype=torch.qint8)
        other.load_state_dict(torch.load(tmp_path / "weights", weights_only=False))
    assert torch.equal(said(other), said(quantized))
    with pytest.raises(ValueError, match="has no plain weight"):
        quantized.dequantize()


def test_torchao_after_training_adapters() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    peft = pytest.importorskip("peft")
    model = compressed()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    expected = said(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], r=2))
    torch.testing.assert_close(said(adapted), expected)
    adapted(input_ids=token_ids())[0].square().sum().backward()
    assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora_B" in name)


WAYS = {  # full names of functions, and their arguments after the model
    "torchao.quantization.quantize_": lambda package: (package.Int8WeightOnlyConfig(),),
    "optimum.quanto.quantize": lambda package: (package.qint8,),
    "torch.ao.quantization.quantize_dynamic": lambda _: ({nn.Linear}, torch.qint8),
}


@pytest.mark.parametrize("tool", WAYS)
@pytest.mark.parametrize("decomposition", ["cp", "tucker", "ttm", "monarch"])
def test_what_is_left_as_it_was_is_told(tool: str, decomposition: str, caplog: pytest.LogCaptureFixture) -> None:
    """Formats without linears inside: their cores are as they were, and a warning says so."""
    package, _, name = tool.rpartition(".")
    module = pytest.importorskip(package)
    model, quantize = compressed(decomposition), getattr(module, name)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model = quantize(model, *WAYS[tool](module)) or model
    for name, layer in factorized_layers(model).items():
        assert all(torch.equal(core, before[f"{name}.core_{number}"]) for number, core in enumerate(layer.cores))
    assert f"{tool} quantizes linears, and 12 factorized layers ({decomposition}) hold none" in caplog.text
    caplog.clear()
    for other in (small_model("bert"), compressed("pivoted")):
        quantize(other, *WAYS[tool](module))
    assert "hold none" not in caplog.text


@pytest.mark.parametrize("tool", WAYS)
def test_quantized_layers_are_not_saved_as_a_folder_that_cannot_be_loaded(tool: str, tmp_path: Path) -> None:
    package, _, name = tool.rpartition(".")
    module = pytest.importorskip(package)
    model = compressed()
    model = getattr(module, name)(model, *WAYS[tool](module)) or model
    with pytest.raises(ValueError, match=r"query cannot be saved as it is, see \S+query\.(left|right)\.\S+: .* quantize after"):
        model.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_whoever_is_imported_first() -> None:
    """Another library's module that has taken the function already gets the one that tells."""
    program = "from torch.ao.quantization import quantize_dynamic\nimport heat_hf\nassert hasattr(quantize_dynamic, '_heat_hf')"
    subprocess.run([sys.executable, "-c", program], check=True)
