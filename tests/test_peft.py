"""LoRA on factorized layers: trained by distillation, saved, loaded, merged, unmerged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from test_distillation import apart, batch, pair, train

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.encoder import factorized_layers
from heat_hf.integrations.peft import load_adapter, lora_config


def adapted(tmp_path: Path, steps: int = 40) -> tuple[Any, Any, Any]:
    """A student with trained adapters, the model that PEFT made of it, and the teacher."""
    student, teacher = pair()
    plain = copy.deepcopy(student)
    model = get_peft_model(student, lora_config(student, r=2, lora_alpha=4))
    train(tmp_path / "run", model, teacher, max_steps=steps, learning_rate=3e-3)
    return model, plain, teacher


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch()).logits


def test_adapters_alone_are_distilled(tmp_path: Path) -> None:
    model, plain, teacher = adapted(tmp_path)
    assert apart(model.get_base_model(), teacher)[2] < 0.9 * apart(plain, teacher)[2]
    for name, layer in factorized_layers(plain).items():
        own = model.get_base_model().get_submodule(name).base_layer
        assert all(torch.equal(a, b) for a, b in zip(own.cores, layer.cores, strict=True))


def test_adapters_are_saved_and_loaded(tmp_path: Path) -> None:
    model, plain, _ = adapted(tmp_path, steps=4)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(copy.deepcopy(plain), tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(plain))


def test_merging_is_exact_and_undone_bit_by_bit(tmp_path: Path) -> None:
    model, _, _ = adapted(tmp_path, steps=4)
    before = logits(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.merge_adapter()
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model), before)


def test_a_merged_model_is_a_compressed_model(tmp_path: Path) -> None:
    model, plain, _ = adapted(tmp_path, steps=4)
    before = logits(model)
    merged = model.merge_and_unload()
    ranks = {name: layer.setting.rank[0] for name, layer in factorized_layers(merged).items()}
    assert ranks == {name: layer.setting.rank[0] + 2 for name, layer in factorized_layers(plain).items()}
    merged.save_pretrained(tmp_path / "merged")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(loaded), before, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_merged_is_refused() -> None:
    _, teacher = pair()
    model = copy.deepcopy(teacher)
    HeatCompressor(model).compress(HeatConfig(decomposition="cp", target_params_ratio=0.5, accelerator=None))
    adapters = get_peft_model(model, lora_config(model, r=2))
    with pytest.raises(ValueError, match="a cp layer cannot take in an adapter exactly"):
        adapters.merge_adapter()
    with pytest.raises(ValueError, match="has no factorized layers"):
        lora_config(teacher)


def test_adapters_for_dense_layers_are_loaded_as_ever(tmp_path: Path) -> None:
    _, teacher = pair()
    get_peft_model(copy.deepcopy(teacher), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="load the adapters with PeftModel"):
        load_adapter(teacher, tmp_path)
