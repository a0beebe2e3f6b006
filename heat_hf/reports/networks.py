"""Networks of one dense model beside each other, wherever they come from: found by a search, or made and perhaps trained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from heat_hf.formats.setting import Settings
from heat_hf.reports.compression import CompressionReport
from heat_hf.reports.model_page import is_trained, model_name, scores_of
from heat_hf.reports.ranks import RankRecord


@dataclass(frozen=True)
class Network:
    """What is known of one network.

    Attributes:
        name: of the variant, or of the model's folder.
        series: how its ranks were found; and whether it is found alone, made, or trained.
        settings: of every matrix, by its name in the model without a head.
        edp_ratio: of all matrices, as a fraction of the dense ones'.
        params_ratio: likewise.
        divergence: of its outputs from the dense model's: expected, or of a compressed model measured.
        predicted_accuracy: of a SuperNet's search.
        scores: data, split and metric → the score that its card states.
        dense_scores: those of the dense model.
    """

    name: str
    series: str
    settings: Settings
    edp_ratio: float | None
    params_ratio: float
    divergence: float | None = None
    predicted_accuracy: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    dense_scores: Mapping[str, float] = field(default_factory=dict)


def networks_of(record: RankRecord) -> list[Network]:
    """The variants of a record."""
    return [
        Network(
            v.name, f"{_series(v.method, v.decomposition)}, found", v.settings, v.edp_ratio, v.params_ratio,
            v.expected_divergence, v.predicted_accuracy,
        )
        for v in record.variants
    ]  # fmt: skip


def network_of(model: str | os.PathLike[str], report: CompressionReport) -> Network:
    """A compressed model, with the scores that its card states."""
    scores, cost, fidelity = scores_of(model), report.hardware, report.fidelity
    series = _series(report.request.get("rank_search", "given"), report.request.get("decomposition", ""))
    return Network(
        model_name(model),
        f"{series}, {'trained' if is_trained(model) else 'made'}",
        {tensor.name: tensor.setting for tensor in report.tensors},
        None if cost is None else cost.ratio,
        report.params_ratio,
        None if fidelity is None or is_trained(model) else fidelity.measured,
        scores={own["label"]: own["now"] for own in scores},
        dense_scores={own["label"]: own["dense"] for own in scores if own["dense"] is not None},
    )


def retrained_pairs(record: RankRecord, networks: Sequence[Network]) -> list[tuple[float, float]]:
    """Of networks of a search that were made and scored, (score, predicted accuracy); none of fewer than three."""
    predicted = {tuple(v.settings.values()): v.predicted_accuracy for v in record.variants}
    scored = [(next(iter(n.scores.values()), None), predicted.get(tuple(n.settings.values()))) for n in networks]
    pairs = [(score, accuracy) for score, accuracy in scored if score is not None and accuracy is not None]
    return pairs if len(pairs) > 2 else []


def _series(method: str, decomposition: str) -> str:
    return method if decomposition in ("", "low_rank") else f"{method}, {decomposition}"


def require_same_search(record: RankRecord, other: RankRecord, name: str) -> None:
    """Raise ValueError if two records are not of the same dense weights, accelerator and tokens."""
    for key, what in (("weights", "dense model"), ("accelerator_digest", "accelerator"), ("tokens", "number of tokens")):
        if record.key.get(key) != other.key.get(key):
            raise ValueError(f"{name} is of another {what}: {other.key.get(key)}, not {record.key.get(key)}")


def require_of_search(record: RankRecord, report: CompressionReport, name: str) -> None:
    """Raise ValueError if a compressed model has other matrices than a record, or other costs."""
    if len(report.tensors) != len(record.variants[0].settings):
        matrices = (len(report.tensors), len(record.variants[0].settings))
        raise ValueError(f"{name} has {matrices[0]} matrices, the record {matrices[1]}: take models of the same dense one")
    for key, what in (("accelerator_digest", "accelerator"), ("tokens", "number of tokens")):
        if getattr(report, key) != record.key.get(key):
            raise ValueError(f"{name} is costed for another {what}: {getattr(report, key)}, not {record.key.get(key)}")
