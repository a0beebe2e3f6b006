"""The three lines of a model's card, and `transformers.pipeline` with a folder, on the real MiniLM."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.reports.card import Evaluation, model_card, origin_of

EXAMPLE = "A man is playing a guitar."
CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "feature-extraction": "AutoModel",
}


@pytest.mark.parametrize("task", CLASSES)
def test_a_cards_code_and_a_pipeline_load_the_folder(
    task: str, minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)  # heads are new; what counts is that the loaded model says what the one in memory says
    dense = getattr(transformers, CLASSES[task]).from_pretrained(minilm).eval()
    compressor = HeatCompressor(dense, transformers.AutoTokenizer.from_pretrained(minilm))
    report = compressor.compress(HeatConfig(target_params_ratio=0.5), save_directory=tmp_path / "minilm-heat")
    monkeypatch.chdir(tmp_path)
    evaluation = Evaluation(task, "Some data", "test", 1, "f1", 0.5, 0.5)
    card = model_card(report, origin_of(report, "minilm-heat"), [evaluation])
    (code,) = re.findall(r"```python\n(.*?)```", card.content, re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), found)
    if "pipe" not in found:
        inputs = compressor.tokenizer(EXAMPLE, return_tensors="pt")
        with torch.no_grad():
            assert torch.equal(found["model"](**inputs)[0], compressor.model(**inputs)[0])
    if task != "question-answering":  # Transformers 5 has taken that pipeline out
        loaded = transformers.pipeline(task, model="minilm-heat")(EXAMPLE)
        assert loaded == transformers.pipeline(task, model=compressor.model, tokenizer=compressor.tokenizer)(EXAMPLE)
        assert loaded
