"""LoRA on factorized layers: trained by distillation, saved, loaded, merged, unmerged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from students import apart, batch, pair, train

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.encoders.linears import factorized_layers
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


def test_a_trainer_of_adapters_does_not_save_them_as_a_model(tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = train(tmp_path / "run", get_peft_model(student, lora_config(student, r=2)), teacher, max_steps=2)
    with pytest.raises(ValueError, match="save_model saves those alone"):
        trainer.save(tmp_path / "saved")


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


def tuned(minilm: str, folder: Path, **options: Any) -> torch.Tensor:
    """A LoRA adapter with a head of three classes on the real MiniLM, saved; returns what it says."""
    torch.manual_seed(0)
    dense = transformers.AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=3)
    targets = {"target_modules": ["query", "value"], "init_lora_weights": False, "task_type": "SEQ_CLS"}
    model = get_peft_model(dense, LoraConfig(**{**targets, **options}))
    with torch.no_grad():
        said = model.eval()(**batch_of(minilm)).logits
    model.save_pretrained(folder)
    return said


def batch_of(minilm: str) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    return tokenizer(["A man is playing a guitar.", "Nobody sings."], return_tensors="pt", padding=True)


def test_a_checkpoint_with_an_adapter_is_merged_and_compressed(
    minilm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = tuned(minilm, tmp_path / "adapter")
    compressor = HeatCompressor.from_pretrained(tmp_path / "adapter")
    assert f"was merged into {minilm}" in caplog.text
    assert type(compressor.model).__name__ == "BertForSequenceClassification" and compressor.tokenizer is not None
    torch.testing.assert_close(compressor.model(**batch_of(minilm)).logits, expected, rtol=1e-4, atol=1e-4)
    report = compressor.compress(HeatConfig(target_params_ratio=0.9), save_directory=tmp_path / "out")
    assert report.base_model == str(tmp_path / "adapter") and len(report.tensors) == 36
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file(), "what sentence-transformers has beside the dense model"
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded(**batch_of(minilm)).logits, compressor.model(**batch_of(minilm)).logits)


def test_a_model_with_added_adapters_is_merged(minilm: str) -> None:
    encoder = transformers.AutoModel.from_pretrained(minilm).eval()
    plain = encoder(**batch_of(minilm)).last_hidden_state
    encoder.add_adapter(LoraConfig(target_modules=["query", "dense"], init_lora_weights=False))
    with torch.no_grad():
        expected = encoder.eval()(**batch_of(minilm)).last_hidden_state
    compressor = HeatCompressor.from_pretrained(encoder)
    assert not hasattr(compressor.model, "peft_config")
    found = compressor.model(**batch_of(minilm)).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)
    report = compressor.compress(HeatConfig(target_params_ratio=0.5))
    assert len(report.tensors) == 36


def test_a_peft_model_is_merged(minilm: str) -> None:
    model = get_peft_model(transformers.AutoModel.from_pretrained(minilm), LoraConfig(target_modules=["query"]))
    assert HeatCompressor.from_pretrained(model).model is model.get_base_model()


def test_adapters_that_cannot_be_merged(minilm: str, tmp_path: Path) -> None:
    dense = transformers.AutoModel.from_pretrained(minilm)
    prompts = get_peft_model(dense, PromptTuningConfig("FEATURE_EXTRACTION", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="PROMPT_TUNING, which cannot be merged"):
        HeatCompressor.from_pretrained(prompts)
    tuned(minilm, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(OSError, match=r"adapter_model\.safetensors"):
        HeatCompressor.from_pretrained(tmp_path / "adapter")
