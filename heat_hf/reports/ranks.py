"""What a search for ranks found: variants of a model, in one JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heat_hf.compression.config import TARGETS, HeatConfig
from heat_hf.encoders.checkpoints.storage import atomic_file
from heat_hf.formats.setting import TensorSetting
from heat_hf.reports.text import text_table
from heat_hf.search.ranks.allocation import BudgetKind
from heat_hf.search.ranks.space import Settings

RECORD_VERSION = 1


def rank_text(setting: TensorSetting | None) -> str:
    """A tensor's rank in few characters; of other formats than low rank, with the format."""
    if setting is None:
        return "dense"
    rank = "×".join(map(str, setting.rank))
    return rank if setting.format == "low_rank" else f"{setting.format} {rank}"


@dataclass(frozen=True)
class Variant:
    """One network of a search.

    Attributes:
        name: "HEAT-a1", "HEAT-a2", …, from the smallest budget to the largest.
        method, decomposition: of the search, as in its configuration.
        kind: what was limited, "edp", "seconds" or "parameters"; None for the paper's objective, which limits nothing.
        budget: the limit as asked: a fraction of the dense network's, or seconds.
        settings: what every tensor gets; None for the dense matrix.
        edp_ratio, params_ratio: of all tensors together, as fractions of the dense ones; 1 for an EDP without an accelerator.
        seconds: of one forward pass of all tensors on the accelerator.
        expected_divergence: of the model's outputs from the dense model's, to second order; of the method "sensitivity".
        predicted_accuracy: of the method "supernet", with the SuperNet's cores.
    """

    name: str
    method: str
    decomposition: str
    kind: BudgetKind | None
    budget: float | None
    settings: Settings
    edp_ratio: float
    params_ratio: float
    seconds: float
    expected_divergence: float | None = None
    predicted_accuracy: float | None = None

    def configure(self, config: HeatConfig) -> HeatConfig:
        """A configuration as it would ask for this variant alone."""
        own: dict[str, Any] = {name: self.budget if kind == self.kind else None for name, kind in TARGETS.items()}
        own |= {"decomposition": self.decomposition, "rank_search": self.method, "rank": None, "shape": None}
        return dataclasses.replace(config, **own)

    def row(self) -> tuple[str, ...]:
        """Cells of the record's table."""
        return (
            self.name,
            "" if self.budget is None else f"{self.kind} ≤ {self.budget:.4g}",
            f"{self.edp_ratio:.4f}",
            f"{1 / self.edp_ratio:.2f}×",
            f"{self.params_ratio:.3f}",
            f"{self.seconds * 1e6:.1f}",
            str(sum(setting is None for setting in self.settings.values())),
            "" if self.expected_divergence is None else f"{self.expected_divergence:.5f}",
            "" if self.predicted_accuracy is None else f"{self.predicted_accuracy:.4f}",
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        settings = {name: None if setting is None else setting.to_dict() for name, setting in self.settings.items()}
        return {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, "settings": settings}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Variant:
        """Read what `to_dict` wrote."""
        settings = {
            name: None if setting is None else TensorSetting.from_dict(setting) for name, setting in data["settings"].items()
        }
        return cls(**{**data, "settings": settings})


@dataclass(frozen=True)
class RankRecord:
    """The result of a search for ranks.

    Attributes:
        model: name of the model.
        method: how ranks were found.
        key: what the result depends on: digests of weights and accelerator, tokens, options, seed.
        variants: from the smallest budget to the largest.
        fidelity: of the accuracy predictor: rank correlations on held-out SubNets, measured and predicted accuracies.
        seconds: what the search took, not counting earlier parts of an interrupted one.
    """

    model: str
    method: str
    key: Mapping[str, Any]
    variants: tuple[Variant, ...]
    fidelity: Mapping[str, Any] | None = None
    seconds: float = 0.0

    def variant(self, name: str) -> Variant:
        """A variant by its name.

        Raises:
            ValueError: if there is none; the message lists those there are.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise ValueError(f"no variant {name!r}; there are {', '.join(v.name for v in self.variants)}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**data, "variants": [v.to_dict() for v in self.variants], "version": RECORD_VERSION}

    def __str__(self) -> str:
        columns = (
            "variant",
            "budget",
            "EDP",
            "gain",
            "params",
            "time, µs",
            "dense",
            "expected divergence",
            "predicted accuracy",
        )
        figures = [v.row() for v in self.variants]
        table = text_table(columns, [figures], f"{self.model}, ranks by {self.method}")
        names = list(self.variants[0].settings)
        ranks = [(name, *(rank_text(v.settings[name]) for v in self.variants)) for name in names]
        note = ""
        if self.fidelity is not None:
            count, spearman, kendall = (self.fidelity[name] for name in ("networks", "spearman", "kendall"))
            note = f"\nAccuracy predictor on {count} held-out SubNets: Spearman {spearman:.3f}, Kendall {kendall:.3f}."
        return f"{table}\n{text_table(('tensor', *(v.name for v in self.variants)), [ranks])}{note}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; it appears whole or not at all."""
        with atomic_file(path) as file:
            file.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RankRecord:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or not a record.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no rank record {file}; make one with: heat-hf search ranks MODEL --output {file}")
        try:
            data = json.loads(file.read_text())
            version = data.pop("version")
            if version != RECORD_VERSION:
                raise ValueError(f"{file} is a rank record of version {version}, this is {RECORD_VERSION}: search again")
            return cls(**{**data, "variants": tuple(map(Variant.from_dict, data["variants"]))})
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is damaged or no rank record: {error}") from error
