"""One matrix of a compression's report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heat_hf.encoders.checkpoints.reading import typed
from heat_hf.encoders.values import whole
from heat_hf.formats.setting import TensorSetting
from heat_hf.reports.compared import Compared

MOST = 2**53  # of a whole number in a report: more than any model has parameters, and exact as a float


@dataclass(frozen=True)
class TensorReport:
    """One matrix.

    Attributes:
        name: module name.
        rows, columns: extents M and N.
        setting: what it got; None if it stays dense.
        macs: multiply-accumulates a token, at the report's number of tokens.
        hardware: costs of one run on the report's accelerator; None without one.
        runs: how often a forward pass runs the layer; shared layers run more than once.
        relative_error: ‖W − W′‖_F / ‖W‖_F; None in a plan.
        output_error: the same for the layer's outputs on the calibration inputs; None without them.
        sweeps: iterations of the decomposition, 0 for a closed form.
        converged: whether an iterative decomposition stopped by itself.
        bias_lost: elements of the bias that went with outputs.
    """

    name: str
    rows: int
    columns: int
    setting: TensorSetting | None
    macs: float
    hardware: Compared | None = None
    runs: int = 1
    relative_error: float | None = None
    output_error: float | None = None
    sweeps: int = 0
    converged: bool = True
    bias_lost: int = 0

    @property
    def dense_parameters(self) -> int:
        """M·N."""
        return self.rows * self.columns

    @property
    def parameters(self) -> int:
        """Stored elements."""
        return self.dense_parameters if self.setting is None else self.setting.parameters

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        hardware = None if self.hardware is None else self.hardware.to_dict()
        setting = None if self.setting is None else self.setting.to_dict()
        return {**values, "setting": setting, "hardware": hardware, "parameters": self.parameters}

    def row(self) -> tuple[str, ...]:
        """Cells of the report's table."""
        s = self.setting
        what = ("dense", "", "") if s is None else (s.format, str(s.shape), "×".join(map(str, s.rank)))
        return (
            self.name, f"{self.rows}×{self.columns}", *what,
            f"{self.parameters:,}", f"{self.parameters / self.dense_parameters:.3f}", f"{self.macs:,.0f}",
            gain_text(self.hardware), figure_text(self.relative_error), figure_text(self.output_error),
        )  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorReport:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, ValueError: if a key is missing, or a value is of another kind.
        """
        values = {f.name: data[f.name] for f in dataclasses.fields(cls)}
        for name, least in (("rows", 1), ("columns", 1), ("runs", 1), ("sweeps", 0), ("bias_lost", 0)):
            whole(name, data[name], least, MOST)
        for name in ("macs", "relative_error", "output_error"):
            typed(data, name, float, int)
        typed(data, "name", str)
        typed(data, "converged", bool)
        hardware = None if data["hardware"] is None else Compared.from_dict(data["hardware"])
        setting = None if data["setting"] is None else TensorSetting.from_dict(data["setting"])
        return cls(**{**values, "setting": setting, "hardware": hardware})


def gain_text(cost: Compared | None) -> str:
    """What is left of the dense layers' cost; nothing where it is not known."""
    return "" if cost is None else cost.gain


def figure_text(value: float | None) -> str:
    """An error; nothing where it is not known."""
    return "" if value is None else f"{value:.4f}"
