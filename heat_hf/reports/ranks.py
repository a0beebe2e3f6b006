"""What a search for ranks found: variants of a model, in one JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heat_hf.encoders.checkpoints.reading import read_json, told
from heat_hf.encoders.checkpoints.storage import atomic_file
from heat_hf.formats.setting import TensorSetting
from heat_hf.hardware import units
from heat_hf.reports.text import text_table
from heat_hf.search.ranks.variants import Variant

RECORD_VERSION = 2


def rank_text(setting: TensorSetting | None) -> str:
    """A tensor's rank in few characters; of other formats than low rank, with the format."""
    if setting is None:
        return "dense"
    rank = "×".join(map(str, setting.rank))
    return rank if setting.format == "low_rank" else f"{setting.format} {rank}".strip()


def budget_text(variant: Variant) -> str:
    """What was limited, and to what; nothing for the paper's objective."""
    if variant.target is None or variant.budget is None:
        return ""
    what, _, ratio = variant.target.removeprefix("target_").partition("_")
    return f"{what} ≤ {variant.budget:.4g}{'' if ratio else ' s'}"


def _row(variant: Variant) -> tuple[str, ...]:
    """A variant's cells in the record's table."""
    return (
        variant.name,
        budget_text(variant),
        f"{variant.edp_ratio:.4f}",
        f"{1 / variant.edp_ratio:.2f}×",
        f"{variant.params_ratio:.3f}",
        "" if variant.seconds is None else f"{units.TIME.of(variant.seconds):.1f}",
        str(sum(setting is None for setting in variant.settings.values())),
        "" if variant.expected_divergence is None else f"{variant.expected_divergence:.4f}",
        "" if variant.predicted_accuracy is None else f"{variant.predicted_accuracy:.4f}",
    )


@dataclass(frozen=True)
class RankRecord:
    """The result of a search for ranks.

    Attributes:
        model: name of the model.
        method: how ranks were found.
        key: what the result depends on: digests of weights and accelerator, tokens, options, seed.
        variants: from the smallest budget to the largest.
        fidelity: of the accuracy predictor: rank correlations on held-out SubNets, measured and predicted accuracies; and
            `subnets`, of all SubNets the EDP as a fraction of the dense network's and the measured accuracy.
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
            self.variants[0].measure,
            "gain",
            "params",
            f"time, {units.TIME.name}",
            "dense",
            "divergence, projected",
            "predicted accuracy",
        )
        figures = [_row(variant) for variant in self.variants]
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
        if not os.path.lexists(file):
            raise FileNotFoundError(f"no rank record {file}; make one with: heat-hf search ranks MODEL --output {file}")
        with told(file, "is damaged or no rank record"):
            data = read_json(file)
            version = data.pop("version")
            if version != RECORD_VERSION:
                raise ValueError(f"{file} is a rank record of version {version}, this is {RECORD_VERSION}: search again")
            _require_figures(data["fidelity"])
            return cls(**{**data, "variants": tuple(map(Variant.from_dict, data["variants"]))})


def _require_figures(fidelity: Mapping[str, Any] | None) -> None:
    """Raise what `told` makes a sentence of if a record's fidelity is not what a search wrote."""
    if fidelity is None:
        return
    pairs = [fidelity[name] for name in ("spearman", "kendall")], *zip(fidelity["measured"], fidelity["predicted"], strict=True)
    for first, second in (*pairs, *fidelity.get("subnets", ())):
        if not all(isinstance(value, (int, float)) for value in (first, second)):
            raise ValueError(f"fidelity must hold numbers, got {first!r} and {second!r}")
