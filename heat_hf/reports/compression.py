"""What compression gained and lost: per tensor, per model, as table and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from heat_hf.encoders.checkpoints.names import REPORT_NAME
from heat_hf.encoders.checkpoints.reading import read_json, told, typed
from heat_hf.encoders.values import whole
from heat_hf.formats.size import MatrixSize
from heat_hf.formats.strassen_tile import ENCODERS, StrassenTile, sharing
from heat_hf.hardware.cost import EDP, TIME, MisfitError
from heat_hf.hardware.spec import CPU
from heat_hf.reports.compared import Compared
from heat_hf.reports.dropping import Dropped
from heat_hf.reports.embedding import EmbeddingReport
from heat_hf.reports.fidelity import Fidelity
from heat_hf.reports.refinement import Refinement
from heat_hf.reports.tensor import MOST, TensorReport, figure_text, gain_text
from heat_hf.reports.text import text_table

PARTS: Mapping[str, Any] = {
    "dropped": Dropped, "embedding": EmbeddingReport, "refinement": Refinement, "fidelity": Fidelity, "around": Compared,
}  # fmt: skip
OF_MATRICES = " of the matrices"
CHIP = "simba-l"  # the paper's accelerator


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
        embedding: the word embeddings; None where they stay dense.
        refinement: of the Transformer blocks; None where none was refined.
        fidelity: how far the model's outputs are from the dense model's; None where nothing is known of it.
        around: costs of attention's products, normalization, activations and embeddings; None where they are not known.
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
    embedding: EmbeddingReport | None = None
    refinement: Refinement | None = None
    fidelity: Fidelity | None = None
    around: Compared | None = None

    @property
    def dense_parameters(self) -> int:
        """Parameters of the matrices before."""
        return sum(t.dense_parameters for t in self.tensors)

    @property
    def parameters(self) -> int:
        """Parameters of their cores; those that layers share count once."""
        return sum(t.parameters for t in self.tensors) - self._shared

    @property
    def _shared(self) -> int:
        """What layers on tiles count of encoders that they share with one before."""
        scope = self.request.get("shared_encoders")
        if scope is None:
            return 0
        own = [t.setting for t in self.tensors if t.setting is not None and t.setting.format == StrassenTile.name]
        encoders = {s: sum(math.prod(s.core_shapes[place]) for place in ENCODERS) for s in own}
        kept = {sharing(s.shape, s.rank, scope): encoders[s] for s in own}
        return sum(encoders[s] for s in own) - sum(kept.values())

    @property
    def params_ratio(self) -> float:
        """Parameters of the cores as a fraction of the dense matrices'."""
        return self.parameters / self.dense_parameters

    @property
    def compressed_model_parameters(self) -> int:
        """Parameters of the whole model after."""
        others = sum(t.bias_lost for t in self.tensors) + (0 if self.dropped is None else self.dropped.others)
        others += 0 if self.embedding is None else self.embedding.lost
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

    @property
    def whole(self) -> Compared | None:
        """Energies and times of the whole model, one thing after the other. None where it is not known."""
        return None if self.hardware is None or self.around is None else self.hardware + self.around

    @cached_property
    def figures(self) -> list[tuple[str, str, float, float]]:
        """What is known of all matrices together, as (figure, unit, dense, now); empty without an accelerator.

        Behind it stands the EDP of the whole model, where that is known, and beside times of the machine at hand the EDP on the
        paper's accelerator, if all of it can run there.
        """
        if self.hardware is None:
            return []
        rows = [(f"{name}{OF_MATRICES}", *figure) for name, *figure in self.hardware.rows()]
        if self.whole is not None:
            (measure, *figure), *_ = self.whole.rows()
            rows.append((f"{measure} of the whole model", *figure))
        if self.request.get("accelerator") == CPU and (chip := self._on_chip()) is not None:
            (_, *figure), *_ = chip.rows()
            rows.append((f"{EDP}{OF_MATRICES} on {CHIP}", *figure))
        return rows  # type: ignore[return-value]

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
             gain_text(self.hardware), "", figure_text(self.output_error)),
            ("whole model, before", *[""] * 4, f"{self.model_parameters:,}", "1.000"),
            ("after", *[""] * 4, f"{self.compressed_model_parameters:,}", f"{ratio:.3f}"),
        ]  # fmt: skip
        rows = [t.row() for t in self.tensors]
        table = text_table(columns, [rows, totals], f"{self.base_model}, {self.tokens} tokens", left=(0, 2))
        more = sum(t.macs > t.dense_parameters for t in self.tensors)
        warning = f"\n{more} of {len(self.tensors)} matrices need more MACs than the dense layer; expect them to be slower."
        said = (self.dropped, self.embedding, self.refinement, self.fidelity)
        parts = "".join(f"\n{part}" for part in said if part is not None)
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
        (first, unit, dense, now), *others = self.figures
        names = (name.replace(OF_MATRICES, "") for name, *_ in others)
        rest = "".join(
            f"; {name} {a:.4g} → {b:.4g} {unit}, ×{b / a:.3f}" for name, (_, unit, a, b) in zip(names, others, strict=True)
        )
        padding = ", operands filled up with zeros where that pays" if self.measure == EDP else ""
        more = " and what is between them" if self.request.get("accelerator") == CPU else ""
        return (
            f"\n{first}{more} on {self.accelerator} (digest {self.accelerator_digest}{padding}): "
            f"{dense:.4g} → {now:.4g} {unit}, {cost.gain}{rest}."
        ) + self._kept_dense()

    def _kept_dense(self) -> str:
        """Where times alone are known, what is no faster factorized stays as it is."""
        kept = sum(tensor.setting is None for tensor in self.tensors)
        return f" {kept} of {len(self.tensors)} matrices stay dense." if kept and self.measure == TIME else ""
