"""Every recipe from end to end on a few rows and the real checkpoint, resumed, and fed with what cannot work."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import ModelCard
from transformers import AutoConfig

from heat_hf.encoders.linears import factorized_layers
from heat_hf.encoders.rows import JOINTS, joined_texts
from recipes import options
from recipes.pipeline import run
from recipes.question_answering.run import RECIPE as QUESTIONS
from recipes.sentence_embedding.run import RECIPE as EMBEDDING
from recipes.text_classification.run import RECIPE as CLASSIFICATION
from recipes.token_classification.run import RECIPE as TOKENS

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
        return [
            {"sentence1": text, "sentence2": other, "score": float(place % 5)}
            for place, (text, other) in enumerate(pairwise(SENTENCES))
        ]
    if task == "question-answering":
        places = [text.rindex(" ") + 1 for text in SENTENCES]
        answers = [{"text": [t[at:]], "answer_start": [at]} for t, at in zip(SENTENCES, places, strict=True)]
        return [{"question": "how?", "context": t, "answers": own} for t, own in zip(SENTENCES, answers, strict=True)]
    if task == "token-classification":
        return [{"tokens": text.split(), "ner_tags": ["O"] * 6 + ["B-MOOD"]} for text in SENTENCES]
    return [{"sentence": text, "label": place % 2} for place, text in enumerate(SENTENCES)]


CASES = {
    "text-classification": (CLASSIFICATION, ("--model",), "accuracy"),
    "question-answering": (QUESTIONS, ("--model",), "f1"),
    "token-classification": (TOKENS, ("--model",), "f1"),
    "sentence-similarity": (EMBEDDING, ("--teacher",), "spearman"),
}


@pytest.mark.parametrize("task", CASES)
def test_a_recipe_from_end_to_end(task: str, minilm: str, tmp_path: Path) -> None:
    recipe, (source,), metric = CASES[task]
    output = tmp_path / "out"
    argv = [*write(tmp_path, rows_of(task)), source, minilm, "--output_dir", str(output), *QUICK]
    argv += ["--joined_rows", "4", "--least_words", "7"] if task == "text-classification" else []
    argv += ["--teacher_config_overrides", "attention_probs_dropout_prob=0.05"] if source == "--model" else []
    row = run(recipe, "recipes.test", argv)
    assert row == json.loads((output / "metrics.json").read_text())
    named = {"task", "decomposition", "variant", "rank_search", "seed", "train_rows", "metric", "score", "teacher_score"}
    named |= {"accuracy_drop", "edp_uJs", "edp_gain", "params_M", "command", "versions"}
    assert named <= set(row)
    assert row["train_rows"] == len(SENTENCES) + (4 if task == "text-classification" else -1 if recipe is EMBEDDING else 0)
    assert row["metric"] == metric and row["edp_gain"] >= 2.5 and row["steps"] == 4
    scale = 1 if task == "question-answering" else 100
    assert row["accuracy_drop"] == pytest.approx(scale * (row["teacher_score"] - row["score"]))
    card = ModelCard.load(output / "model" / "README.md")
    assert card.data.library_name == "heat_hf" and card.data.license == "apache-2.0"
    assert {result.metric_type for result in card.data.eval_results} == {metric, "edp"}
    assert (output / "model" / "training.png").stat().st_size > 10_000
    assert factorized_layers(recipe.model_class.from_pretrained(output / "model"))
    if source == "--model":
        teacher = AutoConfig.from_pretrained(output / "teacher")
        assert (output / "teacher" / "model.safetensors").is_file() and teacher.attention_probs_dropout_prob == 0.05
    else:
        again = run(recipe, "recipes.test", argv)  # all parts are there, nothing is trained again
        assert again["score"] == row["score"]
        card_text = (output / "model" / "README.md").read_text()
        assert f'SentenceTransformer("{output.name}")' in card_text
        assert (output / "model" / "1_Pooling" / "config.json").is_file(), "it stays a sentence encoder"


def test_a_yaml_file_and_options_that_override_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "teacher: x\ntrain_files: ['$FOLDER/a.csv']\nvalidation_file: b.csv\nlearning_rate: 1e-3\ntarget_edp_ratio: 0.2\n"
    )
    with pytest.raises(ValueError, match="needs the environment variable FOLDER, which is not set"):
        options.parse("m", [str(file)])
    monkeypatch.setenv("FOLDER", "here")
    found = options.parse("m", [str(file), "--target_edp_ratio", "0.1"])
    assert found.data.train_files == ["here/a.csv"] and found.training.learning_rate == 1e-3
    assert found.compression.target_edp_ratio == 0.1
    assert found.command == f"python -m m {file} --target_edp_ratio 0.1"


@pytest.mark.parametrize("path", sorted(Path(options.__file__).parent.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_file_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAT_HF_DATA", "HEAT_HF_CLASSIFIER"):
        monkeypatch.setenv(name, "x")
    assert options.parse("m", [str(path)]).compression.config(0).target_edp_ratio


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
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        options.parse("m", [str(file)])


def test_data_without_the_columns_are_refused_before_any_work(minilm: str, tmp_path: Path) -> None:
    argv = [*write(tmp_path, rows_of("sentence-similarity")), "--output_dir", str(tmp_path / "out"), *QUICK]
    with pytest.raises(ValueError, match="the train data has no column 'sentence'; it has sentence1, sentence2, score"):
        run(CLASSIFICATION, "m", [*argv, "--model", minilm])
    with pytest.raises(ValueError, match="has no labels to fine-tune on: name a teacher"):
        run(EMBEDDING, "m", [*argv, "--model", minilm])
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="no recipe file"):
        options.parse("m", [str(tmp_path / "none.yaml")])


def test_labels_have_names(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(rows_of("token-classification"))
    assert TOKENS.labels(rows, ("tokens", "", "ner_tags")) == ["O", "B-MOOD"]
    named = rows_of("text-classification")
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    assert CLASSIFICATION.labels(datasets.Dataset.from_list(named, features), ("sentence", "", "label")) == ["no", "yes"]
    assert CLASSIFICATION.labels(datasets.Dataset.from_list(named), ("sentence", "", "label")) == ["0", "1"]


def test_joined_texts_are_two_of_the_texts_each() -> None:
    found = joined_texts([*SENTENCES, "too short"], 50, seed=3)
    assert found == joined_texts([*SENTENCES, "too short"], 50, seed=3) != joined_texts(SENTENCES, 50, seed=4)
    for text in found:
        assert any(text == f"{a} {joint} {b}" for a in SENTENCES for joint in JOINTS for b in SENTENCES)
    with pytest.raises(ValueError, match="there are 1 texts of at least 3 words; joining needs two"):
        joined_texts(["a long enough one", "short"], 1)


def test_pairs_are_not_joined(minilm: str, tmp_path: Path) -> None:
    argv = [*write(tmp_path, rows_of("sentence-similarity")), "--output_dir", str(tmp_path / "out"), *QUICK]
    with pytest.raises(ValueError, match="have a second one, 'sentence2'"):
        run(EMBEDDING, "m", [*argv, "--teacher", minilm, "--joined_rows", "3"])
