"""Scores during a training: the best weights are kept, agreement stands in for labels, patience waits for the last stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from students import ROWS, arguments, collate, pair

from heat_hf.distillation.scored import SCORE, Patience, ScoredTrainer, scores_text
from heat_hf.evaluation.quality import Quality

SCORES = [0.5, 0.9, 0.2, 0.1, 0.3]
BEST = {"load_best_model_at_end": True, "metric_for_best_model": SCORE, "save_strategy": "epoch", "eval_strategy": "epoch"}


def scored_trainer(folder: Path, rows: list[dict[str, Any]], **options: Any) -> ScoredTrainer:
    student, teacher = pair()
    args = arguments(folder, max_steps=-1, **{"num_train_epochs": 5, "recipe": "logits", **BEST, **options})
    batches = [collate(rows)]
    return ScoredTrainer(student, teacher, args, ROWS[:8], collate, scored_rows=batches, data="dev", callbacks=[Patience(2)])


def test_the_best_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, weights = scored_trainer(tmp_path, ROWS[:6]), []

    def both(quality: Quality, model: Any) -> tuple[float, float]:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return SCORES[len(weights) - 1], 0.0

    monkeypatch.setattr(Quality, "both", both)
    trainer.train()
    assert len(weights) == 4  # two without a better score
    kept = trainer.model.state_dict()
    assert all(torch.equal(value, weights[1][name]) for name, value in kept.items())
    assert not all(torch.equal(value, weights[3][name]) for name, value in kept.items())
    text = trainer._trained().training
    assert text.endswith(
        "Accuracy on 6 rows of dev: 0.5000 at step 2, 0.9000 at step 4, 0.2000 at step 6, 0.1000 at step 8; kept: step 4."
    )


def test_patience_counts_in_the_last_stage_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Quality, "both", lambda quality, model: (seen.append(1) or 0.5, 0.0))
    scored_trainer(tmp_path, ROWS[:6], recipe="two-stage", num_train_epochs=8, layer_share=0.5).train()
    assert len(seen) == 4 + 2


def test_patience_is_not_lost_with_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.2, KeyboardInterrupt, 0.1, 0.1])

    def both(quality: Quality, model: Any) -> tuple[float, float]:
        score = next(scores)
        if score is KeyboardInterrupt:
            raise KeyboardInterrupt
        return score, 0.0

    monkeypatch.setattr(Quality, "both", both)
    kept = {"restore_callback_states_from_checkpoint": True, "save_total_limit": None}
    with pytest.raises(KeyboardInterrupt):
        scored_trainer(tmp_path, ROWS[:6], **kept).train()
    trainer = scored_trainer(tmp_path, ROWS[:6], **kept)
    trainer.train(resume_from_checkpoint=True)
    assert list(scores) == [0.1], "one more epoch without a better score is the second"
    assert trainer.state.best_global_step == 2


def test_without_labels_the_score_is_agreement(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "labels"} for row in ROWS[:6]]
    trainer = scored_trainer(tmp_path, rows)
    found, scored = trainer.evaluate(), trainer.evaluation()
    assert found[f"eval_{SCORE}"] == scored.score and found["eval_divergence"] > 0
    assert (scored.metric, scored.dense_score, scored.rows) == ("agreement with the dense model", 1.0, 6)


def test_no_scores_no_sentence() -> None:
    assert scores_text([{"loss": 1.0, "step": 1}], "accuracy") == ""
