"""The same searches and trainings by one process and by several: what it takes, and whether the same comes out.

Shapes of all-MiniLM-L6-v2 by one process, by joblib's processes, by a Dask cluster, and by one that loses a worker half-way. A
MiniLM classifier of low rank distilled, and its SuperNet trained: by one process, by two at the same global batch, and by two
whose last checkpoint one process goes on from.

    python -m benchmarks.processes --data DATA --classifier FOLDER --output benchmarks/results/processes.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import joblib
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from benchmarks.provenance import captioned, provenance, source_line
from benchmarks.untrained import sentences
from heat_hf import DistillationArguments, DistillationTrainer, HeatConfig, ShapeSearch, search_shapes
from heat_hf.compression.factorize import factorize
from heat_hf.compression.job import Job
from heat_hf.encoders.batches import encode_rows
from heat_hf.search.ranks.methods import get_rank_search
from heat_hf.search.ranks.supernet import RankSuperNet, SuperNetArguments, SuperNetTrainer
from heat_hf.search.ranks.supernet_search import supernet_model, supernet_space
from recipes.demo.run import find_model
from recipes.evidence import write_json

SEARCH = ShapeSearch(formats=("low_rank", "ttm", "tucker"), orders=(2, 3), top_k=2)
BATCH, STEPS = 32, 24
ONE, SEVERAL = "one process", "two processes"


def shapes(how: str, folder: Path) -> dict[str, Any]:
    """A search's time, and the digest of its table."""
    import distributed

    model, output = AutoModel.from_pretrained(find_model(online=False)), folder / f"{how}.parquet"

    def run(**options: Any) -> float:
        started = time.perf_counter()
        search_shapes(model, tokens=128, search=SEARCH, output=output, **options)
        return time.perf_counter() - started

    if "Dask" not in how:
        seconds = run(workers=1 if how == ONE else 2)
    else:
        options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
        with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
            if "loses" in how:
                lose_one(client, output.with_name(f"{output.name}.partial") / "part-0.jsonl")
            with joblib.parallel_config(backend="dask"):
                seconds = run()
    return {"seconds": seconds, "result": hashlib.sha256(output.read_bytes()).hexdigest()[:16]}


def lose_one(client: Any, journal: Path) -> None:
    """Kill a worker once a third of the shapes, about, are in the journal."""

    def watch() -> None:
        while not (journal.exists() and journal.read_text().count("\n[") > 60):
            time.sleep(0.05)
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def launched(processes: int, what: str, folder: Path, args: argparse.Namespace, *options: str) -> dict[str, Any]:
    """A training by so many processes: its losses, and the seconds of a step."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    given = ["--data", str(args.data), "--classifier", args.classifier, "--train", what, str(folder), *options]
    # All cores in either case.
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)) // processes)}
    subprocess.run([*launch, "-m", "benchmarks.processes", *given], check=True, env=environment)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def train(args: argparse.Namespace) -> None:
    """What a launched process does: train, and the first of them writes down how it went."""
    what, folder = args.train[0], Path(args.train[1])
    trainer = TRAINERS[what](args, folder / "run")
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(folder / "run" / f"checkpoint-{STEPS // 2}") if args.resume else None)
    seconds = time.perf_counter() - started
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        write_json(folder / "found.json", {"losses": losses, "seconds": seconds})


def texts_of(args: argparse.Namespace) -> list[dict[str, str]]:
    """For all steps."""
    return [{"text": text} for text in sentences(args.data / "sst2" / "train.parquet", "sentence", 0)[: BATCH * STEPS]]


def options_of(run: Path) -> dict[str, Any]:
    """Of Trainer."""
    rows = BATCH // int(os.environ["WORLD_SIZE"])
    return {
        "output_dir": str(run), "max_steps": STEPS, "per_device_train_batch_size": rows, "learning_rate": 3e-4,
        "logging_steps": 1, "save_steps": STEPS // 2, "save_total_limit": 2, "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip


def distillation(args: argparse.Namespace, run: Path) -> Any:
    """A trainer of a student."""
    tokenizer = AutoTokenizer.from_pretrained(args.classifier)
    student, teacher = (AutoModelForSequenceClassification.from_pretrained(args.classifier) for _ in range(2))
    factorize(student, HeatConfig(target_params_ratio=0.4, activation_aware=False, refine_steps=0))
    rows = encode_rows(texts_of(args), tokenizer, 128)
    return DistillationTrainer(
        student, teacher, DistillationArguments(**options_of(run)), rows, DataCollatorWithPadding(tokenizer)
    )


def supernet(args: argparse.Namespace, run: Path) -> Any:
    """A trainer of a SuperNet."""
    tokenizer = AutoTokenizer.from_pretrained(args.classifier)
    model = AutoModelForSequenceClassification.from_pretrained(args.classifier)
    problem = Job(model, HeatConfig(rank_search="supernet", target_edp_ratio=0.2, sequence_length=128)).problem
    arguments = SuperNetArguments(**options_of(run), warmup_steps=2)
    shapes = {size: get_rank_search("supernet").shape(problem, "low_rank", size) for size in problem.sizes}
    space = supernet_space(problem, shapes, arguments)
    net = RankSuperNet(supernet_model(problem, space), space, arguments.stabilizers)
    rows, collator = encode_rows(texts_of(args), tokenizer, 128), DataCollatorWithPadding(tokenizer)
    return SuperNetTrainer(net, model, args=arguments, train_dataset=rows, data_collator=collator)


TRAINERS = {"distillation": distillation, "SuperNet": supernet}


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for how in (ONE, f"{SEVERAL} (joblib)", "Dask, two workers", "Dask, loses one of two"):
            rows.append({"what": "search of shapes", "how": how, **shapes(how, Path(folder))})
            print(rows[-1], flush=True)
        for what in TRAINERS:
            one, two = (launched(count, what, Path(folder) / f"{what}-{count}", args) for count in (1, 2))
            again = launched(1, what, Path(folder) / f"{what}-2", args, "--resume")
            for how, found in ((ONE, one), (SEVERAL, two), (f"{SEVERAL}, the second half by one", again)):
                apart = max(abs(a - b) / b for a, b in zip(found["losses"], one["losses"], strict=True))
                rows.append({"what": what, "how": how, "seconds": found["seconds"], "apart": apart})
                print(rows[-1], flush=True)
    return rows


def table(data: dict[str, Any]) -> str:
    """Seconds of each way, over the first's, and whether the result is the first's."""
    lines = ["| what | by | seconds | result |", "|---|---|---:|---|"]
    first: dict[str, dict[str, Any]] = {}
    for row in data["rows"]:
        one = first.setdefault(row["what"], row)
        if "apart" in row:
            result = f"losses within {row['apart']:.0e}" if row is not one else ""
        else:
            result = ("the same bytes" if row["result"] == one["result"] else "other bytes") if row is not one else ""
        lines.append(f"| {row['what']} | {row['how']} | {row['seconds']:.0f} | {result} |")
    caption = (
        f"MiniLM. Trainings: {STEPS} steps of {BATCH} sentences, half of them in the last row of each, without start-up. "
        "Losses: of every step, beside those of one process with two threads."
    )
    return captioned(lines, caption, source_line(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/processes.json"))
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train is not None:
        train(args)
        return
    command = "python -m benchmarks.processes --data DATA --classifier FOLDER --output FILE"
    write_json(args.output, {**provenance(command, "torch", "joblib", "distributed"), "rows": measured(args)})


if __name__ == "__main__":
    main()
