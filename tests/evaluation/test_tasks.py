"""Tasks: what a model answers, how answers are scored, how rows are encoded, what a card shows."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import transformers
from conftest import small_model

from heat_hf.evaluation.answers import encode_questions, predict_answers
from heat_hf.evaluation.tasks import TASKS, evaluate_task, find_task, task_of, usage
from heat_hf.evaluation.tasks.base import check_columns


def test_the_registry_loads_no_library() -> None:
    program = "import heat_hf.evaluation.tasks, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "datasets", "evaluate", "numpy"} & set(done.stdout.split())


def test_every_task_has_a_head_metrics_and_a_program() -> None:
    for name, task in TASKS.items():
        assert task.name == name and len(task.columns) == 3 and task.metrics
        assert hasattr(task.model_class, "from_pretrained")
        compile(task.usage("me/x"), name, "exec")
        assert '"me/x"' in usage("me/x", name)
    assert usage("me/x", "fill-mask") == (
        'import heat_hf\nfrom transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("me/x")'
    )


def test_a_model_is_recognized_by_its_head() -> None:
    assert task_of(small_model("bert")) == task_of(small_model("bert"), sentence_encoder=True) == "text-classification"
    encoder = small_model("bert", head=False)
    assert (task_of(encoder), task_of(encoder, sentence_encoder=True)) == ("feature-extraction", "sentence-similarity")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("sentence", "label"), "columns must name first text, second text .* got .'sentence', 'label'."),
        (("text", "", "label"), "the train data has no column 'text'; it has sentence, label"),
    ],
)
def test_columns_that_are_not_there(columns: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_columns({"sentence": ["a"], "label": [0]}, columns, "the train data")
    with pytest.raises(ValueError, match="unknown task 'chess'; known are sentence-similarity, text-classification"):
        find_task("chess")


@pytest.fixture(scope="module")
def tokenizer(minilm: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(minilm)


CONTEXT = " ".join(f"Item {number} costs {number * 7} crowns." for number in range(60))
START = CONTEXT.index("294 crowns")
ROW = {"question": "What does item 42 cost?", "context": CONTEXT, "answers": {"text": ["294 crowns"], "answer_start": [START]}}


def spans(window: dict[str, Any]) -> list[tuple[int, int]]:
    """First and last character of the context's tokens in a window."""
    return [span for span in window["offsets"] if span]


WINDOWS = {"max_length": 96, "stride": 24}


def test_windows_cover_the_context(tokenizer: Any) -> None:
    windows = encode_questions(tokenizer, [ROW["question"]], [CONTEXT], **WINDOWS)
    assert len(windows) > 3 and {window["row"] for window in windows} == {0}
    covered = {character for window in windows for span in spans(window) for character in range(*span)}
    assert {CONTEXT[character] for character in set(range(len(CONTEXT))) - covered} <= {" "}


def test_windows_place_the_answer_where_they_have_all_of_it(tokenizer: Any) -> None:
    windows = encode_questions(tokenizer, [ROW["question"]], [CONTEXT], [ROW["answers"]], **WINDOWS)
    whole = [spans(window)[0][0] <= START and spans(window)[-1][1] >= START + len("294 crowns") for window in windows]
    assert any(whole)
    assert [bool(window["end_positions"]) for window in windows] == whole
    for window in (window for window, inside in zip(windows, whole, strict=True) if inside):
        begin, end = (window["offsets"][window[f"{side}_positions"]] for side in ("start", "end"))
        assert CONTEXT[begin[0] : end[1]] == "294 crowns"


def test_the_best_span_of_all_windows_is_the_answer(tokenizer: Any) -> None:
    class Oracle(torch.nn.Module):
        """Points at the answer's tokens, wherever its window has them."""

        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            begin = (input_ids == tokenizer.convert_tokens_to_ids("294")).float()
            end = torch.nn.functional.pad(begin[:, :-1], (1, 0))
            return SimpleNamespace(start_logits=begin * 9, end_logits=end * 9)

    answers = predict_answers(Oracle(), tokenizer, [ROW["question"]] * 2, [CONTEXT, "Nothing here."], 3, 96, 24)
    assert answers[0] == "294 crowns"
    rows = datasets.Dataset.from_list([ROW])
    assert evaluate_task(Oracle(), tokenizer, "question-answering", rows) == {"exact_match": 100.0, "f1": 100.0, "rows": 1}


def test_bad_windows_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="stride must be at least 0 and below max_length=64, got 64"):
        encode_questions(tokenizer, ["q"], ["c"], None, 64, 64)
    with pytest.raises(ValueError, match="needs a fast tokenizer"):
        encode_questions(SimpleNamespace(is_fast=False), ["q"], ["c"])
    with pytest.raises(ValueError, match="needs a second text column"):
        predict_answers(torch.nn.Identity(), tokenizer, ["q"], None)


def test_tags_are_those_of_each_words_first_token(tokenizer: Any) -> None:
    class Tagger(torch.nn.Module):
        """Class 1 for tokens that begin a word, class 2 for those that go on."""

        device = torch.device("cpu")
        config = transformers.PreTrainedConfig(id2label={0: "O", 1: "B-X", 2: "I-X"}, label2id={"O": 0, "B-X": 1, "I-X": 2})

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            goes_on = [[t.startswith("##") for t in tokenizer.convert_ids_to_tokens(row)] for row in input_ids.tolist()]
            return SimpleNamespace(logits=torch.nn.functional.one_hot(1 + torch.tensor(goes_on).long(), 3).float())

    words = [["unbelievableness", "is", "tokenizable"], ["yes"]]
    assert TASKS["token-classification"].predict(Tagger(), tokenizer, words, None) == [["B-X"] * 3, ["B-X"]]
    rows = datasets.Dataset.from_list([{"tokens": row, "ner_tags": [1] * len(row)} for row in words])
    assert evaluate_task(Tagger(), tokenizer, "token-classification", rows)["f1"] == 1.0
    with pytest.raises(ValueError, match="no second text"):
        TASKS["token-classification"].predict(Tagger(), tokenizer, words, ["x", "y"])
