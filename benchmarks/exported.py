"""Dense and compressed models in PyTorch, in ONNX Runtime, and in int8: score, size, and time side by side.

python -m benchmarks.exported --data DATA --dense FOLDER --compressed FOLDER --task TASK --test FILE --output FILE
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

import heat_hf  # noqa: F401
from benchmarks.provenance import provenance
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.tasks import TASKS, evaluate_task
from heat_hf.hardware.machine.race import race
from heat_hf.integrations.onnx import OnnxModel, export_onnx
from recipes.evidence import write_json

SIZES = ((8, 128), (1, 32))


def ratios(models: Mapping[str, Any], peer: str, rows: int, tokens: int, repeats: int) -> dict[str, list[float]]:
    """Quartiles of the time of a forward pass over the peer's of the same round."""
    ids = torch.randint(1000, 20000, (rows, tokens), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        times = race({name: partial(model, **inputs) for name, model in models.items()}, repeats)
    return {
        name: statistics.quantiles([one / other for one, other in zip(seconds, times[peer], strict=True)], n=4)
        for name, seconds in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dense", required=True)
    parser.add_argument("--compressed", required=True)
    parser.add_argument("--task", choices=TASKS, default="sentence-similarity")
    parser.add_argument("--test", default="stsb/test.parquet")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/exported.json"))
    args = parser.parse_args()
    task = TASKS[args.task]
    rows = load_rows(args.data / args.test)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.dense)
    models: dict[str, Any] = {}
    sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, folder in (("dense", args.dense), ("HEAT", args.compressed)):
            model = task.model_class.from_pretrained(folder).eval()
            models[f"{kind}, PyTorch"] = model
            sizes[f"{kind}, PyTorch"] = sum(value.nbytes for value in model.state_dict().values()) / 2**20
            for label, int8 in (("ONNX Runtime", False), ("ONNX Runtime int8", True)):
                target = Path(scratch) / f"{kind}-{int8}"
                sizes[f"{kind}, {label}"] = export_onnx(model, tokenizer, target, int8).stat().st_size / 2**20
                models[f"{kind}, {label}"] = OnnxModel(target).eval()
        scores = {name: evaluate_task(model, tokenizer, args.task, rows)[task.main] for name, model in models.items()}
        print("timing", flush=True)
        times = {f"{a} × {b}": ratios(models, "dense, PyTorch", a, b, args.repeats) for a, b in SIZES}
    command = "python -m benchmarks.exported --data DATA --dense FOLDER --compressed FOLDER "
    command += f"--task {args.task} --test {args.test} --repeats {args.repeats} --output FILE"
    figures = {
        name: {"score": scores[name], "MiB": sizes[name], "time": {size: quartiles[name] for size, quartiles in times.items()}}
        for name in models
    }
    about = {
        "task": args.task,
        "test": args.test,
        "rows_count": len(rows),
        "metric": task.main,
        "threads": torch.get_num_threads(),
    }
    write_json(args.output, {**provenance(command, "torch", "transformers", "onnxruntime"), **about, "models": figures})


if __name__ == "__main__":
    main()
