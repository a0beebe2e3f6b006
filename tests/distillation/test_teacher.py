"""The teacher's memory: what is kept is what it would answer again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from students import HEADS, LENGTHS, ROWS, batch, collate, pair, same, train

from heat_hf.distillation import Teacher
from heat_hf.encoders.signals import attention_distance, divergence, hidden_distance, output_signals


@pytest.mark.parametrize("loader", [transformers.AutoModelForSequenceClassification, *HEADS])
def test_kept_answers_are_those_the_teacher_would_give(loader: Any) -> None:
    _, teacher = pair(loader=loader)
    teacher.set_attn_implementation("eager")
    kept, inputs = Teacher(teacher, cache_gib=1), batch()
    first = kept(inputs, hidden=True, attention=True)
    kept.fill([(range(8), inputs)], hidden=True, attention=True, rows="these")
    again = kept(inputs, list(range(8)), hidden=True, attention=True)
    assert kept.hits == 8
    mask = inputs["attention_mask"]
    assert float(hidden_distance(again.hidden_states, first.hidden_states, mask)) == pytest.approx(0, abs=1e-6)
    assert float(attention_distance(again.attentions, first.attentions, mask)) == pytest.approx(0, abs=1e-6)
    said = (output_signals(outputs, inputs, teacher) for outputs in (first, again))
    assert float(divergence(*said)) == pytest.approx(0, abs=1e-6)
    short = kept({key: value[3:5, : max(LENGTHS[3:5])] for key, value in inputs.items()}, [3, 4], hidden=True)
    assert kept.hits == 10 and short.hidden_states[0].shape[1] == max(LENGTHS[3:5])


def test_training_with_kept_answers_is_the_same(tmp_path: Path) -> None:
    (plain, teacher), (cached, _) = pair(), pair()
    options: dict[str, Any] = {"max_steps": 20, "optim": "sgd", "learning_rate": 0.05}
    train(tmp_path / "1", plain, teacher, **options)
    kept = Teacher(teacher, cache_gib=1)
    train(tmp_path / "2", cached, kept, **options)
    assert kept.hits > 0
    for a, b in zip(plain.state_dict().values(), cached.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_no_more_is_kept_than_there_is_memory_for() -> None:
    _, teacher = pair()
    kept = Teacher(teacher, cache_gib=1e-9)
    batches = ((range(start, start + 4), collate(ROWS[start : start + 4])) for start in range(0, 32, 4))
    kept.fill(
        ((numbers, {key: value for key, value in inputs.items() if key != "labels"}) for numbers, inputs in batches),
        hidden=False, attention=False, rows="these",
    )  # fmt: skip
    assert len(kept.kept) == 4


def test_answers_on_other_rows_are_not_given(tmp_path: Path) -> None:
    """A teacher shared by trainings on different data: its numbers would name other rows."""
    options: dict[str, Any] = {"max_steps": 20}
    (alone, teacher), (shared, _), (first, _) = pair(), pair(), pair()
    train(tmp_path / "1", alone, Teacher(teacher, cache_gib=1), ROWS[8:], **options)
    kept = Teacher(teacher, cache_gib=1)
    train(tmp_path / "2", first, kept, ROWS, **options)
    train(tmp_path / "3", shared, kept, ROWS[8:], **options)
    assert same(alone, shared)


def test_nothing_is_kept_that_is_asked_once(tmp_path: Path) -> None:
    student, teacher = pair()
    assert not train(tmp_path, student, teacher, max_steps=8, teacher_cache_gib=1).teacher.kept
