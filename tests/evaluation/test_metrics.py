"""Scores beside independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
from torchmetrics.functional.text import squad as official_squad

from heat_hf.evaluation.metrics import METRICS, load_metric
from heat_hf.evaluation.metrics.squad import exact_match_and_f1

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
    scores = load_metric("squad").compute(predictions=[said for _, said in ANSWERS], references=references)
    predictions = [{"prediction_text": said, "id": str(row)} for row, (_, said) in enumerate(ANSWERS)]
    targets = [{"answers": answers, "id": str(row)} for row, answers in enumerate(references)]
    official = official_squad(predictions, targets)
    # It computes in float32; ours in float64.
    assert np.float32(scores["f1"]) == pytest.approx(float(official["f1"]), abs=1e-5)
    assert np.float32(scores["exact_match"]) == pytest.approx(float(official["exact_match"]), abs=1e-5)
    assert 0 < scores["exact_match"] < scores["f1"] < 100


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
