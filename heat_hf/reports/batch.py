"""Many compressed models beside each other: a table, and a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heat_hf.reports.compression import CompressionReport
from heat_hf.reports.figures.style import COLOURS
from heat_hf.reports.page import fill
from heat_hf.reports.text import text_table


@dataclass(frozen=True)
class Batch:
    """Runs by their names, MODEL/BUDGET.

    Attributes:
        done: reports of those that are there.
        failed: why the others are not.
    """

    done: Mapping[str, CompressionReport]
    failed: Mapping[str, str]

    def rows(self) -> list[dict[str, Any]]:
        """What is known of each run; ratios are over the dense matrices, `measured` is the divergence of outputs."""
        return [self._row(name, report) for name, report in self.done.items()]

    def _row(self, name: str, report: CompressionReport) -> dict[str, Any]:
        model, budget = name.split("/")
        cost, fidelity = report.hardware, report.fidelity
        return {
            "model": model,
            "budget": budget,
            "base": report.base_model,
            "parameters": report.compressed_model_parameters,
            "params_ratio": report.params_ratio,
            "measure": report.measure,
            "cost_ratio": None if cost is None else cost.ratio,
            "whole_ratio": None if report.whole is None else report.whole.ratio,
            "output_error": report.output_error,
            "measured": None if fidelity is None else fidelity.measured,
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"runs": self.rows(), "failed": dict(self.failed)}

    def __str__(self) -> str:
        columns = (
            "model",
            "budget",
            "parameters",
            "ratio of matrices",
            "EDP or time",
            "of the whole model",
            "output error",
            "divergence",
        )
        groups: dict[str, list[tuple[str, ...]]] = {}
        for row in self.rows():
            cost = "" if row["cost_ratio"] is None else f"{row['measure']} ×{row['cost_ratio']:.3f}"
            whole = "" if row["whole_ratio"] is None else f"×{row['whole_ratio']:.3f}"
            parts = [row["model"], row["budget"], f"{row['parameters']:,}", f"{row['params_ratio']:.3f}", cost, whole]
            parts += ["" if row[name] is None else f"{row[name]:.4f}" for name in ("output_error", "measured")]
            groups.setdefault(row["model"], []).append(tuple(parts))
        table = text_table(columns, groups.values(), left=(0, 1))
        return table + "".join(f"\n{name} failed: {reason}" for name, reason in self.failed.items())

    def page(self) -> str:
        """One HTML file, with everything it needs in it; links go to the folders beside it."""
        return fill("batch.html", {**self.to_dict(), "colours": list(COLOURS)})
