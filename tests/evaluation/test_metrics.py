"""Scores beside independent implementations; questions answered from windows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from torchmetrics.functional.text import squad as official_squad

from heat_hf.evaluation.metrics import METRICS, load_metric
from heat_hf.evaluation.metrics.squad import exact_match_and_f1
from heat_hf.evaluation.question_answering import encode_questions, predict_answers
from heat_hf.evaluation.tasks import evaluate_task, predicted_tags

ANSWERS = [
    (["the Normans", "Normans"], "Normans!"),
    (["10th century", "in the 10th and 11th centuries"], "the 10th and 11th century"),
    (["Denmark, Iceland and Norway"], "Iceland"),
    (["Rollo"], "an apple"),
    (["$1.5 million"], "1.5 million dollars"),
    (["Café de l'Europe"], "cafe de l’europe"),
]


def test_squad_scores_are_the_official_scripts_to_every_digit() -> None:
    references = [{"text": texts, "answer_start": [0] * len(texts)} for texts, _ in ANSWERS]
    own = load_metric("squad").compute(predictions=[said for _, said in ANSWERS], references=references)
    predictions = [{"prediction_text": said, "id": str(place)} for place, (_, said) in enumerate(ANSWERS)]
    targets = [{"answers": answers, "id": str(place)} for place, answers in enumerate(references)]
    official = official_squad(predictions, targets)
    # It computes in float32; ours in float64.
    assert np.float32(own["f1"]) == pytest.approx(float(official["f1"]), abs=1e-5)
    assert np.float32(own["exact_match"]) == pytest.approx(float(official["exact_match"]), abs=1e-5)
    assert 0 < own["exact_match"] < own["f1"] < 100


def test_answers_of_articles_alone_score_as_in_the_v1_script() -> None:
    # Nothing is left of them: the same, but with no word in common. (The v2 script, and torchmetrics, give an F1 of 1.)
    assert exact_match_and_f1(["the"], [["a", "the"]]) == {"exact_match": 100.0, "f1": 0.0}


def test_other_scores_by_hand() -> None:
    labels = {"predictions": [0, 1, 1, 0], "references": [0, 1, 0, 0]}
    assert load_metric("accuracy").compute(**labels) == {"accuracy": 0.75}
    assert load_metric("f1").compute(**labels) == {"f1": pytest.approx(2 / 3)}
    assert load_metric("matthews").compute(**labels) == {"matthews": pytest.approx(1 / 3**0.5)}
    numbers = {"predictions": [1.0, 2.0, 4.0], "references": [1.0, 2.0, 3.0]}
    assert load_metric("spearman").compute(**numbers) == {"spearman": 1.0}
    assert 0.98 < load_metric("pearson").compute(**numbers)["pearson"] < 1
    tags = {"predictions": [["B-PER", "O", "B-LOC"]], "references": [["B-PER", "I-PER", "B-LOC"]]}
    assert load_metric("entities").compute(**tags) == {
        "f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": pytest.approx(2 / 3)
    }  # fmt: skip
    with pytest.raises(ValueError, match="unknown metric 'bleu'; known are spearman"):
        load_metric("bleu")
    assert set(METRICS) == {"spearman", "pearson", "accuracy", "f1", "matthews", "squad", "entities"}


@pytest.fixture(scope="module")
def tokenizer(minilm: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(minilm)


CONTEXT = " ".join(f"Item {number} costs {number * 7} crowns." for number in range(60))
START = CONTEXT.index("294 crowns")
ROW = {"question": "What does item 42 cost?", "context": CONTEXT, "answers": {"text": ["294 crowns"], "answer_start": [START]}}


def test_windows_cover_the_context_and_place_the_answer(tokenizer: Any) -> None:
    windows = encode_questions(tokenizer, [ROW["question"]], [CONTEXT], [ROW["answers"]], max_length=96, stride=24)
    assert len(windows) > 3 and {window["row"] for window in windows} == {0}
    covered = {place for window in windows for own in window["offsets"] if own for place in range(*own)}
    assert set(range(len(CONTEXT))) - covered <= {place for place, c in enumerate(CONTEXT) if c == " "}
    placed = [window for window in windows if window["end_positions"]]
    assert placed
    for window in placed:
        begin = window["offsets"][window["start_positions"]][0]
        end = window["offsets"][window["end_positions"]][1]
        assert CONTEXT[begin:end] == "294 crowns"
    for window in windows:
        if not window["end_positions"]:
            spans = [own for own in window["offsets"] if own]
            assert spans[0][0] > START or spans[-1][1] < START + len("294 crowns")


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
        config = SimpleNamespace(id2label={0: "O", 1: "B-X", 2: "I-X"}, num_labels=3)

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            goes_on = [[t.startswith("##") for t in tokenizer.convert_ids_to_tokens(row)] for row in input_ids.tolist()]
            return SimpleNamespace(logits=torch.nn.functional.one_hot(1 + torch.tensor(goes_on).long(), 3).float())

    words = [["unbelievableness", "is", "tokenizable"], ["yes"]]
    assert predicted_tags(Tagger(), tokenizer, words) == [["B-X"] * 3, ["B-X"]]
    rows = datasets.Dataset.from_list([{"tokens": own, "ner_tags": [1] * len(own)} for own in words])
    assert evaluate_task(Tagger(), tokenizer, "token-classification", rows)["f1"] == 1.0
    with pytest.raises(ValueError, match="no second text"):
        predicted_tags(Tagger(), tokenizer, words, ["x", "y"])
