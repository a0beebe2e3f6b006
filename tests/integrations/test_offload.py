"""Weights that lie elsewhere between forward passes: accelerate's offloading, and sharding as FSDP does it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload, dispatch_model, init_empty_weights, load_checkpoint_and_dispatch
from accelerate.hooks import remove_hook_from_submodules
from conftest import small_model, token_ids
from torch import nn

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.encoders.linears import factorized_layers
from heat_hf.formats import FORMATS

CPU = torch.device("cpu")
formats = pytest.mark.parametrize("name", FORMATS)
executions = pytest.mark.parametrize("execution", ["auto", "reconstruct"])


def compressed(name: str, execution: str = "auto", **options: Any) -> Any:
    execution = "contract" if name == "pivoted" else execution  # it never rebuilds W′
    model = small_model("bert")
    config = {"decomposition": name, "target_params_ratio": 0.6, "accelerator": None, "execution": execution, **options}
    HeatCompressor(model).compress(HeatConfig(**config))
    return model


def said(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids()).logits


@formats
@executions
def test_offloading(name: str, execution: str, tmp_path: Path) -> None:
    model = compressed(name, execution)
    expected = said(model)
    on_cpu = cpu_offload(copy.deepcopy(model), execution_device=CPU)
    assert all(parameter.is_meta for parameter in on_cpu.parameters())
    torch.testing.assert_close(said(on_cpu), expected, rtol=1e-5, atol=1e-6)
    on_disk = disk_offload(copy.deepcopy(model), str(tmp_path), execution_device=CPU)
    torch.testing.assert_close(said(on_disk), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(said(on_disk), said(on_disk))
    remove_hook_from_submodules(on_cpu)
    torch.testing.assert_close(said(on_cpu), expected, rtol=1e-5, atol=1e-6)


@formats
def test_a_device_map_with_a_part_on_disk(name: str, tmp_path: Path) -> None:
    model = compressed(name)
    expected = said(model)
    parts = {"bert.embeddings": "cpu", "bert.encoder.layer.0": "cpu", "bert.pooler": "disk", "classifier": "cpu"}
    parts["bert.encoder.layer.1"] = "disk"
    dispatched = dispatch_model(copy.deepcopy(model), parts, main_device="cpu", offload_dir=str(tmp_path / "offloaded"))
    assert torch.equal(said(dispatched), expected)
    model.save_pretrained(tmp_path / "model")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    loaded = load(tmp_path / "model", device_map=parts, offload_folder=str(tmp_path / "folder"))
    assert any(parameter.is_meta for layer in factorized_layers(loaded).values() for parameter in layer.parameters())
    assert torch.equal(said(loaded), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda order: None, r"has no tensor .*query\.order"),
        (lambda order: order * 0, r"query\.order .* is no order of 24 rows"),
    ],
)
def test_an_order_of_rows_that_is_missing_or_none(change: Any, said: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    compressed("pivoted").save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    weights = load_file(file)
    name = "bert.encoder.layer.1.attention.self.query.order"
    changed = change(weights.pop(name))
    save_file(weights if changed is None else {**weights, name: changed}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=said):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_a_core_that_is_missing_from_a_model_with_an_offloaded_part(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    compressed("cp").save_pretrained(tmp_path / "model")
    (file,) = (tmp_path / "model").glob("*.safetensors")
    weights = load_file(file)
    del weights["bert.encoder.layer.1.attention.self.query.core_0"]
    save_file(weights, file, {"format": "pt"})
    parts = {"bert.embeddings": "cpu", "bert.encoder.layer.0": "disk", "bert.encoder.layer.1": "cpu", "bert.pooler": "cpu"}
    with pytest.raises(ValueError, match=r"query\.core_0"):
        transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "model", device_map={**parts, "classifier": "cpu"}, offload_folder=str(tmp_path / "folder")
        )


@formats
def test_a_checkpoint_loaded_and_dispatched(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = compressed(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with init_empty_weights():
        empty = copy.deepcopy(model)
        for module in empty.modules():
            for key, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, key, nn.Parameter(parameter.to("meta")))
    parts = {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "cpu", "classifier": "cpu"}
    folder = str(tmp_path / "folder")
    loaded = load_checkpoint_and_dispatch(empty, str(tmp_path / "model.safetensors"), parts, offload_folder=folder)
    assert torch.equal(said(loaded), said(model))


def test_empty_weights() -> None:
    with init_empty_weights():
        model = compressed_layers()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert all(parameter.numel() for parameter in model.to_empty(device="cpu").parameters())


def compressed_layers() -> nn.Module:
    from heat_hf import FactorizedLinear, TensorSetting, TensorShape

    shape = TensorShape((24,), (36,))
    return nn.Sequential(*(FactorizedLinear(TensorSetting(name, shape, 2)) for name in ("low_rank", "cp", "tucker")))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@formats
@executions
@pytest.mark.parametrize("wrapped", ["layer", "linear", "model"])
def test_sharding(name: str, execution: str, wrapped: str, group: None) -> None:
    from torch.distributed.fsdp import fully_shard

    model = compressed(name, execution).eval()
    expected = said(model)
    model(input_ids=token_ids()).logits.square().sum().backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    inner = nn.Linear if wrapped == "linear" else type(next(iter(factorized_layers(model).values())))
    for module in [m for m in model.modules() if isinstance(m, inner)] if wrapped != "model" else []:
        fully_shard(module)
    fully_shard(model)
    torch.testing.assert_close(said(model), expected, rtol=1e-5, atol=1e-6)
    model(input_ids=token_ids()).logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        if key in gradients:
            torch.testing.assert_close(parameter.grad.full_tensor(), gradients[key], rtol=1e-4, atol=1e-6)
