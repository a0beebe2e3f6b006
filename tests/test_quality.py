"""Quality on the real checkpoint and real data, without training. Slow; needs HEAT_HF_DATA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.data import load_rows
from heat_hf.evaluation import evaluate_task

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("ratio", "aware", "least", "most"), [(0.42, True, 0.765, 1), (0.6, True, 0.796, 1), (0.42, False, 0.70, 0.71)]
)
def test_low_rank_minilm_on_stsb(minilm: str, data_folder: Path, ratio: float, aware: bool, least: float, most: float) -> None:
    torch.set_num_threads(2)
    compressor = HeatCompressor.from_pretrained(minilm)
    text = load_rows(data_folder / "text" / "train.parquet", 4096) if aware else None
    report = compressor.compress(HeatConfig(target_params_ratio=ratio), text)
    assert report.params_ratio <= ratio
    rows = load_rows(data_folder / "stsb" / "test.parquet")
    score = evaluate_task(compressor.model, compressor.tokenizer, "sentence-similarity", rows)
    assert score["rows"] == 1379
    assert least <= score["spearman"] <= most
