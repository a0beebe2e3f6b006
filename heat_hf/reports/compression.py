"""What compression gained and lost: per tensor, per model, as table and as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heat_hf.compression.config import HeatConfig
from heat_hf.encoders.checkpoints.names import REPORT_NAME, package_version
from heat_hf.encoders.cost import cost_linear, cost_setting, reporting_mapper
from heat_hf.encoders.linears import encoder_linears, runs
from heat_hf.formats import Factorization
from heat_hf.formats.setting import TensorSetting
from heat_hf.hardware.mapper import Mapper
from heat_hf.reports.text import text_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class HardwareCost:
    """Energy and time on an accelerator, factorized and dense; of several layers, sums (paper, section 2.2.2).

    Attributes:
        energy_pJ, seconds: of the factorized layer.
        dense_energy_pJ, dense_seconds: of the dense layer in its place.
    """

    energy_pJ: float  # noqa: N815 - the unit's own spelling
    seconds: float
    dense_energy_pJ: float  # noqa: N815
    dense_seconds: float

    @property
    def edp(self) -> float:
        """Energy-delay product in J·s."""
        return self.energy_pJ * 1e-12 * self.seconds

    @property
    def dense_edp(self) -> float:
        """The dense layer's."""
        return self.dense_energy_pJ * 1e-12 * self.dense_seconds

    def __add__(self, other: HardwareCost) -> HardwareCost:
        return HardwareCost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def to_dict(self) -> dict[str, float]:
        """As JSON, products included."""
        return {**dataclasses.asdict(self), "edp_J_s": self.edp, "dense_edp_J_s": self.dense_edp}

    @classmethod
    def from_dict(cls, data: Mapping[str, float]) -> HardwareCost:
        """Read what `to_dict` wrote."""
        return cls(*(data[f.name] for f in dataclasses.fields(cls)))


@dataclass(frozen=True)
class TensorReport:
    """One matrix.

    Attributes:
        name: module name.
        rows, columns: extents M and N.
        setting: what it got; None if it stays dense.
        macs: multiply-accumulates a token, at the report's number of tokens.
        hardware: cost of one run on the report's accelerator; None without one.
        runs: how often a forward pass runs the layer; shared layers run more than once.
        relative_error: ‖W − W′‖_F / ‖W‖_F; None in a plan.
        output_error: the same for the layer's outputs on the calibration inputs; None without them.
        sweeps: iterations of the decomposition, 0 for a closed form.
        converged: whether an iterative decomposition stopped by itself.
    """

    name: str
    rows: int
    columns: int
    setting: TensorSetting | None
    macs: float
    hardware: HardwareCost | None = None
    runs: int = 1
    relative_error: float | None = None
    output_error: float | None = None
    sweeps: int = 0
    converged: bool = True

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
            f"{self.parameters:,}", f"{self.parameters / self.dense_parameters:.3f}", f"{self.macs:,.0f}", _gain(self.hardware),
            _figure(self.relative_error), _figure(self.output_error),
        )  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorReport:
        """Read what `to_dict` wrote."""
        values = {f.name: data[f.name] for f in dataclasses.fields(cls)}
        hardware = None if data["hardware"] is None else HardwareCost.from_dict(data["hardware"])
        setting = None if data["setting"] is None else TensorSetting.from_dict(data["setting"])
        return cls(**{**values, "setting": setting, "hardware": hardware})


@dataclass(frozen=True)
class CompressionReport:
    """All matrices that compression chose for, and the model's size around them.

    Attributes:
        base_model: name or folder of the dense checkpoint.
        model_parameters: parameters of the dense model, embeddings and heads included.
        tokens: number of tokens for which contraction paths were chosen and MACs counted.
        tensors: the matrices.
        accelerator: name of the accelerator that hardware costs are for; None without them.
        accelerator_digest: its digest.
        calibration_rows: sequences of the calibration data; 0 if there was none.
        heat_version: version of heat_hf.
    """

    base_model: str
    model_parameters: int
    tokens: int
    tensors: tuple[TensorReport, ...]
    accelerator: str | None = None
    accelerator_digest: str | None = None
    calibration_rows: int = 0
    heat_version: str = ""

    @property
    def dense_parameters(self) -> int:
        """Parameters of the matrices before."""
        return sum(t.dense_parameters for t in self.tensors)

    @property
    def parameters(self) -> int:
        """Parameters of their cores."""
        return sum(t.parameters for t in self.tensors)

    @property
    def params_ratio(self) -> float:
        """Parameters of the cores as a fraction of the dense matrices'."""
        return self.parameters / self.dense_parameters

    @property
    def compressed_model_parameters(self) -> int:
        """Parameters of the whole model after."""
        return self.model_parameters - self.dense_parameters + self.parameters

    @property
    def macs(self) -> float:
        """Multiply-accumulates a token in the factorized layers."""
        return sum(t.macs for t in self.tensors)

    @property
    def hardware(self) -> HardwareCost | None:
        """Energies and times of all runs of all matrices; EDP = ΣE·ΣT. None without an accelerator."""
        costs = [t.hardware for t in self.tensors for _ in range(t.runs) if t.hardware is not None]
        return sum(costs[1:], start=costs[0]) if costs else None

    @property
    def output_error(self) -> float | None:
        """Mean relative output error of the layers on the calibration inputs; None without calibration."""
        errors = [t.output_error for t in self.tensors if t.output_error is not None]
        return sum(errors) / len(errors) if errors else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON, totals included."""
        totals = ("dense_parameters", "parameters", "params_ratio", "compressed_model_parameters", "macs", "output_error")
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        total = {n: getattr(self, n) for n in totals}
        total["hardware"] = None if self.hardware is None else self.hardware.to_dict()
        return {**data, "tensors": [t.to_dict() for t in self.tensors], "total": total}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionReport:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: if a key is missing.
        """
        try:
            values = {f.name: data[f.name] for f in dataclasses.fields(cls)}
            return cls(**{**values, "tensors": tuple(map(TensorReport.from_dict, data["tensors"]))})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a heat_hf report: {error} is missing") from error

    def to_json(self) -> str:
        """What `heat_report.json` has."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save(self, folder: Path) -> None:
        """Write `heat_report.json` into a folder."""
        (folder / REPORT_NAME).write_text(self.to_json())

    @classmethod
    def load(cls, folder: Path) -> CompressionReport:
        """Read the report of a compressed model's folder.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is not one.
        """
        path = folder / REPORT_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {REPORT_NAME}: it is not a folder saved by heat_hf")
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str], **hub: Any) -> CompressionReport:
        """Read the report of a compressed model.

        Args:
            model: folder or Hub id.
            **hub: revision, token, cache_dir, local_files_only.

        Raises:
            OSError: if there is no such model, or it has no report.
            ValueError: if it is not one.
        """
        if Path(model).is_dir():
            return cls.load(Path(model))
        from transformers.utils.hub import cached_file

        found = cached_file(str(model), REPORT_NAME, **hub)
        assert found is not None
        return cls.load(Path(found).parent)

    def __str__(self) -> str:
        columns = ("tensor", "size", "format", "shape", "rank", "params", "ratio", "MACs/token", "EDP", "error", "output error")
        ratio = self.compressed_model_parameters / self.model_parameters
        before = f"{self.dense_parameters:,}"
        totals = [
            (f"{len(self.tensors)} matrices, before", *[""] * 4, before, "1.000", before, "×1.000"),
            ("after", *[""] * 4, f"{self.parameters:,}", f"{self.params_ratio:.3f}", f"{self.macs:,.0f}",
             _gain(self.hardware), "", _figure(self.output_error)),
            ("whole model, before", *[""] * 4, f"{self.model_parameters:,}", "1.000"),
            ("after", *[""] * 4, f"{self.compressed_model_parameters:,}", f"{ratio:.3f}"),
        ]  # fmt: skip
        rows = [t.row() for t in self.tensors]
        table = text_table(columns, [rows, totals], f"{self.base_model}, {self.tokens} tokens", left=(0, 2))
        more = sum(t.macs > t.dense_parameters for t in self.tensors)
        warning = f"\n{more} of {len(self.tensors)} matrices need more MACs than the dense layer; expect them to be slower."
        return table + self._edp_line() + (warning if more else "")

    def _edp_line(self) -> str:
        cost = self.hardware
        if cost is None:
            return ""
        return (
            f"\nEDP of the matrices on {self.accelerator} (digest {self.accelerator_digest}, operands filled up with zeros "
            f"where that pays): {cost.dense_edp * 1e6:.4g} → {cost.edp * 1e6:.4g} µJ·s, {_gain(cost)}; energy "
            f"{cost.dense_energy_pJ * 1e-9:.4g} → {cost.energy_pJ * 1e-9:.4g} mJ, time {cost.dense_seconds * 1e3:.4g} → "
            f"{cost.seconds * 1e3:.4g} ms."
        )


def _gain(cost: HardwareCost | None) -> str:
    return "" if cost is None else f"×{cost.edp / cost.dense_edp:.3f}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def report_of(
    model: PreTrainedModel,
    config: HeatConfig,
    results: Mapping[str, tuple[TensorSetting | None, Factorization | None]],
    calibration_rows: int = 0,
) -> CompressionReport:
    """The report of a model that is still dense.

    Args:
        model: the dense model.
        config: tokens, accelerator, and which linears.
        results: what every linear gets, None where it stays dense, and what its decomposition reached, None in a plan.
        calibration_rows: sequences of the calibration data.
    """
    tensors, mapper = [], reporting_mapper(config)
    linears = encoder_linears(model, config.modules, config.exclude)
    for name, (setting, found) in results.items():
        rows, columns = linears[name].out_features, linears[name].in_features
        macs = rows * columns if setting is None else setting.plan(config.tokens).macs / config.tokens
        reached = ("relative_error", "output_error", "sweeps", "converged")
        quality = {} if found is None else {key: getattr(found, key) for key in reached}
        hardware = None if mapper is None else _hardware(rows, columns, setting, config.tokens, mapper)
        tensors.append(TensorReport(name, rows, columns, setting, macs, hardware, runs(model.config, name), **quality))
    return CompressionReport(
        base_model=model.config._name_or_path or type(model).__name__,
        model_parameters=model.num_parameters(),
        tokens=config.tokens,
        tensors=tuple(tensors),
        accelerator=None if mapper is None else mapper.accelerator.name,
        accelerator_digest=None if mapper is None else mapper.accelerator.digest,
        calibration_rows=calibration_rows,
        heat_version=package_version(),
    )


def _hardware(rows: int, columns: int, setting: TensorSetting | None, tokens: int, mapper: Mapper) -> HardwareCost:
    dense = cost_linear(rows, columns, tokens, mapper)
    cost = dense if setting is None else cost_setting(setting, tokens, mapper)
    return HardwareCost(cost.energy_pJ, cost.seconds, dense.energy_pJ, dense.seconds)
