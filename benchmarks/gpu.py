"""Dense and compressed classifiers on a GPU in bfloat16: CUDA events around CUDA graphs of torch.compile, batch 1 to 256.

Takes ten minutes at most; without a GPU it says so in a sentence and does nothing.

    python -m benchmarks.gpu --dense FOLDER --compressed NAME=FOLDER … --output benchmarks/results/gpu.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

import heat_hf  # noqa: F401
from benchmarks.provenance import captioned, provenance, source_line
from recipes.evidence import write_json

BATCHES = (1, 8, 32, 128, 256)
LENGTH = 128
WARM, REPEATS = 5, 30
MINUTES = 9
MODES = {"eager": None, "compiled": "reduce-overhead"}


def seconds(run: Callable[[], object]) -> list[float]:
    """Of every repetition, by CUDA events."""
    for _ in range(WARM):
        run()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPEATS)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e-3 for start, end in events]


def measured(folders: dict[str, str], deadline: float) -> list[dict[str, Any]]:
    """Every model and mode at every batch size, those first that are alike but for the model."""
    models = {
        name: AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).to("cuda").eval()
        for name, folder in folders.items()
    }
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        ids = torch.randint(1000, 20000, (batch, LENGTH), device="cuda", generator=torch.Generator("cuda").manual_seed(0))
        mask = torch.ones_like(ids)
        for mode, how in MODES.items():
            for name, model in models.items():
                if time.monotonic() > deadline:
                    print("no time is left: larger batches are missing", file=sys.stderr)
                    return rows
                run = model if how is None else torch.compile(model, mode=how, dynamic=False)
                with torch.inference_mode():
                    own = seconds(lambda run=run, ids=ids, mask=mask: run(input_ids=ids, attention_mask=mask))
                rows.append({"model": name, "mode": mode, "batch": batch, "seconds": statistics.quantiles(own, n=4)})
                print(rows[-1], flush=True)
    return rows


def table(data: dict[str, Any]) -> str:
    """A row for each model and mode: its time, and that over the dense model's in the same mode."""
    times = {(row["model"], row["mode"], row["batch"]): row["seconds"][1] for row in data["rows"]}
    lines = [f"| model | mode | {' | '.join(map(str, BATCHES))} |", "|---|---|" + "---:|" * len(BATCHES)]
    for name, mode in dict.fromkeys(key[:2] for key in times):
        own = [(times.get((name, mode, batch)), times.get(("dense", mode, batch))) for batch in BATCHES]
        cells = [f"{1e3 * now:.2f} ms, {now / dense:.2f}" if now and dense else "" for now, dense in own]
        lines.append(f"| {name} | {mode} | {' | '.join(cells)} |")
    caption = (
        f"Batch × {LENGTH} tokens in bfloat16 on {data['gpu']}; medians of {REPEATS} passes by CUDA events, and over the dense "
        "model's in the same mode. Compiled: with CUDA graphs."
    )
    return captioned(lines, caption, source_line(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dense", required=True)
    parser.add_argument("--compressed", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu: this machine has no GPU that PyTorch can use; nothing was measured")
        return
    folders = {"dense": args.dense} | dict(own.split("=", 1) for own in args.compressed)
    rows = measured(folders, time.monotonic() + 60 * MINUTES)
    command = "python -m benchmarks.gpu --dense FOLDER --compressed NAME=FOLDER … --output FILE"
    write_json(args.output, {**provenance(command, "torch"), "gpu": torch.cuda.get_device_name(), "rows": rows})


if __name__ == "__main__":
    main()
