"""Strassen-Tile on a GPU: the layer, and its batched product alone, beside the dense layer; n tokens, n × n matrices.

Ten minutes at most on a data-centre GPU. On a CPU it runs with a few sizes, to see that it does.

    python -m benchmarks.strassen_gpu --output benchmarks/results/strassen_gpu.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import provenance
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.strassen_tile import tiled
from heat_hf.hardware.machine.race import race
from recipes.evidence import write_json

SIZES = (1024, 2048, 4096, 8192, 16_384)
TILE = 4
LIMIT = 540.0  # seconds; what is left then is left out


def row_of(n: int, rank: int, device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Times of one size over the dense layer's, median and quartiles."""
    x = torch.randn(1, n, n, device=device, dtype=dtype)
    dense = torch.nn.Linear(n, n, bias=False, device=device, dtype=dtype)
    layer = FactorizedLinear(TensorSetting("strassen_tile", tiled(n, n, TILE), (rank,)), False, n, device, dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    encoded = torch.randn(rank, n // TILE, n // TILE, device=device, dtype=dtype)
    calls: dict[str, Callable[[], Any]] = {
        "dense": partial(dense, x), "layer": partial(layer, x), "product": partial(torch.bmm, encoded, layer.cores[1])
    }  # fmt: skip
    with torch.inference_mode():
        seconds = race({name: partial(_finished, call, device) for name, call in calls.items()}, repeats)
    ratios = {
        name: statistics.quantiles([one / base for one, base in zip(seconds[name], seconds["dense"], strict=True)], n=4)
        for name in ("layer", "product")
    }
    teraflops = 2 * n**3 / statistics.median(seconds["dense"]) / 1e12
    return {"n": n, "rank": rank, "macs": layer.setting.plan(n).macs / n**3, "dense_TFLOPS": teraflops, **ratios}


def _finished(call: Callable[[], Any], device: torch.device) -> None:
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--ranks", type=int, nargs="+", default=[24])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    command = f"python -m benchmarks.strassen_gpu --sizes {' '.join(map(str, args.sizes))} --output FILE"
    found: dict[str, Any] = {"device": name, "dtype": "bfloat16", "rows": [], **provenance(command, "torch")}
    started = time.perf_counter()
    for n in args.sizes:
        for rank in args.ranks:
            if time.perf_counter() - started < LIMIT:
                found["rows"].append(row_of(n, rank, device, torch.bfloat16, args.repeats))
                print(found["rows"][-1], flush=True)
                write_json(args.output, found)


if __name__ == "__main__":
    main()
