"""Our layers beside TensorLy-Torch's with the same cores, shape and bias, one forward pass each, side by side.

TensorLy-Torch contracts the input with the cores ("factorized"), or puts the matrix together ("reconstructed"). Needs
tensorly-torch, which is no dependency: pip install --no-deps tensorly-torch

    python -m benchmarks.tensorly_layers --output benchmarks/results/tensorly_layers.json
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.linear import SIZES, TOKENS, shapes
from benchmarks.provenance import provenance
from heat_hf import FactorizedLinear, TensorSetting
from heat_hf.formats import get_format
from heat_hf.hardware.machine.race import race
from recipes.evidence import write_json

RATIO = 0.1  # of the dense parameters
IMPLEMENTATIONS = ("factorized", "reconstructed")
TOLERANCE = 1e-4  # of the largest output


def theirs(layer: FactorizedLinear, implementation: str) -> nn.Module:
    """TensorLy-Torch's layer with the cores of one of ours."""
    from tltorch import FactorizedLinear as Other
    from tltorch.factorized_tensors.tensorized_matrices import BlockTT, CPTensorized, TuckerTensorized

    shape, rank, cores = layer.setting.shape, layer.setting.rank, [core.detach().clone() for core in layer.cores]
    modes = tuple(shape.out_modes), tuple(shape.in_modes)
    parameters = [nn.Parameter(core) for core in cores]
    weight: Any
    if layer.setting.format == "cp":
        weight = CPTensorized(nn.Parameter(torch.ones(rank[0])), parameters, modes, rank=rank[0])
    elif layer.setting.format == "tucker":
        weight = TuckerTensorized(parameters[0], parameters[1:], modes, rank=rank)
    else:  # ours leave the outer ranks of 1 out
        whole = [cores[0][None], *cores[1:-1], cores[-1][..., None]]
        weight = BlockTT([nn.Parameter(core) for core in whole], modes, rank=(1, *rank, 1))
    other: nn.Module = Other(modes[1], modes[0], factorization=weight, implementation=implementation)
    other.bias = layer.bias
    return other.eval()


def compared(rows: int, columns: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Every shape of a matrix size: our time over theirs."""
    torch.manual_seed(0)
    x, found = torch.randn(tokens, columns), []
    for name, kind, shape in shapes(rows, columns):
        if name == "low_rank" or (name == "tucker" and len(shape.out_modes) != len(shape.in_modes)):
            continue  # it has no plain low rank, and contracts Tucker only with as many modes on either side
        setting = TensorSetting(name, shape, get_format(name).largest_rank(shape, RATIO * rows * columns))
        layer = FactorizedLinear(setting, tokens=tokens).eval()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.1)
        layers = {"ours": layer} | {way: theirs(layer, way) for way in IMPLEMENTATIONS}
        with torch.inference_mode():
            wanted = layer(x)
            for way in IMPLEMENTATIONS:
                apart = float((layers[way](x) - wanted).abs().max() / wanted.abs().max())
                if apart > TOLERANCE:
                    raise ValueError(f"{setting}: TensorLy-Torch's {way} layer is {apart:.2g} apart from ours")
            times = race({way: lambda own=own: own(x) for way, own in layers.items()}, repeats)
        ratios = {
            way: statistics.quantiles([a / b for a, b in zip(times[way], times["ours"], strict=True)], n=4)
            for way in IMPLEMENTATIONS
        }
        found.append({"size": f"{rows}×{columns}", "tokens": tokens, "format": name, "shape": kind, "slower": ratios})
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/tensorly_layers.json"))
    args = parser.parse_args()
    rows = [row for size in SIZES for tokens in TOKENS for row in compared(*size, tokens, args.repeats)]
    about = provenance("python -m benchmarks.tensorly_layers --output FILE", "torch", "tensorly", "tensorly-torch")
    write_json(args.output, {**about, "threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    main()
