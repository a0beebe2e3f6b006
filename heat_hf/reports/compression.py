"""What compression gained and lost: per tensor, per model, as table and as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from heat_hf.encoders.checkpoints.names import REPORT_NAME
from heat_hf.encoders.checkpoints.reading import read_json, told, typed
from heat_hf.encoders.values import whole
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.cost import EDP, TIME, MisfitError
from heat_hf.hardware.spec import CPU
from heat_hf.reports.compared import Compared
from heat_hf.reports.dropping import Dropped
from heat_hf.reports.fidelity import Fidelity
from heat_hf.reports.refinement import Refinement
from heat_hf.reports.text import text_table

PARTS: Mapping[str, Any] = {"dropped": Dropped, "refinement": Refinement, "fidelity": Fidelity}
CHIP = "simba-l"  # the paper's accelerator
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
            f"{self.parameters:,}", f"{self.parameters / self.dense_parameters:.3f}", f"{self.macs:,.0f}", _gain(self.hardware),
            _figure(self.relative_error), _figure(self.output_error),
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


@dataclass(frozen=True)
class CompressionReport:
    """All matrices that compression chose for, and the model's size around them.

    Attributes:
        base_model: name of the dense checkpoint: Hub id, or a folder's own name.
        model_parameters: parameters of the dense model, embeddings and heads included.
        tokens: number of tokens for which contraction paths were chosen and MACs counted.
        tensors: the matrices.
        accelerator: name of the accelerator that hardware costs are for; None without them.
        accelerator_digest: its digest.
        calibration_rows: sequences of the calibration data; 0 if there was none.
        heat_version: version of heat_hf.
        request: the options that were asked for, as JSON; empty where it is not known.
        license: that the dense checkpoint's own card states, if it was in a folder.
        dropped: Transformer blocks that went; None where all stay.
        refinement: of the Transformer blocks; None where none was refined.
        fidelity: how far the model's outputs are from the dense model's; None where nothing is known of it.
    """

    base_model: str
    model_parameters: int
    tokens: int
    tensors: tuple[TensorReport, ...]
    accelerator: str | None = None
    accelerator_digest: str | None = None
    calibration_rows: int = 0
    heat_version: str = ""
    request: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    license: str | None = None
    dropped: Dropped | None = None
    refinement: Refinement | None = None
    fidelity: Fidelity | None = None

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
        others = sum(t.bias_lost for t in self.tensors) + (0 if self.dropped is None else self.dropped.others)
        return self.model_parameters - self.dense_parameters + self.parameters - others

    @property
    def macs(self) -> float:
        """Multiply-accumulates a token in the factorized layers."""
        return sum(t.macs for t in self.tensors)

    @property
    def hardware(self) -> Compared | None:
        """Energies and times of all runs of all matrices, summed. None without an accelerator."""
        costs = [t.hardware for t in self.tensors for _ in range(t.runs) if t.hardware is not None]
        return sum(costs[1:], start=costs[0]) if costs else None

    @cached_property
    def figures(self) -> list[tuple[str, str, float, float]]:
        """What is known of all matrices together, as (figure, unit, dense, now); empty without an accelerator.

        Beside times of the machine at hand stands the EDP on the paper's accelerator, if all of it can run there.
        """
        if self.hardware is None:
            return []
        rows = self.hardware.rows()
        if self.request.get("accelerator") == CPU and (chip := self._on_chip()) is not None:
            (_, *figure), *_ = chip.rows()
            rows.append((f"{EDP} on {CHIP}", *figure))  # type: ignore[arg-type]
        return rows

    def _on_chip(self) -> Compared | None:
        from heat_hf.hardware.analytic import cost_model

        costs = cost_model(CHIP)
        try:
            pairs = [
                Compared(dense if t.setting is None else costs.setting(t.setting, self.tokens), dense) * t.runs
                for t in self.tensors
                for dense in [costs.linear(MatrixSize(t.rows, t.columns), self.tokens)]
            ]
        except MisfitError:
            return None
        return sum(pairs[1:], start=pairs[0])

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
        parts = {name: None if (part := getattr(self, name)) is None else part.to_dict() for name in PARTS}
        return {**data, "tensors": [t.to_dict() for t in self.tensors], **parts, "total": total}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionReport:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: if a key is missing, a value is of another kind, or totals are not those of the tensors.
        """
        try:
            values = {f.name: data[f.name] for f in dataclasses.fields(cls)}
            whole("model_parameters", data["model_parameters"], 1, MOST)
            whole("tokens", data["tokens"], 1, MOST)
            whole("calibration_rows", data["calibration_rows"], 0, MOST)
            for name in ("base_model", "accelerator", "accelerator_digest", "heat_version"):
                typed(data, name, str)
            tensors = tuple(map(TensorReport.from_dict, data["tensors"]))
            parts = {name: None if data[name] is None else part.from_dict(data[name]) for name, part in PARTS.items()}
            report = cls(**{**values, "tensors": tensors, **parts})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a heat_hf report: {error} is missing") from error
        if json.loads(report.to_json()) != data:
            raise ValueError("its totals are not those of its tensors")
        return report

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
        if not os.path.lexists(path):
            raise FileNotFoundError(f"{folder} has no {REPORT_NAME}: it is not a folder saved by heat_hf")
        with told(path, "is damaged"):
            return cls.from_dict(read_json(path))

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

        file = cached_file(str(model), REPORT_NAME, **hub)
        assert file is not None
        return cls.load(Path(file).parent)

    @property
    def measure(self) -> str:
        """What the hardware columns compare, see `Compared.measure`; "EDP" without an accelerator, too."""
        return EDP if self.hardware is None else self.hardware.measure

    def __str__(self) -> str:
        columns = ("tensor", "size", "format", "shape", "rank", "params", "ratio", "MACs/token", self.measure, "error",
                   "output error")  # fmt: skip
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
        parts = "".join(f"\n{part}" for name in PARTS if (part := getattr(self, name)) is not None)
        few = self.few_tokens and f"\n{self.few_tokens}"
        return table + self._hardware_line() + parts + (warning if more else "") + few

    @property
    def few_tokens(self) -> str:
        """A sentence if calibration data has fewer tokens than a layer has inputs; errors on it would say nothing."""
        blind = sum(bool(t.relative_error) and t.output_error is None for t in self.tensors)
        if not self.calibration_rows or not blind:
            return ""
        return (
            f"The calibration data has fewer tokens than {blind} of {len(self.tensors)} matrices have inputs; "
            "their output errors would say nothing. Take more rows."
        )

    def _hardware_line(self) -> str:
        cost = self.hardware
        if cost is None:
            return ""
        (first, *figure), *others = self.figures
        unit, dense, now = figure
        rest = "".join(f"{', ' if i else '; '}{name} {a:.4g} → {b:.4g} {unit}" for i, (name, unit, a, b) in enumerate(others))
        padding = ", operands filled up with zeros where that pays" if first == EDP else ""
        more = " and what is between them" if self.request.get("accelerator") == CPU else ""
        return (
            f"\n{first} of the matrices{more} on {self.accelerator} (digest {self.accelerator_digest}{padding}): "
            f"{dense:.4g} → {now:.4g} {unit}, {cost.gain}{rest}."
        ) + self._kept_dense()

    def _kept_dense(self) -> str:
        """Where times alone are known, what is no faster factorized stays as it is."""
        kept = sum(tensor.setting is None for tensor in self.tensors)
        return f" {kept} of {len(self.tensors)} matrices stay dense." if kept and self.measure == TIME else ""


def _gain(cost: Compared | None) -> str:
    return "" if cost is None else cost.gain


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
