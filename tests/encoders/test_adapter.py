"""Adapters of dense models: merged before compression, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from heat_hf import HeatCompressor, HeatConfig


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
    assert report.base_model == "adapter" and len(report.tensors) == 12
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
    assert len(report.tensors) == 12


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
