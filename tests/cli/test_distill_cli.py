"""`heat-hf distill`: training, going on, scores, early stopping, loading, and what is refused before any work."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import SENTENCES

from heat_hf.cli import main

POOLING = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}


FEW_STEPS = ("--max-steps", "4", "--save-steps", "3")


def distill(checkpoint: Path, steps: tuple[str, ...] = FEW_STEPS) -> list[str]:
    """Compress, and return the command that distils the result, less its output."""
    student = checkpoint.parent / "student"
    assert main(["compress", str(checkpoint), "--target-params-ratio", "0.6", "--output", str(student)]) == 0
    rows = ["--train-file", str(checkpoint.parent / "labels.csv"), "--batch-size", "2"]
    return ["distill", str(student), "--teacher", str(checkpoint), *rows, *steps]


def test_distill_trains_and_saves(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = distill(checkpoint)
    student, out = Path(command[1]), checkpoint.parent / "distilled"
    assert main([*command, "--output", str(out)]) == 0
    after, before = map(transformers.AutoModelForSequenceClassification.from_pretrained, (out, student))
    assert any(not a.equal(b) for a, b in zip(after.parameters(), before.parameters(), strict=True))
    assert (out / "heat_report.json").read_text() == (student / "heat_report.json").read_text()
    assert not out.with_name("distilled.checkpoints").exists()
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4] and (out / "training.png").is_file()
    assert main([*command, "--output", str(out)]) == 2
    assert "distilled" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [("--learning-rate", "1e-3"), ("--seed", "5"), ("--batch-size", "3"), ("--train-rows", "3"), ("--max-length", "4")],
)
def test_an_interrupted_distillation_is_not_gone_on_with_as_another(
    checkpoint: Path, change: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*distill(checkpoint), "--output", str(checkpoint.parent / f"cut{change[0]}")]
    left = checkpoint.parent / f"cut{change[0]}.checkpoints"
    with monkeypatch.context() as patched:
        patched.setattr("heat_hf.distillation.DistillationTrainer.save", interrupted)
        assert main(command) == 130
    assert list(left.glob("checkpoint-*"))
    assert main([*command, *change]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds another training" in error and "--overwrite" in error
    assert list(left.glob("checkpoint-*")) and not left.with_suffix("").exists()
    assert main([*command, *change, "--overwrite"]) == 0
    assert not left.exists()


def test_what_decides_when_it_stops_is_the_trainings_own(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are scored and patience say which weights are kept, and the card lists all scores as those of these rows."""
    labels, out = checkpoint.parent / "labels.csv", checkpoint.parent / "cut"
    scored = ["--eval-file", str(labels), "--early-stopping-patience", "2", "--epochs", "2", "--output", str(out)]
    command = [*distill(checkpoint, ()), *scored]
    with monkeypatch.context() as patched:
        patched.setattr("heat_hf.distillation.DistillationTrainer.save", interrupted)
        assert main(command) == 130
    others = {"evaluation rows": ["--eval-rows", "2"], "early stopping": ["--early-stopping-patience", "1"]}
    for name, change in others.items():
        assert main([*command, *change]) == 2
        assert f"holds another training: its {name} is" in capsys.readouterr().err.strip().splitlines()[-1]
    assert main(command) == 0


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_scores_of_every_epoch_are_logged_and_on_the_card(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = checkpoint.parent / "a 'name'", checkpoint.parent / "labels.csv"
    options = ["--eval-file", str(data), "--bf16", "--gradient-accumulation-steps", "2", "--epochs", "4", "--output", str(out)]
    assert main([*distill(checkpoint, ()), *options, "--arguments", "logging-steps=1"]) == 0
    state = json.loads((out / "trainer_state.json").read_text())
    scores = [entry["eval_score"] for entry in state["log_history"] if "eval_score" in entry]
    assert state["max_steps"] == len(scores) == 4
    card = (out / "README.md").read_text()
    listed = ", ".join(f"{score:.4f} at step {step}" for step, score in enumerate(scores, 1))
    assert f"Accuracy on 4 rows of labels: {listed}." in card
    (score,) = [result for result in card_scores(out) if result.metric_name == "accuracy"]
    assert score.metric_value == scores[-1] and score.dataset_name == "labels"
    line = shlex.split(capsys.readouterr().err.splitlines()[-1].partition("score it with: heat-hf ")[2])
    assert main([*line, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == [str(out), str(checkpoint)]
    assert shown[str(out)]["accuracy"] == scores[-1]


def card_scores(folder: Path) -> list[Any]:
    from huggingface_hub import ModelCard

    return ModelCard.load(folder / "README.md").data.eval_results or []


def test_rows_without_labels_are_scored_by_agreement(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = checkpoint.parent / "distilled", checkpoint.parent / "sentences.txt"
    assert main([*distill(checkpoint), "--eval-file", str(data), "--eval-rows", "3", "--output", str(out)]) == 0
    assert "Agreement with the dense model on 3 rows of sentences: " in (out / "README.md").read_text()
    line = shlex.split(capsys.readouterr().err.splitlines()[-1].partition("look at it with: heat-hf ")[2])
    assert main(line) == 0


@pytest.mark.parametrize(("recipe", "epochs"), [("logits", 2), ("two-stage", 5)])
def test_training_stops_when_scores_get_no_better(checkpoint: Path, recipe: str, epochs: int) -> None:
    out, data = checkpoint.parent / "distilled", checkpoint.parent / "labels.csv"
    options = ["--recipe", recipe, "--epochs", "8", "--learning-rate", "1e-12", "--logit-learning-rate", "1e-12"]
    options += ["--eval-file", str(data), "--early-stopping-patience", "1", "--output", str(out)]
    assert main([*distill(checkpoint, ()), *options]) == 0
    state = json.loads((out / "trainer_state.json").read_text())
    assert sum("eval_score" in entry for entry in state["log_history"]) == epochs
    assert "; kept: step 2." in (out / "README.md").read_text()
    texts = [file.read_text() for file in out.iterdir() if file.suffix in (".json", ".md")]
    assert not any(str(checkpoint.parent) in text for text in texts), "a path on this machine is published"


def test_student_and_teacher_are_loaded_from_where_options_say(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, out = distill(checkpoint), checkpoint.parent / "distilled"
    places = checkpoint.parent / "all"
    shutil.copytree(checkpoint, places / "teacher")
    shutil.copytree(command[1], places / "student")
    shutil.copy(places / "student/heat_report.json", places)
    command = ["distill", str(places), "--teacher", str(places), *command[4:], "--output", str(out)]
    assert main(command) == 2
    both = ["--subfolder", "student", "--teacher-subfolder", "teacher", "--trust-remote-code", "--revision", "main"]
    capsys.readouterr()
    assert main([*command, *both, "--eval-file", str(checkpoint.parent / "labels.csv")]) == 0
    printed = capsys.readouterr().err
    assert "--trust-remote-code" in printed and "--baseline" not in printed


def test_texts_get_the_checkpoints_prompt(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.AutoModel.from_pretrained(checkpoint).save_pretrained(checkpoint)
    (checkpoint / "1_Pooling").mkdir()
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds)
    ]
    named = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    for name, content in (("modules", modules), ("1_Pooling/config", POOLING), ("config_sentence_transformers", named)):
        (checkpoint / f"{name}.json").write_text(json.dumps(content))
    taken: list[list[int]] = []

    def kept(trainer: Any, *_: object) -> None:
        taken.extend(row["input_ids"] for row in trainer.train_dataset)
        raise KeyboardInterrupt

    monkeypatch.setattr("heat_hf.distillation.DistillationTrainer.train", kept)
    assert main([*distill(checkpoint), "--output", str(checkpoint.parent / "distilled")]) == 130
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    assert taken == [tokenizer(f"query: {text.rstrip('.')}")["input_ids"] for text in SENTENCES]


def test_bad_input_to_distill(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, out = distill(checkpoint), checkpoint.parent / "other"
    headless = checkpoint.parent / "headless"
    transformers.AutoModel.from_pretrained(checkpoint).save_pretrained(headless)
    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(headless)
    for options, message in (
        (["--recipe", "none"], "argument --recipe: invalid choice: 'none' (choose from 'two-stage'"),
        (["--learning-rate", "-1"], "argument --learning-rate: must be between 0 and 1, got '-1'"),
        (["--epochs", "0"], "argument --epochs: must be between 0 and inf, got '0'"),
        (["--gradient-accumulation-steps", "0"], "argument --gradient-accumulation-steps: must be a whole number from 1"),
        (["--early-stopping-patience", "2"], "--early-stopping-patience needs rows to score: give --eval-file"),
        (
            ["--early-stopping-patience", "2", "--eval-file", str(checkpoint.parent / "labels.csv")],
            "--early-stopping-patience keeps a checkpoint of every epoch: leave out --save-steps",
        ),
        (["--eval-file", "none.csv"], "no data file none.csv"),
        (["--arguments", "weight_decay"], "--arguments must be NAME=VALUE of DistillationArguments"),
        (["--arguments", "weight_dekay=1"], "as weight_decay=0.01, got 'weight_dekay=1'"),
        (["--arguments", "weight_decay=nan"], "weight_decay must be finite, got nan"),
        (["--arguments", "weight_decay=much"], "invalid float value: 'much'"),
        (["--arguments", "learning_rate=1"], "it has an option of its own"),
        (["--arguments", "output_dir=elsewhere"], "--arguments output_dir=elsewhere: give --output"),
        (["--arguments", "temperature=-1"], "temperature must be positive, got -1.0"),
        (["--arguments", "lr_scheduler_type=zigzag"], "zigzag"),
        (["--arguments", "eval_strategy=epoch"], "--arguments eval_strategy=epoch needs rows to score: give --eval-file"),
        (["--teacher", command[1]], "the model is compressed by heat_hf already"),
        (
            ["--teacher", str(headless)],
            "is no BertForSequenceClassification as the student is: it has no weights for classifier",
        ),
        (["--max-steps", "1"], "1 steps are too few for 2 stages"),
        (["--targets", "labels", "--train-file", str(checkpoint.parent / "sentences.txt")], "targets='labels' reads labels"),
    ):
        assert main([*command, *options, "--output", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert message in line
    epoch = [*command[:-4], "--epochs", "0.1", "--output", str(out)]
    assert main(epoch) == 2
    assert "1 steps are too few for 2 stages" in capsys.readouterr().err
    assert main(["distill", str(checkpoint), *command[2:], "--output", str(out)]) == 2
    assert "has no heat_report.json" in capsys.readouterr().err
    assert not list(out.parent.glob("other*"))
