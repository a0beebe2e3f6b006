"""How time and memory of an untrained compression grow with blocks, calibration tokens and width.

Ranks and widths at an EDP gain of 5.7, refined, of models with random weights: what they answer does not matter here, and no
score is stated. Every case runs in a process of its own, so that its peak memory is its own. Cases already in the output file
are kept, so an interrupted run goes on where it stopped.

    python -m benchmarks.growth --output benchmarks/results/growth.json --figure docs/figures/growth.png
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.provenance import captioned, provenance, source_line
from recipes.evidence import write_json

GAIN = 5.7
LENGTH, ROWS = 128, 32  # tokens of a sequence, sequences of a batch
VOCABULARY = 30_522
KIB = 2**10
PANELS = {"blocks": "blocks", "tokens": "calibration tokens"}
WIDTH = 768  # of BERT-base, for the numbers of blocks and of tokens
MODELS = {384: 6, 1024: 24}  # width → blocks of MiniLM and BERT-large


@dataclass(frozen=True)
class Case:
    """A model and its calibration data.

    Attributes:
        blocks: of the model.
        tokens: of calibration data, without padding.
        hidden: width of the blocks; that of their feed-forward networks is four times as much.
    """

    blocks: int
    tokens: int
    hidden: int = WIDTH


def measure(case: Case, seed: int) -> dict[str, Any]:
    """Compress once: minutes, processor minutes, the model's memory and the most above it and its data, in GiB."""
    import psutil
    import torch
    from transformers import BertConfig, BertModel

    from heat_hf import HeatConfig
    from heat_hf.compression.factorize import factorize

    torch.manual_seed(seed)
    model = BertModel(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=case.hidden,
            num_hidden_layers=case.blocks,
            num_attention_heads=max(1, case.hidden // 64),
            intermediate_size=4 * case.hidden,
        )
    ).eval()
    ids = torch.randint(1000, VOCABULARY, (case.tokens // LENGTH, LENGTH))
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(ROWS)]
    config = HeatConfig(rank_search="sensitivity", target_edp_ratio=1 / GAIN, widths=True, seed=seed)
    held, size = psutil.Process().memory_info().rss, sum(p.nbytes for p in model.parameters())
    wall, processor = time.perf_counter(), time.process_time()
    report = factorize(model, config, batches)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    assert report.hardware is not None
    return {
        "minutes": wall / 60,
        "processor_minutes": processor / 60,
        "GiB": (peak - held) / 2**30,
        "model_GiB": size / 2**30,
        "edp_ratio": report.hardware.ratio,
        "threads": torch.get_num_threads(),
    }


def run(case: Case, seed: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.growth", "--seed", str(seed), "--case", json.dumps(asdict(case))]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {**asdict(case), **json.loads(answer.splitlines()[-1])}


def line(rows: list[dict[str, Any]], over: str, what: str) -> tuple[float, float, float]:
    """Slope, intercept and R² of a straight line."""
    x, y = [row[over] for row in rows], [row[what] for row in rows]
    slope, intercept = statistics.linear_regression(x, y)
    mean = statistics.mean(y)
    spread = sum((value - mean) ** 2 for value in y)
    left = sum((value - slope * at - intercept) ** 2 for at, value in zip(x, y, strict=True))
    return slope, intercept, 1 - left / spread if spread else 1.0


def panels(data: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Cases of one width over blocks at the tokens, and over tokens at the blocks, that are held fixed there."""
    rows = [row for row in data["rows"] if row["hidden"] == WIDTH]
    fixed = {"blocks": ("tokens", data["fixed_tokens"]), "tokens": ("blocks", data["fixed_blocks"])}
    return {
        over: sorted((row for row in rows if row[name] == value), key=lambda row: row[over])
        for over, (name, value) in fixed.items()
    }


def draw(data: dict[str, Any], path: Path) -> None:
    """Minutes over blocks and over tokens, with memory on the right."""
    import matplotlib.pyplot as plt

    plt.rcParams["font.size"] = 13
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for axis, (over, rows) in zip(axes, panels(data).items(), strict=True):
        x = [row[over] for row in rows]
        slope, intercept, fit = line(rows, over, "minutes")
        ends = [0, max(x)]
        axis.plot(x, [row["minutes"] for row in rows], "o", color="C0")
        axis.plot(ends, [intercept + slope * end for end in ends], "--", color="C0", label=f"straight line, R² = {fit:.3f}")
        axis.set(xlabel=PANELS[over], ylabel="minutes", xlim=(0, None), ylim=(0, None))
        axis.set_xticks([0, *x], [f"{value:,}" for value in [0, *x]])
        memory = axis.twinx()
        memory.plot(x, [row["GiB"] for row in rows], "s", color="C1", markersize=9, markerfacecolor="none")
        memory.set_ylabel("GiB above the model", color="C1")
        memory.set_ylim(0, None)
        fixed = f"{data['fixed_tokens']:,} tokens" if over == "blocks" else f"{data['fixed_blocks']} blocks"
        axis.set_title(fixed)
        axis.legend(loc="lower right")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def table(data: dict[str, Any]) -> str:
    """A row for each case, over the straight lines through minutes."""
    lines = [
        "| width | blocks | calibration tokens | minutes | processor minutes | memory, GiB | model, GiB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(data["rows"], key=lambda row: (row["hidden"], row["blocks"], row["tokens"])):
        figures = " | ".join(f"{row[name]:.1f}" for name in ("minutes", "processor_minutes", "GiB", "model_GiB"))
        lines.append(f"| {row['hidden']:,} | {row['blocks']} | {row['tokens']:,} | {figures} |")
    fits = {over: line(rows, over, "minutes")[2] for over, rows in panels(data).items()}
    caption = (
        f"Random weights; ranks and widths at {data['gain']:g}×, refined. Memory: above the model. Straight "
        f"lines at width {WIDTH}: R² {fits['blocks']:.3f} over blocks, {fits['tokens']:.3f} over tokens."
    )
    return captioned(lines, caption, source_line(data))


def cases(args: argparse.Namespace) -> list[Case]:
    """What is asked for, the quickest first."""
    wanted = {(blocks, args.fixed_tokens) for blocks in args.blocks} | set(product([args.fixed_blocks], args.tokens))
    same = [Case(blocks, tokens) for blocks, tokens in sorted(wanted, key=lambda pair: pair[0] * pair[1])]
    return [*same, *(Case(blocks, args.fixed_tokens, hidden) for hidden, blocks in MODELS.items() if hidden in args.widths)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="*", default=[3, 6, 12])
    parser.add_argument("--tokens", type=int, nargs="*", default=[2**15, 2**16, 2**17])
    parser.add_argument("--fixed-tokens", type=int, default=2**15, help="for the numbers of blocks (default: %(default)s)")
    parser.add_argument("--fixed-blocks", type=int, default=3, help="for the numbers of tokens (default: %(default)s)")
    parser.add_argument("--widths", type=int, nargs="*", default=list(MODELS), choices=MODELS, help="beside BERT-base's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        print(json.dumps(measure(Case(**args.case), args.seed)))
        return
    if args.output is None:
        parser.error("--output is needed")
    command = f"python -m benchmarks.growth --seed {args.seed} --output FILE --figure FILE"
    data = json.loads(args.output.read_text()) if args.output.exists() else {"rows": []}
    data |= {**provenance(command, "torch", "transformers"), "gain": GAIN}
    data |= {"fixed_tokens": args.fixed_tokens, "fixed_blocks": args.fixed_blocks}
    for case in cases(args):
        known = [{name: row[name] for name in asdict(case)} for row in data["rows"]]
        if asdict(case) not in known:
            data["rows"].append(run(case, args.seed))
            write_json(args.output, data)
            print(data["rows"][-1], flush=True)
    if args.figure is not None:
        draw(data, args.figure)


if __name__ == "__main__":
    main()
