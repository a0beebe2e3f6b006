"""SetFit trains, saves and loads a factorized sentence encoder as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.encoders.linears import factorized_layers

setfit = pytest.importorskip("setfit", reason="SetFit is not installed")
TEXTS = ["great film", "awful film", "I loved it", "I hated it"]


@pytest.mark.parametrize("decomposition", ["low_rank", "tucker"])
def test_setfit_trains_saves_and_loads(decomposition: str, minilm: str, tmp_path: Path) -> None:
    from datasets import Dataset

    compressor = HeatCompressor.from_pretrained(minilm)
    config = HeatConfig(decomposition=decomposition, target_params_ratio=0.4)
    compressor.compress(config, save_directory=tmp_path / "model")
    model = setfit.SetFitModel.from_pretrained(str(tmp_path / "model"))
    before = model.model_body.encode(TEXTS)
    arguments = setfit.TrainingArguments(
        batch_size=4, max_steps=4, output_dir=str(tmp_path / "run"), report_to=[], show_progress_bar=False
    )
    rows = Dataset.from_dict({"text": TEXTS * 2, "label": [1, 0] * 4})
    setfit.Trainer(model=model, args=arguments, train_dataset=rows).train()
    after = model.model_body.encode(TEXTS)
    assert abs(after - before).max() > 1e-4, "it trains"
    assert model.predict(TEXTS).tolist() == [1, 0, 1, 0]
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = setfit.SetFitModel.from_pretrained(str(tmp_path / "saved"))
    assert factorized_layers(loaded.model_body[0].auto_model)
    np.testing.assert_allclose(loaded.model_body.encode(TEXTS), after, atol=1e-6)
