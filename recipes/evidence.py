"""What a run leaves behind: a row of figures, pictures, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from heat_hf import CompressionReport
from heat_hf.encoders.checkpoints.storage import atomic_file
from heat_hf.evaluation.tasks import TASKS
from heat_hf.hardware import units
from heat_hf.hardware.cost import EDP
from heat_hf.reports.card import Evaluation

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tensorly")


def result_row(report: CompressionReport, task: str, score: float, teacher_score: float, **about: Any) -> dict[str, Any]:
    """One measured model, as the result tables take it.

    Args:
        report: of its compression.
        task: of `heat_hf.evaluation.tasks.TASKS`.
        score: the model's main score.
        teacher_score: the dense model's on the same rows.
        **about: decomposition, variant, rank_search, seed, train_rows, command and what else is to be kept.
    """
    cost = None if report.hardware is None or report.measure != EDP else report.hardware
    figures = {
        "task": task,
        "metric": TASKS[task].main,
        "score": score,
        "teacher_score": teacher_score,
        "accuracy_drop": TASKS[task].points(teacher_score - score),
        "edp_uJs": None if cost is None else units.EDP.of(cost.now.edp),
        "edp_gain": None if cost is None else 1 / cost.ratio,
        "whole_gain": None if cost is None or report.whole is None else 1 / report.whole.ratio,
        "params_M": report.compressed_model_parameters / 1e6,
        "params_ratio": report.params_ratio,
        "accelerator": report.accelerator,
        "tokens": report.tokens,
    }
    versions = {name: version(name) for name in PACKAGES} | {"heat-hf": report.heat_version}
    return {**about, **figures, "versions": versions}


def write_json(path: Path, data: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write_text(json.dumps(data, indent=1) + "\n")


def evaluation_of(row: Mapping[str, Any], dataset: str, split: str, rows: int) -> Evaluation:
    """A measured row as a card states it."""
    return Evaluation(row["task"], dataset, split, rows, row["metric"], row["score"], row["teacher_score"])
