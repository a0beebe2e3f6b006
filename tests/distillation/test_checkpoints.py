"""What a distillation goes on from: a whole checkpoint, of this very training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from heat_hf.distillation import DistillationTrainer
from heat_hf.encoders.resuming import missing_parts, newest_checkpoint, read_key
from tests.students import ROWS, arguments, collate, pair, same, train

OPTIONS: dict[str, Any] = {"save_steps": 2, "save_total_limit": 10, "train_sampling_strategy": "random"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Checkpoints after 2, 4 and 6 steps, and the student they lead to."""
    folder = tmp_path_factory.mktemp("trained")
    student, teacher = pair()
    train(folder, student, teacher, **OPTIONS)
    return folder, student


def changed(model: Any) -> Any:
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    return model


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("student", lambda student, teacher: (changed(student), teacher, ROWS, {})),
        ("teacher", lambda student, teacher: (student, changed(teacher), ROWS, {})),
        ("training rows", lambda student, teacher: (student, teacher, ROWS[1:], {})),
        *(
            (name, lambda student, teacher, option=(name, value): (student, teacher, ROWS, dict([option])))
            for name, value in {
                "learning_rate": 2e-2, "logit_learning_rate": 1e-3, "seed": 7, "data_seed": 3, "recipe": "one-stage",
                "max_steps": 8, "layer_share": 0.7,
                "temperature": 2.0, "weight_decay": 0.1, "lr_scheduler_type": "cosine", "train_embeddings": True,
                "hidden_weight": 0.5, "max_grad_norm": 0.1, "adam_beta2": 0.9,
            }.items()
        ),
        *(
            ("rows of a step", lambda student, teacher, name=name: (student, teacher, ROWS, {name: 2}))
            for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
        ),
    ],
)  # fmt: skip
def test_another_training_is_not_gone_on_with(trained: tuple[Path, Any], what: str, change: Any) -> None:
    student, teacher, rows, options = change(*pair())
    with pytest.raises(ValueError, match=f"checkpoint-4 holds another training: its {what} is .*, wanted is .*overwrite"):
        train(trained[0], student, teacher, rows, str(trained[0] / "checkpoint-4"), **{**OPTIONS, **options})


@pytest.mark.parametrize(
    "options", [{"logging_steps": 3}, {"save_steps": 3}, {"eval_strategy": "epoch", "eval_dataset": ROWS[:4]}]
)
def test_what_does_not_change_weights_may_change(trained: tuple[Path, Any], options: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    student, teacher = pair()
    train(tmp_path, student, teacher, resume=str(tmp_path / "checkpoint-4"), **{**OPTIONS, **options})
    assert same(student, trained[1])


def test_the_rows_of_a_step_decide_however_they_are_shared(trained: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    student, teacher = pair()
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    train(tmp_path, student, teacher, resume=str(tmp_path / "checkpoint-4"), **{**OPTIONS, **halves})
    for own, other in zip(student.parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("loader", "options", "matters"),
    [
        (transformers.AutoModelForSequenceClassification, {}, False),
        (transformers.AutoModelForSequenceClassification, {"student_dropout": True}, True),
        (transformers.AutoModel, {}, True),
        (transformers.AutoModel, {"similarity_weight": 0.0}, False),
    ],
)
def test_where_sharing_them_matters_it_is_of_the_training(
    loader: Any, options: dict[str, Any], matters: bool, tmp_path: Path
) -> None:
    """Similarities are those within a process's batch, and dropout is drawn by each process."""
    rows = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in ROWS]
    trainer = DistillationTrainer(*pair(loader=loader), arguments(tmp_path, **options), rows, collate)
    assert {"rows of a batch", "processes"} <= trainer.key.keys() if matters else "processes" not in trainer.key
    assert trainer.key["rows of a step"] == 4


@pytest.mark.parametrize(
    "options",
    [
        {"train_sampling_strategy": "group_by_length"},
        {"train_sampling_strategy": "group_by_length", "gradient_accumulation_steps": 2, "max_steps": 11, "data_seed": 5},
        {"train_sampling_strategy": "group_by_length", "student_dropout": True},
        {"train_sampling_strategy": "group_by_length", "teacher_cache_gib": 1.0},
        {"train_sampling_strategy": "random", "teacher_cache_gib": 3e-5, "student_dropout": True},
        {"train_sampling_strategy": "random", "teacher_cache_gib": 1.0, "recipe": "hidden-logits", "logging_steps": 5},
        {"train_sampling_strategy": "sequential", "teacher_cache_gib": 1.0, "gradient_accumulation_steps": 2, "max_steps": 11},
    ],
)
def test_a_resumed_training_ends_with_the_same_weights(options: dict[str, Any], tmp_path: Path) -> None:
    """From every epoch of 8 steps, its middle and its end, in either stage."""
    options = {"max_steps": 22, "save_steps": 1, "save_total_limit": 30, **options}
    whole, teacher = pair()
    trainer = train(tmp_path / "whole", whole, teacher, **options)
    kept = trainer.teacher.kept
    assert bool(kept) == ("teacher_cache_gib" in options) and (len(kept) < 32 or options["teacher_cache_gib"] == 1)
    for share in (0.05, 0.4, 0.75, 0.9):
        step = max(1, round(share * options["max_steps"]))
        folder = tmp_path / f"from-{step}" / f"checkpoint-{step}"
        shutil.copytree(tmp_path / "whole" / folder.name, folder)
        student, teacher = pair()
        train(folder.parent, student, teacher, resume=str(folder), **options)
        assert same(student, whole), f"from step {step}"


def test_the_newest_whole_checkpoint_is_taken(trained: tuple[Path, Any], tmp_path: Path) -> None:
    """Whatever a killed process left of the newest one, the run ends with the same weights."""
    source, wanted = trained
    assert newest_checkpoint(tmp_path) is None
    for damage in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "torn state", "empty"):
        folder = tmp_path / damage
        shutil.copytree(source, folder)
        newest = folder / "checkpoint-6"
        if damage == "torn state":
            (newest / "trainer_state.json").write_text((newest / "trainer_state.json").read_text()[:40])
        elif damage == "empty":
            shutil.rmtree(newest)
            newest.mkdir()
        else:
            (newest / damage).unlink()
        assert missing_parts(newest) and newest_checkpoint(folder) == folder / "checkpoint-4"
        with pytest.raises(ValueError, match="checkpoint-6 cannot be gone on from: it has no whole"):
            train(folder, *pair(), resume=str(newest), **OPTIONS)
        student, teacher = pair()
        train(folder, student, teacher, resume=True, **OPTIONS)  # type: ignore[arg-type]
        assert same(student, wanted), damage


def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="has no whole checkpoint to go on from"):
        train(tmp_path, *pair(), resume=True, **OPTIONS)  # type: ignore[arg-type]


def test_every_checkpoint_says_of_which_training_it_is(trained: tuple[Path, Any]) -> None:
    keys = [read_key(trained[0] / f"checkpoint-{step}" / "heat_training.json") for step in (2, 4, 6)]
    assert keys[0] == keys[1] == keys[2] and keys[0]["learning_rate"] == 1e-2
    assert not {"output_dir", "save_steps", "logging_steps"} & set(keys[0])


def test_a_disk_that_fills_at_a_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*/checkpoint-2"):
        train(tmp_path, *pair(), **OPTIONS)
