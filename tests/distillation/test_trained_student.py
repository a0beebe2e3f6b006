"""What a training leaves: a factorized model with report, card and curves."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from students import arguments, batch, pair, train

from heat_hf import CompressionReport, HeatCompressor, HeatConfig
from heat_hf.encoders.linears import factorized_layers


def test_the_student_is_saved_as_a_factorized_model(tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = train(tmp_path / "run", student, teacher, max_steps=2)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert factorized_layers(loaded)
    torch.testing.assert_close(loaded.eval()(**batch()).logits, student.eval()(**batch()).logits)


def compressed(folder: Path) -> tuple[Any, Any]:
    """A student in a folder saved by heat_hf, and its teacher."""
    _, teacher = pair()
    compressor = HeatCompressor(copy.deepcopy(teacher))
    compressor.compress(HeatConfig(target_params_ratio=0.5, accelerator=None), save_directory=folder)
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder), teacher


def test_a_trained_student_is_saved_with_report_card_and_curves(tmp_path: Path) -> None:
    student, teacher = compressed(tmp_path / "student")
    trainer = train(tmp_path / "run", student, teacher, max_steps=4)
    trainer.save(tmp_path / "saved")
    assert CompressionReport.from_pretrained(tmp_path / "saved") == CompressionReport.from_pretrained(tmp_path / "student")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "on 32 rows: 4 steps of 4 rows, learning rates 0.01 and 0.01, seed 42" in card and "(training.png)" in card
    state = json.loads((tmp_path / "saved" / "trainer_state.json").read_text())
    assert [entry["stage"] for entry in state["log_history"] if "stage" in entry] == [1, 1, 2, 2]
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded.eval()(**batch()).logits, student.eval()(**batch()).logits)
    with pytest.raises(FileExistsError, match="pass overwrite"):
        trainer.save(tmp_path / "saved")


def test_a_resumed_training_saves_the_same_files(tmp_path: Path) -> None:
    _, teacher = compressed(tmp_path / "student")
    saved = []
    for name, resume in (("whole", None), ("resumed", str(tmp_path / "whole" / "checkpoint-2"))):
        student = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
        trainer = train(
            tmp_path / name, student, teacher, resume=resume, max_steps=4, save_steps=2, save_total_limit=2, logging_steps=3
        )
        trainer.save(tmp_path / f"{name}-saved" / "model")
        saved.append({file.name: file.read_bytes() for file in (tmp_path / f"{name}-saved" / "model").iterdir()})
    assert saved[0] == saved[1]


def test_a_student_without_a_known_report(tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = train(tmp_path / "run", student, teacher, max_steps=2)
    with pytest.raises(ValueError, match=r"pass report=compressor\.report to the trainer"):
        trainer.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    compressed(tmp_path / "compressed")
    trainer.report = CompressionReport.load(tmp_path / "compressed")
    trainer.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "README.md").is_file()


def test_checkpoints_are_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hub_strategy must be end: checkpoints are not pushed, got every_save"):
        arguments(tmp_path, push_to_hub=True, hub_strategy="every_save")
    assert arguments(tmp_path, push_to_hub=True).hub_strategy == "end"
