"""Every recipe from end to end on a few rows and the real checkpoint, resumed, and fed with what cannot work."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoTokenizer

from heat_hf.distillation import DistillationArguments
from heat_hf.distillation.stages import LEARNING_RATE, LOGIT_LEARNING_RATE
from heat_hf.encoders.linears import factorized_layers
from heat_hf.encoders.rows import JOINTS, joined_texts
from heat_hf.evaluation.tasks import TASKS
from recipes import options
from recipes.pipeline import run

WORDS = ["good", "bad", "fine", "awful", "great", "poor", "superb", "dull"]
SENTENCES = [f"the {noun} of this film was {word}" for noun in ("plot", "cast", "end") for word in WORDS]
QUICK = [
    "--max_steps", "4", "--per_device_train_batch_size", "4", "--logging_steps", "1", "--use_cpu", "True",
    "--rank_search", "uniform", "--target_edp_ratio", "0.4", "--calibration_rows", "4", "--disable_tqdm", "True",
    "--teacher_epochs", "1", "--save_steps", "3",
]  # fmt: skip


def write(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Options that name files with the rows."""
    for name in ("train", "validation"):
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    return ["--train_files", str(folder / "train.parquet"), "--validation_file", str(folder / "validation.parquet")]


def rows_of(task: str) -> list[dict[str, Any]]:
    if task == "sentence-similarity":
        pairs = enumerate(pairwise(SENTENCES))
        return [{"sentence1": text, "sentence2": other, "score": float(row % 5)} for row, (text, other) in pairs]
    if task == "question-answering":
        starts = [text.rindex(" ") + 1 for text in SENTENCES]
        answers = [{"text": [text[at:]], "answer_start": [at]} for text, at in zip(SENTENCES, starts, strict=True)]
        return [{"question": "how?", "context": text, "answers": a} for text, a in zip(SENTENCES, answers, strict=True)]
    if task == "token-classification":
        return [{"tokens": text.split(), "ner_tags": ["O"] * 6 + ["B-MOOD"]} for text in SENTENCES]
    return [{"sentence": text, "label": row % 2} for row, text in enumerate(SENTENCES)]


def arguments(task: str, folder: Path, *more: str) -> list[str]:
    """The command line of a short run on a few rows."""
    return [*write(folder, rows_of(task)), "--task", task, "--output_dir", str(folder / "out"), *QUICK, *more]


def check_evidence(task: str, output: Path, row: dict[str, Any]) -> None:
    """The figures that a run kept, and the card and the model beside them."""
    metric = TASKS[task].main
    assert row == json.loads((output / "metrics.json").read_text())
    named = {"task", "decomposition", "variant", "rank_search", "seed", "train_rows", "metric", "score", "teacher_score"}
    named |= {"accuracy_drop", "edp_uJs", "edp_gain", "params_M", "command", "versions"}
    assert named <= set(row)
    assert (row["task"], row["metric"], row["steps"]) == (task, metric, 4)
    assert row["edp_gain"] >= 2.5
    assert row["accuracy_drop"] == pytest.approx(TASKS[task].points(row["teacher_score"] - row["score"]))
    card = ModelCard.load(output / "model" / "README.md")
    assert card.data.library_name == "heat_hf" and card.data.license == "apache-2.0"
    assert {result.metric_type for result in card.data.eval_results} == {metric, "edp"}
    assert (output / "model" / "training.png").stat().st_size > 10_000
    assert factorized_layers(TASKS[task].model_class.from_pretrained(output / "model"))


FINE_TUNED = [name for name, task in TASKS.items() if task.fine_tunes]


@pytest.mark.parametrize("task", FINE_TUNED)
def test_a_recipe_from_an_encoder_to_a_card(task: str, minilm: str, tmp_path: Path) -> None:
    joined = 4 if task == "text-classification" else 0
    more = ["--joined_rows", "4", "--least_words", "7"] if joined else []
    overrides = ["--teacher_config_overrides", "attention_probs_dropout_prob=0.05"]
    row = run(options.parse(arguments(task, tmp_path, "--model", minilm, *more, *overrides)))
    check_evidence(task, tmp_path / "out", row)
    assert row["train_rows"] == len(SENTENCES) + joined
    teacher = AutoConfig.from_pretrained(tmp_path / "out" / "teacher")
    assert (tmp_path / "out" / "teacher" / "model.safetensors").is_file() and teacher.attention_probs_dropout_prob == 0.05


def test_a_recipe_without_labels_and_again(minilm: str, tmp_path: Path) -> None:
    argv, output = arguments("sentence-similarity", tmp_path, "--teacher", minilm), tmp_path / "out"
    row = run(options.parse(argv))
    check_evidence("sentence-similarity", output, row)
    assert row["train_rows"] == len(SENTENCES) - 1
    again = run(options.parse(argv))  # all parts are there, nothing is trained again
    assert again["score"] == row["score"]
    for option, value in (
        ("--learning_rate", "1e-5"),
        ("--target_params_ratio", "0.3"),
        ("--max_length", "16"),
        ("--seed", "8"),
    ):
        with pytest.raises(ValueError, match=f"out holds another run: its {option[2:]} is .*, wanted is .*or remove it"):
            run(options.parse([*argv, option, value]))
    assert 'SentenceTransformer("out")' in (output / "model" / "README.md").read_text()
    assert (output / "model" / "1_Pooling" / "config.json").is_file(), "it stays a sentence encoder"


def test_a_sentence_encoder_is_trained_on_what_it_is_served(
    minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prompt in front of every text, also of joined ones, once."""
    checkpoint, seen = tmp_path / "prompted", list[list[int]]()
    shutil.copytree(minilm, checkpoint)
    about = json.loads((checkpoint / "config_sentence_transformers.json").read_text())
    about |= {"prompts": {"query": "find this: "}, "default_prompt_name": "query"}
    (checkpoint / "config_sentence_transformers.json").write_text(json.dumps(about))

    def kept(trainer: Any, *_: object, **__: object) -> None:
        seen.extend(row["input_ids"] for row in trainer.train_dataset)
        raise KeyboardInterrupt

    monkeypatch.setattr("heat_hf.distillation.DistillationTrainer.train", kept)
    columns, joined = ["--train_columns", "sentence1", "", ""], ["--joined_rows", "3"]
    with pytest.raises(KeyboardInterrupt):
        run(options.parse(arguments("sentence-similarity", tmp_path, "--teacher", str(checkpoint), *columns, *joined)))
    texts = AutoTokenizer.from_pretrained(minilm).batch_decode(seen, skip_special_tokens=True)
    assert len(texts) == len(SENTENCES) + 2
    assert all(text.startswith("find this : the ") and text.count("find") == 1 for text in texts)


def test_questions_are_scored_in_percent() -> None:
    assert TASKS["question-answering"].points(2.5) == 2.5
    assert TASKS["text-classification"].points(0.025) == 2.5


def test_a_yaml_file_and_options_that_override_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "task: text-classification\nteacher: x\ntrain_files: ['$FOLDER/a.csv']\nvalidation_file: b.csv\n"
        "learning_rate: 1e-3\ntarget_edp_ratio: 0.2\n"
    )
    with pytest.raises(ValueError, match="needs the environment variable FOLDER, which is not set"):
        options.parse([str(file)])
    monkeypatch.setenv("FOLDER", "here")
    parsed = options.parse([str(file), "--target_edp_ratio", "0.1"])
    assert parsed.data.train_files == ["here/a.csv"] and parsed.training.learning_rate == 1e-3
    assert parsed.compression.target_edp_ratio == 0.1
    assert parsed.command == "python -m recipes.run run.yaml --target_edp_ratio 0.1"


@pytest.mark.parametrize("path", sorted(Path(options.__file__).parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_file_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAT_HF_DATA", "HEAT_HF_CLASSIFIER"):
        monkeypatch.setenv(name, "x")
    assert options.parse([str(path)]).compression.config(0).target_edp_ratio


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacher: x\nteacher_color: red", "unknown option 'teacher_color'"),
        ("dataset: glue", "give either teacher, a fine-tuned dense model, or model"),
        ("teacher: x\nmodel: y\ndataset: glue", "give either teacher"),
        ("teacher: x", "give either dataset, or train_files and validation_file"),
        ("teacher: x\ndataset: d\ntrain_files: [a.csv]", "give either dataset, or train_files"),
        ("teacher: x\ntrain_files: [a.csv]", "give either dataset, or train_files"),
        ("teacher: x\ndataset: d\nranks: r.json", "variant is missing"),
        ("teacher: x\ndataset: d\ntrain_rows: 0", "train_rows must be positive, got 0"),
        ("teacher: x\ndataset: d\njoined_rows: -1", "joined_rows must not be negative, got -1"),
        ("teacher: x\ndataset: d\njoined_rows: 9\ntargets: labels", "joined_rows have no labels"),
    ],
)
def test_options_that_cannot_work_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"task: text-classification\n{text}")
    with pytest.raises(ValueError, match=message):
        options.parse([str(file)])


def test_a_task_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task is missing: one of sentence-similarity, text-classification"):
        options.parse(["--teacher", "x", "--dataset", "d"])
    with pytest.raises(ValueError, match="unknown task 'chess'; known are"):
        options.parse(["--task", "chess", "--teacher", "x", "--dataset", "d"])


def test_data_without_the_columns_are_refused_before_any_work(minilm: str, tmp_path: Path) -> None:
    argv = arguments("sentence-similarity", tmp_path, "--model", minilm)
    with pytest.raises(ValueError, match="the train data has no column 'sentence'; it has sentence1, sentence2, score"):
        run(options.parse([*argv, "--task", "text-classification"]))
    with pytest.raises(ValueError, match="has no labels to fine-tune on: name a teacher"):
        options.parse(argv)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="no recipe file"):
        options.parse([str(tmp_path / "none.yaml")])


def test_labels_have_names() -> None:
    rows = datasets.Dataset.from_list(rows_of("token-classification"))
    assert TASKS["token-classification"].labels(rows, ("tokens", "", "ner_tags")) == ["O", "B-MOOD"]
    plain, columns = rows_of("text-classification"), ("sentence", "", "label")
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    classification = TASKS["text-classification"]
    assert classification.labels(datasets.Dataset.from_list(plain, features), columns) == ["no", "yes"]
    assert classification.labels(datasets.Dataset.from_list(plain), columns) == ["0", "1"]


def test_joined_texts_are_two_of_the_texts_each() -> None:
    texts = joined_texts([*SENTENCES, "too short"], 50, seed=3)
    assert texts == joined_texts([*SENTENCES, "too short"], 50, seed=3) != joined_texts(SENTENCES, 50, seed=4)
    for text in texts:
        assert any(text == f"{a} {joint} {b}" for a in SENTENCES for joint in JOINTS for b in SENTENCES)
    with pytest.raises(ValueError, match="there are 1 texts of at least 3 words; joining needs two"):
        joined_texts(["a long enough one", "short"], 1)


def test_pairs_are_not_joined(minilm: str, tmp_path: Path) -> None:
    argv = arguments("sentence-similarity", tmp_path, "--teacher", minilm, "--joined_rows", "3")
    with pytest.raises(ValueError, match="have a second one, 'sentence2'"):
        run(options.parse(argv))


def test_a_command_names_files_without_their_places(tmp_path: Path) -> None:
    argv = arguments("sentence-similarity", tmp_path, "--teacher", f"{tmp_path}/my teacher", f"--output_dir={tmp_path}/out")
    command = options.parse(argv).command
    assert str(tmp_path) not in command and "--teacher 'my teacher' --output_dir=out" in command
    assert command.startswith("python -m recipes.run ")


def test_learning_rates_have_one_default() -> None:
    assert DistillationArguments().rates() == [LEARNING_RATE, LOGIT_LEARNING_RATE]
    defaults = {"learning_rate": LEARNING_RATE, "logit_learning_rate": LOGIT_LEARNING_RATE}
    for file in sorted(Path(options.__file__).parent.glob("*.yaml")):
        assert not defaults.items() & yaml.safe_load(file.read_text()).items(), file.name
