"""A search for ranks as a page: its networks on the Pareto view, every matrix's rank, and how far predictions go right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from heat_hf.encoders.linears import block_of, kind_of
from heat_hf.formats.setting import TensorSetting
from heat_hf.hardware import units
from heat_hf.reports.figures.style import COLOURS
from heat_hf.reports.networks import Network, networks_of
from heat_hf.reports.page import fill
from heat_hf.reports.ranks import RankRecord, budget_text


def rank_page(record: RankRecord, beside: Sequence[Network] = ()) -> str:
    """One HTML file, with everything it needs in it.

    Args:
        record: of a search.
        beside: other networks of the same dense model, for the Pareto view.
    """
    return fill("ranks.html", page_data(record, beside))


def page_data(record: RankRecord, beside: Sequence[Network] = ()) -> dict[str, Any]:
    """What the page shows. See `rank_page`."""
    first, fidelity = record.variants[0], record.fidelity
    return {
        "name": record.model,
        "method": record.method,
        "decomposition": first.decomposition,
        "measure": first.measure,
        "tokens": record.key.get("tokens"),
        "digest": record.key.get("accelerator_digest"),
        "seed": record.key.get("seed"),
        "seconds": record.seconds,
        "time": units.TIME.name,
        "colours": list(COLOURS),
        "variants": [
            {
                "name": v.name,
                "budget": budget_text(v),
                "edp": v.edp_ratio,
                "params": v.params_ratio,
                "time": None if v.seconds is None else units.TIME.of(v.seconds),
                "dense": sum(setting is None for setting in v.settings.values()),
                "divergence": v.expected_divergence,
                "accuracy": v.predicted_accuracy,
            }
            for v in record.variants
        ],
        "tensors": [_tensor(record, name) for name in first.settings],
        "networks": [
            {**_network(network), "own": own}
            for own, some in ((True, networks_of(record)), (False, beside))
            for network in some
        ],
        "subnets": [] if fidelity is None else fidelity.get("subnets", []),
        "fidelity": None
        if fidelity is None
        else {
            "spearman": fidelity["spearman"],
            "kendall": fidelity["kendall"],
            "pairs": list(zip(fidelity["measured"], fidelity["predicted"], strict=True)),
        },
    }


def _tensor(record: RankRecord, name: str) -> dict[str, Any]:
    settings, block = [variant.settings[name] for variant in record.variants], block_of(name)
    return {
        "name": name,
        "block": re.sub(r"\D*(\d+)$", r"\1", block) if block != name else "",
        "kind": kind_of(name),
        "settings": [_setting(setting) for setting in settings],
    }


def _setting(setting: TensorSetting | None) -> dict[str, Any] | None:
    if setting is None:
        return None
    rank = "×".join(map(str, setting.rank))
    return {"format": setting.format, "shape": str(setting.shape), "rank": rank, "params": setting.ratio}


def _network(network: Network) -> dict[str, Any]:
    return {
        "name": network.name,
        "series": network.series,
        "edp": network.edp_ratio,
        "params": network.params_ratio,
        "divergence": network.divergence,
        "accuracy": network.predicted_accuracy,
        "scores": dict(network.scores),
    }
