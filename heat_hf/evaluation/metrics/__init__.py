"""Metrics as `evaluate.Metric` subclasses that need no network; scores by scikit-learn, SciPy and seqeval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import evaluate


def _spearman(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    from scipy.stats import spearmanr

    return {"spearman": float(spearmanr(predictions, references).statistic)}


def _pearson(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    from scipy.stats import pearsonr

    return {"pearson": float(pearsonr(predictions, references).statistic)}


def _accuracy(predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score

    return {"accuracy": float(accuracy_score(references, predictions))}


def _f1(predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    average = "binary" if set(predictions) | set(references) <= {0, 1} else "macro"
    return {"f1": float(f1_score(references, predictions, average=average))}


def _matthews(predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
    from sklearn.metrics import matthews_corrcoef

    return {"matthews": float(matthews_corrcoef(references, predictions))}


def _squad(predictions: Sequence[str], references: Sequence[dict[str, list[str]]]) -> dict[str, float]:
    from heat_hf.evaluation.metrics.squad import exact_match_and_f1

    return exact_match_and_f1(predictions, [reference["text"] for reference in references])


def _entities(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    try:
        from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
    except ImportError as error:
        raise ImportError("entity scores need seqeval: pip install 'heat-hf[recipes]'") from error

    scores = {"f1": f1_score, "precision": precision_score, "recall": recall_score, "accuracy": accuracy_score}
    return {name: float(score(references, predictions)) for name, score in scores.items()}


@dataclass(frozen=True)
class Score:
    """What a metric computes from what.

    Attributes:
        prediction, reference: types of their values, as `datasets.Value` names them; in a list: sequences of them.
        compute: predictions, references → {name: value}.
    """

    prediction: Any
    reference: Any
    compute: Callable[[Any, Any], dict[str, float]]


METRICS: dict[str, Score] = {
    "spearman": Score("float32", "float32", _spearman),
    "pearson": Score("float32", "float32", _pearson),
    "accuracy": Score("int64", "int64", _accuracy),
    "f1": Score("int64", "int64", _f1),
    "matthews": Score("int64", "int64", _matthews),
    "squad": Score("string", {"text": ["string"], "answer_start": ["int64"]}, _squad),
    "entities": Score(["string"], ["string"], _entities),
}


def _feature(kind: Any) -> Any:  # noqa: ANN401
    import datasets

    if isinstance(kind, dict):
        return {name: _feature(part) for name, part in kind.items()}
    return datasets.List(datasets.Value(kind[0])) if isinstance(kind, list) else datasets.Value(kind)


def load_metric(name: str) -> evaluate.Metric:
    """A metric whose `compute(predictions=…, references=…)` returns `{name: value}`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known are {', '.join(METRICS)}")
    import datasets
    import evaluate

    score = METRICS[name]

    class Metric(evaluate.Metric):  # type: ignore[misc]
        def _info(self) -> evaluate.MetricInfo:
            features = {"predictions": _feature(score.prediction), "references": _feature(score.reference)}
            return evaluate.MetricInfo(
                description=name, citation="", inputs_description="", features=datasets.Features(features)
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:  # noqa: ANN401
            return score.compute(predictions, references)

    return Metric()
