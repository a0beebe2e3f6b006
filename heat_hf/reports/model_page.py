"""A compressed model as a page: before and after, every tensor, energy by level, its training, and other models beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heat_hf.encoders.checkpoints.names import CARD_NAME, STATE_NAME
from heat_hf.encoders.checkpoints.reading import read_json, require_readable, told, typed
from heat_hf.encoders.linears import block_of, kind_of
from heat_hf.formats import GONE
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import units
from heat_hf.hardware.analytic import AnalyticModel, cost_model
from heat_hf.hardware.cascade import Cascade, join
from heat_hf.reports.card import HARDWARE_METRICS, OF_DENSE, origin_of
from heat_hf.reports.compression import CompressionReport
from heat_hf.reports.figures.distillation import loss_curves
from heat_hf.reports.figures.style import COLOURS
from heat_hf.reports.page import fill
from heat_hf.reports.tensor import TensorReport

MOST_OF_A_CARD = 2**20  # bytes; YAML is slow to read


def report_page(model: str | os.PathLike[str], beside: Sequence[str | os.PathLike[str]] = ()) -> str:
    """One HTML file, with everything it needs in it.

    Args:
        model: folder or Hub id of a compressed model.
        beside: other compressed models of the same dense model, for the Pareto view.

    Raises:
        OSError: if one of them does not exist, or has no report.
        ValueError: if one of `beside` has other matrices, or is costed for another accelerator or number of tokens.
    """
    return fill("model.html", page_data(model, beside))


def page_data(model: str | os.PathLike[str], beside: Sequence[str | os.PathLike[str]] = ()) -> dict[str, Any]:
    """What the page shows; totals in the units of the report. See `report_page`."""
    report, name = CompressionReport.from_pretrained(model), model_name(model)
    models = [_model(model, report)]
    for other in beside:
        other_report = CompressionReport.from_pretrained(other)
        require_comparable(report, other_report, other)
        models.append(_model(other, other_report))
    origin = origin_of(report, name)
    return {
        "name": name,
        "base": origin.base_model,
        "accelerator": report.accelerator,
        "digest": report.accelerator_digest,
        "tokens": report.tokens,
        "measure": report.measure,
        "calibration_rows": report.calibration_rows,
        "version": report.heat_version,
        "colours": list(COLOURS),
        "scores": scores_of(model),
        "totals": _totals(report),
        "tensors": [_tensor(tensor, report.calibration_rows > 0) for tensor in report.tensors],
        "levels": _levels(report),
        "training": _training(model),
        "models": models,
    }


def model_name(model: str | os.PathLike[str]) -> str:
    """A folder's name without its path, a Hub id as it is."""
    return Path(model).absolute().name if Path(model).is_dir() else str(model)


def _beside_the_weights(model: str | os.PathLike[str], name: str) -> Path | None:
    """A file of a model's folder or repository; None if it has no such file."""
    if Path(model).is_dir():
        return Path(model, name) if os.path.lexists(Path(model, name)) else None
    from transformers.utils.hub import cached_file

    file = cached_file(str(model), name, _raise_exceptions_for_missing_entries=False)
    return None if file is None else Path(file)


def scores_of(model: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What a model's card says that it and the dense model reach."""
    path = _beside_the_weights(model, CARD_NAME)
    if path is None:
        return []
    from huggingface_hub import ModelCard

    require_readable(path, MOST_OF_A_CARD)
    with told(path, "is damaged"):
        results = ModelCard.load(path, ignore_metadata_errors=True).data.eval_results or []
        scores = [r for r in results if r.metric_type not in HARDWARE_METRICS.values()]
        dense = {(r.dataset_name, r.metric_name): r.metric_value for r in scores if r.metric_name.endswith(OF_DENSE)}
    return [
        {
            "label": f"{r.dataset_name} {r.dataset_split}, {r.metric_name}",
            "now": r.metric_value,
            "dense": dense.get((r.dataset_name, f"{r.metric_name}{OF_DENSE}")),
        }
        for r in scores
        if not r.metric_name.endswith(OF_DENSE)
    ]


def _totals(report: CompressionReport) -> list[dict[str, Any]]:
    runs = [tensor for tensor in report.tensors for _ in range(tensor.runs)]
    totals: list[tuple[str, str, float, float]] = [
        ("parameters of the model", "", report.model_parameters, report.compressed_model_parameters),
        ("parameters of the matrices", "", report.dense_parameters, report.parameters),
        ("MACs a token in the matrices", "", sum(t.dense_parameters for t in runs), sum(t.macs for t in runs)),
    ]
    totals += report.figures
    return [{"label": label, "unit": unit, "dense": before, "now": after} for label, unit, before, after in totals]


def _tensor(tensor: TensorReport, calibrated: bool) -> dict[str, Any]:
    setting, cost, block = tensor.setting, tensor.hardware, block_of(tensor.name)
    return {
        "name": tensor.name,
        "block": re.sub(r"\D*(\d+)$", r"\1", block) if block != tensor.name else "",
        "kind": kind_of(tensor.name),
        "size": f"{tensor.rows}×{tensor.columns}",
        "format": "dense" if setting is None else setting.format,
        "shape": "" if setting is None else str(setting.shape),
        "rank": "" if setting is None else "×".join(map(str, setting.rank)),
        "parameters": tensor.parameters,
        "params": tensor.parameters / tensor.dense_parameters,
        "macs": tensor.macs / tensor.dense_parameters,
        "edp": None if cost is None else cost.ratio,
        "error": 0.0 if setting is None else tensor.relative_error,
        "output_error": 0.0 if setting is None and calibrated else tensor.output_error,
    }


def _levels(report: CompressionReport) -> dict[str, Any] | None:
    """Energy by memory level and time by what limits it, dense and factorized; None if the accelerator is not at hand."""
    if report.accelerator is None:
        return None
    try:
        costs = cost_model(report.accelerator)
    except (OSError, ValueError):
        return None
    if not isinstance(costs, AnalyticModel) or costs.digest != report.accelerator_digest:
        return None
    accelerator = costs.accelerator
    names = [*(level.name for level in accelerator.levels), "MAC"]
    ways = _cascades(report, costs)
    return {
        "names": names,
        "units": {"energy": units.ENERGY.name, "time": units.TIME.name},
        "technology": accelerator.technology.strip(),
        "energy": {
            way: [units.ENERGY.of(cascade.energy_by_level_pJ.get(level, 0.0)) for level in names]
            for way, cascade in ways.items()
        },
        "time": {way: _times(cascade, names) for way, cascade in ways.items()},
    }


def _cascades(report: CompressionReport, costs: AnalyticModel) -> dict[str, Cascade]:
    """All matrices one after the other, dense and as they are."""
    dense, now = [], []
    for tensor in report.tensors:
        before = costs.cascade_of(MatrixSize(tensor.rows, tensor.columns), report.tokens)
        dense += [before] * tensor.runs
        if tensor.setting is None or tensor.setting.format not in GONE:
            after = before if tensor.setting is None else costs.cascade_of(tensor.setting, report.tokens)
            now += [after] * tensor.runs
    return {"dense": join(dense), "now": join(now)}


def _times(cost: Cascade, names: Sequence[str]) -> list[float]:
    """By what limits a step."""
    return [cost.cycles_by_bottleneck.get(level, 0) / cost.cycles * units.TIME.of(cost.seconds) for level in names]


def _training(model: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Steps, parts of the loss over them, and where stages start; None if the model was not distilled."""
    path = _beside_the_weights(model, STATE_NAME)
    if path is None:
        return None
    with told(path, "is damaged"):
        state = read_json(path)
        parts, starts = loss_curves(typed(state, "log_history", list, default=[]))
        return {"steps": typed(state, "global_step", int, default=0), "parts": parts, "stages": starts}


def is_trained(model: str | os.PathLike[str]) -> bool:
    """Whether a compressed model was distilled."""
    return _beside_the_weights(model, STATE_NAME) is not None


def _model(model: str | os.PathLike[str], report: CompressionReport) -> dict[str, Any]:
    cost = report.hardware
    return {
        "name": model_name(model),
        "edp": None if cost is None else cost.ratio,
        "params": report.params_ratio,
        "output_error": report.output_error,
        "trained": is_trained(model),
        "scores": {score["label"]: score["now"] for score in scores_of(model)},
    }


def require_comparable(report: CompressionReport, other: CompressionReport, name: str | os.PathLike[str]) -> None:
    """Raise ValueError if a model has other matrices than the first, or is costed for another accelerator or tokens."""
    sizes = [[(tensor.name, tensor.rows, tensor.columns) for tensor in one.tensors] for one in (report, other)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{name} has other matrices: put only models of the same dense model beside each other")
    for what in ("accelerator", "accelerator_digest", "tokens"):
        one, theirs = getattr(report, what), getattr(other, what)
        if one != theirs:
            raise ValueError(f"{name} is costed for another {what.replace('_', ' ')}: {theirs}, not {one}")
