"""Metrics as `evaluate.Metric` subclasses that need no network; scores by scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import evaluate

Score = Callable[[Sequence[float], Sequence[float]], float]


def _spearman(predictions: Sequence[float], references: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(predictions, references).statistic)


def _accuracy(predictions: Sequence[float], references: Sequence[float]) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references, predictions))


def _matthews(predictions: Sequence[float], references: Sequence[float]) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


# name → (type of the values, score)
METRICS: dict[str, tuple[str, Score]] = {
    "spearman": ("float32", _spearman),
    "accuracy": ("int64", _accuracy),
    "matthews": ("int64", _matthews),
}


def load_metric(name: str) -> evaluate.Metric:
    """A metric whose `compute(predictions=…, references=…)` returns `{name: value}`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known are {', '.join(METRICS)}")
    import datasets
    import evaluate

    value_type, score = METRICS[name]

    class Metric(evaluate.Metric):  # type: ignore[misc]
        def _info(self) -> evaluate.MetricInfo:
            features = {key: datasets.Value(value_type) for key in ("predictions", "references")}
            return evaluate.MetricInfo(
                description=name, citation="", inputs_description="", features=datasets.Features(features)
            )

        def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, Any]:
            return {name: score(predictions, references)}

    return Metric()
