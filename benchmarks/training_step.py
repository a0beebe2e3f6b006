"""A training step and loading of compressed classifiers, beside the dense one's.

A step: forward, backward, AdamW over all parameters, 8 × 128 tokens. All take turns in one race.

    python -m benchmarks.training_step --dense FOLDER --compressed NAME=FOLDER … --output benchmarks/results/training_step.json
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

import heat_hf  # noqa: F401
from benchmarks.provenance import provenance
from heat_hf.hardware.machine.race import race
from recipes.evidence import write_json

BATCH, LENGTH = 8, 128


def step(model: Any) -> Callable[[], None]:
    """A training step of a model, again and again."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (BATCH, LENGTH), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(BATCH) % 2}

    def run() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def ratios(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Quartiles of each one's time over the dense one's of the same round, and the dense one's median."""
    times = race(calls, repeats)
    own = {name: [a / b for a, b in zip(seconds, times["dense"], strict=True)] for name, seconds in times.items()}
    return {
        "dense_seconds": statistics.median(times["dense"]),
        "ratios": {name: statistics.quantiles(values, n=4) for name, values in own.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dense", required=True)
    parser.add_argument("--compressed", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/training_step.json"))
    args = parser.parse_args()
    folders = {"dense": args.dense} | dict(own.split("=", 1) for own in args.compressed)
    loads = {name: partial(AutoModelForSequenceClassification.from_pretrained, folder) for name, folder in folders.items()}
    steps = {name: step(load()) for name, load in loads.items()}
    print("timing", flush=True)
    found = {"step": ratios(steps, args.repeats), "load": ratios(loads, args.repeats)}
    command = "python -m benchmarks.training_step --dense FOLDER --compressed NAME=FOLDER … --output FILE"
    about = {**provenance(command, "torch", "transformers"), "threads": torch.get_num_threads()}
    write_json(args.output, {**about, **found})


if __name__ == "__main__":
    main()
