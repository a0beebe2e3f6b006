"""On a GPU: a dense model, compressed ones, and fewer of its blocks, in bfloat16; eager, compiled, and in CUDA graphs.

Times are of the device, by its own events, of batches of 1 to 256 rows of 32 and 128 tokens; all candidates take turns in every
round. Beside them stands how far its outputs are from the same model's in float32. A size that is not begun within the
minutes given is left out, so the script ends in about ten minutes. Without a GPU it says so and measures nothing.

    python -m benchmarks.gpu DENSE COMPRESSED… --output benchmarks/results/gpu.json
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

import heat_hf  # noqa: F401 - registers the models
from benchmarks.alternatives import encoder_of, fewer_blocks
from benchmarks.provenance import provenance
from heat_hf.encoders.linears import model_class_of
from recipes.evidence import write_json

ROWS, TOKENS = (1, 8, 32, 128, 256), (32, 128)
WAYS: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "compiled": {"dynamic": False},
    "CUDA graphs": {"mode": "reduce-overhead", "dynamic": False},
}
WARM_UP, LEAST_SECONDS = 3, 0.02  # passes; of the passes between two events
Pass = Callable[..., Any]


def read(folder: str, device: str) -> Any:
    """A model in bfloat16, of the class that its configuration names."""
    model_class = model_class_of(AutoConfig.from_pretrained(folder))
    return model_class.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()


def ids_of(rows: int, tokens: int, device: str) -> Tensor:
    return torch.randint(1000, 20_000, (rows, tokens), generator=torch.Generator().manual_seed(0)).to(device)


def seconds_of(forward: Pass, ids: Tensor, passes: int) -> float:
    """Of one pass, by events of the device where it is a GPU."""
    if not ids.is_cuda:
        started = time.perf_counter()
        for _ in range(passes):
            forward(input_ids=ids)
        return (time.perf_counter() - started) / passes
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(passes):
        forward(input_ids=ids)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / passes


def taking_turns(candidates: dict[str, Pass], ids: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of every candidate, one figure a round."""
    passes = {}
    for name, forward in candidates.items():
        for _ in range(WARM_UP):
            forward(input_ids=ids)
        passes[name] = max(1, int(LEAST_SECONDS / max(seconds_of(forward, ids, 1), 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, forward in candidates.items():
            found[name].append(seconds_of(forward, ids, passes[name]))
    return found


def candidates(models: dict[str, Any], ways: list[str]) -> dict[str, Pass]:
    """Every model in every way; one that is compiled is a copy of its own."""
    found: dict[str, Pass] = {}
    for (name, model), way in itertools.product(models.items(), ways):
        options = WAYS[way]
        found[f"{name}, {way}"] = model if options is None else torch.compile(copy.deepcopy(model), **options)
    return found


def error(found: Tensor, exact: Tensor) -> float:
    """‖y − y′‖ / ‖y‖."""
    return float((found.float() - exact).norm() / exact.norm())


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rows of rows × tokens, model and way."""
    started = time.monotonic()
    dense = read(args.dense, args.device)
    models = {"dense": dense, **{Path(folder).name: read(folder, args.device) for folder in args.models}}
    blocks = len(encoder_of(dense).layer)
    models[f"{blocks // 2} of {blocks} blocks, untrained"] = fewer_blocks(dense, blocks // 2)
    rows, left_out = [], []
    for tokens, count in itertools.product(args.tokens, args.rows):
        if time.monotonic() - started > 60 * args.minutes:
            left_out.append([count, tokens])
            continue
        torch.compiler.reset()
        ids, taking_part = ids_of(count, tokens, args.device), candidates(models, args.ways)
        with torch.inference_mode():
            exact = {name: copy.deepcopy(model).float()(input_ids=ids)[0] for name, model in models.items()}
            apart = {name: error(one(input_ids=ids)[0], exact[name.rpartition(", ")[0]]) for name, one in taking_part.items()}
            seconds = taking_turns(taking_part, ids, args.rounds)
        before = seconds["dense, eager"]
        for name, own in seconds.items():
            ratios = [now / then for now, then in zip(own, before, strict=True)]
            low, ratio, high = statistics.quantiles(ratios, n=4)
            figures = {"seconds": statistics.median(own), "ratio": ratio, "lower": low, "upper": high, "apart": apart[name]}
            rows.append({"rows": count, "tokens": tokens, "what": name, **figures})
            print(rows[-1], flush=True)
    return {"rows": rows, "left_out": left_out, "dtype": "bfloat16", "rounds": args.rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dense", help="folder or Hub id")
    parser.add_argument("models", nargs="*", help="likewise, compressed")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=8, help="after which no size is begun (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="cpu: to try the script out")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if "eager" not in args.ways:
        parser.error("--ways must have eager, which all others are compared with")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: PyTorch sees no CUDA device here: nothing was measured")
    command = "python -m benchmarks.gpu DENSE COMPRESSED --output FILE"
    device = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    write_json(args.output, {**provenance(command, "torch", "transformers"), "device": device, **measure(args)})


if __name__ == "__main__":
    main()
