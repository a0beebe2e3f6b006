"""One layer's forward pass: dense, plain two-factor SVD, and factorized layers by each way of execution, side by side.

Every repetition runs all contestants in turn, so that all see the same disturbances; figures are ratios of medians
to the dense layer's.

    python -m benchmarks.linear --output benchmarks/results/linear.json
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import nn

from benchmarks.provenance import provenance
from heat_hf import FactorizedLinear, TensorSetting, TensorShape
from heat_hf.formats import balanced_factors, get_format
from heat_hf.formats.setting import MACS_PER_ELEMENT
from heat_hf.hardware.machine.race import race
from recipes.evidence import write_json

SIZES = [(384, 384), (384, 1536), (768, 3072)]
TOKENS = [32, 1024]


def shapes(rows: int, columns: int) -> list[tuple[str, str, TensorShape]]:
    """Format, what its shape is, and the shape."""
    named = [(name, "default", get_format(name).default_shape(rows, columns)) for name in ("low_rank", "cp", "tucker", "ttm")]
    order4 = TensorShape(balanced_factors(rows, 2), balanced_factors(columns, 2))
    cores3 = TensorShape(balanced_factors(rows, 3), balanced_factors(columns, 3)[::-1])
    return [*named, ("tucker", "order 4", order4), ("ttm", "3 cores", cores3)]


def measure(rows: int, columns: int, tokens: int, ratio: float, repeats: int) -> list[dict]:
    """One race: all contestants on one matrix size and number of tokens."""
    torch.manual_seed(0)
    x, dense = torch.randn(tokens, columns), nn.Linear(columns, rows)
    rank = int(ratio * rows * columns / (rows + columns))
    modules: dict[str, nn.Module] = {
        "dense": dense,
        "two nn.Linear": nn.Sequential(nn.Linear(columns, rank, bias=False), nn.Linear(rank, rows)),
    }
    plans = {}
    for name, kind, shape in shapes(rows, columns):
        format = get_format(name)
        for execution in ("contract", "reconstruct", "auto"):
            setting = TensorSetting(name, shape, format.largest_rank(shape, ratio * rows * columns), execution)
            layer = FactorizedLinear(setting, tokens=tokens).eval()
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=0.1)
            label = f"{name} {kind} {execution}"
            modules[label], plans[label] = layer, layer.plan
    with torch.inference_mode():
        times = race({label: lambda module=module: module(x) for label, module in modules.items()}, repeats)
    base = statistics.median(times["dense"])
    dense_cost = rows * columns * tokens + MACS_PER_ELEMENT * (rows * columns + tokens * (rows + columns))
    results = []
    for label, values in times.items():
        lower, median, upper = (value / base for value in statistics.quantiles(values, n=4))
        row = {"layer": label, "size": f"{rows}x{columns}", "tokens": tokens, "time": median, "lower": lower, "upper": upper}
        if label in plans:
            plan = plans[label]
            row["macs"] = plan.macs / (rows * columns * tokens)
            row["estimate"] = (plan.macs + MACS_PER_ELEMENT * plan.traffic) / dense_cost
        results.append(row)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratio", type=float, default=0.35, help="parameters of every layer (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    rows = [row for m, n in SIZES for tokens in TOKENS for row in measure(m, n, tokens, args.ratio, args.repeats)]
    result = {
        "ratio": args.ratio,
        **provenance(f"python -m benchmarks.linear --ratio {args.ratio} --repeats {args.repeats} --output FILE", "torch"),
        "rows": rows,
    }
    write_json(args.output, result)


if __name__ == "__main__":
    main()
