"""The demo, end to end, without the Hub and (its data calls answered here) with it."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import pytest
import torch

from recipes.demo import hub_reachable, run

pytestmark = pytest.mark.slow


def demo(monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    torch.set_num_threads(2)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["demo", "--calibration-rows", "64"])
    run.main()
    text = capsys.readouterr().out
    assert "encoder-linear MACs a token" in text
    assert "latency of 8 × 128 tokens" in text
    assert (folder / "demo-output" / "heat_model.safetensors").exists()
    return text


def test_without_the_hub(
    minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HEAT_HF_DATA", raising=False)
    text = demo(monkeypatch, tmp_path, capsys)
    assert "The Hub cannot be reached: taking all-MiniLM-L6-v2 from the installed package" in text
    assert "HEAT_HF_DATA is not set" in text
    assert "paragraph retrieval, MRR of" in text


def test_with_the_hub(minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stsb(name: str, split: str) -> datasets.Dataset:
        assert name == "sentence-transformers/stsb"
        openings, rests = zip(*((p[0], p[-1]) for p in run.python_reference_paragraphs()[:50]), strict=True)
        return datasets.Dataset.from_dict({"sentence1": openings, "sentence2": rests, "score": list(range(50))})

    monkeypatch.delenv("HEAT_HF_DATA", raising=False)
    monkeypatch.setattr(run, "hub_reachable", lambda: True)
    monkeypatch.setattr(run, "MODEL", minilm)
    monkeypatch.setattr(datasets, "load_dataset", stsb)
    text = demo(monkeypatch, tmp_path, capsys)
    assert "STS-B test Spearman" in text
    assert "64 sentences from sentence-transformers/stsb" in text
    assert "cannot be reached" not in text


def test_reachability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub_reachable.hub_reachable()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not hub_reachable.hub_reachable()
