"""What cannot be distilled is refused before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers
from conftest import FAMILIES
from students import ROWS, arguments, collate, pair, train
from transformers import PreTrainedModel

from heat_hf.distillation import DistillationTrainer


def other(**changes: Any) -> PreTrainedModel:
    config = transformers.AutoConfig.for_model("bert", **{**FAMILIES["bert"][0], **changes})
    return transformers.AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda: other(num_hidden_layers=3), "so that every block learns from one: 2 and 3"),
        (lambda: other(vocab_size=61), "different vocabularies: vocab_size is 60 and 61"),
        (lambda: other(num_labels=3), "different numbers of labels: num_labels is 2 and 3"),
        (lambda: other(num_attention_heads=2), "num_attention_heads is 4 and 2"),
        (lambda: other(hidden_size=48), "hidden_size is 24 and 48"),
        (lambda: other(id2label={0: "no", 1: "yes"}), "name their labels differently"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(pair()[0], teacher(), arguments(tmp_path), ROWS, collate)


def test_layers_may_differ_where_only_outputs_are_matched(tmp_path: Path) -> None:
    train(tmp_path, pair()[0], other(num_hidden_layers=3, hidden_size=48), recipe="logits", max_steps=1)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "train_dataset has no rows"),
        ([{"sentence": "a"}], {}, "no column 'input_ids': tokenize it first; it has sentence"),
        ([{"input_ids": [1]}], {"recipe": "labels"}, "recipe='labels' reads labels"),
        ([{"input_ids": [1]}], {"targets": "labels"}, "targets='labels' reads labels"),
        (
            [{"input_ids": [1], "labels": 0}, {"input_ids": [1], "labels": 2}],
            {},
            "labels=2 in row 1; the model has labels 0 to 1",
        ),
        ([{"input_ids": [1], "labels": -1}], {}, "labels=-1 in row 0"),
        ([{"input_ids": [1], "labels": 0.5}], {}, "labels=0.5 in row 0"),
    ],
)
def test_data_that_cannot_work_are_refused(rows: list[Any], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    for data in (rows, datasets.Dataset.from_list(rows)) if rows else (rows,):
        with pytest.raises(ValueError, match=message):
            DistillationTrainer(*pair(), arguments(tmp_path, **options), data, collate)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "three-stage"}, "recipe must be one of two-stage"),
        ({"targets": "both"}, "targets must be one of teacher, labels"),
        ({"layer_share": 1.0}, "layer_share must be between 0 and 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"logit_learning_rate": 0.0}, "logit_learning_rate must be positive"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, got -1.0"),
        ({"max_steps": 1}, "1 steps are too few for 2 stages with layer_share=0.5"),
        ({"hidden_weight": -1.0}, "hidden_weight must not be negative"),
        ({"hidden_weight": 0.0, "attention_weight": 0.0}, "the first stage would have nothing to do"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def test_too_few_steps_and_odd_schedules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 steps are too few for 2 stages"):
        train(tmp_path, *pair(), max_steps=-1, num_train_epochs=0.1)
    with pytest.raises(ValueError, match="no function of the step"):
        train(tmp_path, *pair(), lr_scheduler_type="greedy", eval_strategy="epoch", eval_dataset=ROWS[:4])
