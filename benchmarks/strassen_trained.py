"""Strassen-Tile trained: a MiniLM classifier distilled on SST-2, beside 2:4 sparsity and low rank of as many products.

The same rows, steps, batches and learning rates for all. Each size is that of the multiply-accumulates on tiles; 2:4 sparsity
has half of the dense model's. Rows already in the results are kept, and trained models in the cache, so an interrupted run goes
on where it stopped, a training at its last checkpoint.

    python -m benchmarks.strassen_trained --data DATA --classifier FOLDER --encoder FOLDER --cache DIR --results RESULTS
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.alternatives import time_ratio
from benchmarks.distillation_bench import SST2, TOKENS, Bench, parser_of
from benchmarks.distilled import trained
from benchmarks.sparse import make_plain, make_sparse
from heat_hf import HeatConfig
from heat_hf.compression.job import Job
from heat_hf.encoders.linears import encoder_linears
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.formats.strassen_tile import tiled

SCHEDULE = {"layer_share": 0.75, "learning_rate": 3e-4, "logit_learning_rate": 2e-5}
RANKS = (24, 32)
TILE = 4
Student = tuple[Any, dict[str, Any]]


def macs_of(linears: Iterable[Any], rank: int) -> float:
    """Multiply-accumulates of linears on tiles, over the dense ones'."""
    sizes = [MatrixSize.of(linear) for linear in linears]
    work = [
        setting.codec.work(setting.shape, setting.rank)
        for size in sizes
        for setting in [TensorSetting("strassen_tile", tiled(*size, TILE), (rank,))]
    ]
    return sum(work) / sum(size.elements for size in sizes)


def factorized(bench: Bench, **options: Any) -> Student:
    """A compressed model, and what it costs."""
    model = copy.deepcopy(bench.dense)
    config = HeatConfig(sequence_length=TOKENS, **options)
    job = Job(model, config, bench.calibration, None if config.tile_extent else bench.statistics)
    report = job.factorize(job.chosen())
    assert report.hardware is not None
    return model, {
        "macs_ratio": report.macs / report.dense_parameters, "edp_gain": 1 / report.hardware.ratio,
        "params_ratio": report.params_ratio, "output_error": report.output_error,
    }  # fmt: skip


def sparse(bench: Bench, aware: bool) -> Student:
    """2:4, by magnitude or by what the outputs see; its cost on the accelerator is not known."""
    model = copy.deepcopy(bench.dense)
    make_sparse(encoder_linears(model), bench.statistics.second_moments if aware else None)
    return model, {"macs_ratio": 0.5, "params_ratio": 0.5}


def students(dense: Any) -> dict[str, Callable[[Bench], Student]]:
    """What is compared: name → how it is made."""
    found: dict[str, Callable[[Bench], Student]] = {}
    for rank in RANKS:
        share = macs_of(encoder_linears(dense).values(), rank)
        tiles = {"decomposition": "strassen_tile", "rank": rank, "tile": TILE}
        pivoted = {"decomposition": "pivoted", "target_params_ratio": share}
        searched = {**pivoted, "rank_search": "sensitivity"}
        found[f"strassen_tile, r = {rank}"] = lambda bench, o=tiles: factorized(bench, **o)  # type: ignore[misc]
        found[f"pivoted low rank, as r = {rank}"] = lambda bench, o=pivoted: factorized(bench, **o)  # type: ignore[misc]
        found[f"HEAT's search, as r = {rank}"] = lambda bench, o=searched: factorized(bench, **o)  # type: ignore[misc]
        if rank == RANKS[0]:
            found["2:4, magnitude"] = lambda bench: sparse(bench, False)
            found["2:4, activation-aware"] = lambda bench: sparse(bench, True)
            blind = {**tiles, "initial_values": "random"}
            found[f"strassen_tile, r = {rank}, random start"] = lambda bench, o=blind: factorized(bench, **o)  # type: ignore[misc]
    return found


def measure(bench: Bench, name: str, make: Callable[[Bench], Student], seed: int) -> None:
    """One row: compress, distil, score."""
    key = f"{name} {seed}"
    if key in bench.found["rows"]:
        return
    model, about = make(bench)
    about |= {"params_M": model.num_parameters() / 1e6, "untrained_score": bench.score(model)}
    about["schedule"] = {"max_steps": bench.args.steps, **SCHEDULE}
    file = name.replace(" ", "-").replace(",", "").replace("'", "").replace(":", "-")
    model = trained(bench, model, f"tiles-{file}-{seed}", seed, about["schedule"], _plain)
    figures = {"time": time_ratio(bench.dense, model, bench.args.repeats), **bench.figures(model)}
    bench.found["rows"][key] = {"data": SST2.name, "structure": name, "seed": seed, **about, **figures}
    print(bench.found["rows"][key], flush=True)
    bench.save()


def _plain(model: Any) -> None:
    make_plain({name: module for name, module in model.named_modules() if hasattr(module, "weight_mask")})


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", help="names of structures, or parts of them (default: all)")
    parser.add_argument("--repeats", type=int, default=15, help="timed forward passes (default: %(default)s)")
    args: argparse.Namespace = parser.parse_args()
    args.command = (
        "python -m benchmarks.strassen_trained --data DATA --classifier FOLDER --encoder FOLDER --cache DIR "
        f"--steps {args.steps} --seeds {' '.join(map(str, args.seeds))}"
    )
    bench = Bench(SST2, args.classifier, args, "strassen_trained.json")
    bench.found.setdefault("dense", {})[SST2.name] = bench.teacher_score
    for seed in args.seeds:
        for name, make in students(bench.dense).items():
            if not args.only or any(part in name for part in args.only):
                measure(bench, name, make, seed)


if __name__ == "__main__":
    main()
