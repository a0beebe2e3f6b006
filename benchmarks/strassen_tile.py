"""Strassen-Tile before it is trained: errors of algorithms, costs, initial values on MiniLM, and a training step.

Algorithms: relative squared error of a tile's product for independent elements. Costs: of single layers, beside low rank with
pivots of as many multiply-accumulates. Initial values: one of MiniLM's six blocks gets
layers on tiles of 4 from each start, as they are, and after the same steps of refinement. Step: forward and backward pass of
the whole network beside the dense one. Sharing: errors of encoders fitted to each matrix, to those of a size, and to all. Rows
already in the results are kept.

    python -m benchmarks.strassen_tile --data DATA --classifier FOLDER --results benchmarks/results
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.alternatives import time_ratio
from benchmarks.provenance import provenance
from heat_hf import HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.batches import calibration_batches
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.rows import load_rows
from heat_hf.encoders.statistics import Statistics
from heat_hf.formats import FORMATS, MatrixSize, bilinear
from heat_hf.formats.encoding import fitted, weight_moment
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.strassen_tile import tiled
from heat_hf.hardware import cost_model
from heat_hf.hardware.machine.race import race
from recipes.evidence import write_json

KNOWN = {(2, 4): 0.448, (2, 5): 0.250, (2, 6): 0.125, (2, 7): 0.0}  # of least squares from random starts
KNOWN |= {(4, 16): 0.734, (4, 24): 0.548, (4, 32): 0.361, (4, 40): 0.235, (4, 48): 0.064}
SEEDS = 10
RANKS = (24, 16)
BLOCK = r"layer\.3\."
STARTS: dict[str, dict[str, Any]] = {
    "strassen": {},
    "strassen, weights alone": {"activation_aware": False, "refine_steps": 0},
    "als": {"initial_values": "als"},
    "hadamard": {"initial_values": "hadamard"},
    "random": {"initial_values": "random"},
}
ROWS, TOKENS, STEPS = 256, 128, 50
LEAST_WORDS = 12
SIZES, COSTED_TOKENS, COSTED_RANKS = (
    ("384x384", "1536x384", "384x1536", "768x768", "3072x768", "768x3072"),
    (128, 1024),
    (24, 49),
)
STEP = (16, 64)  # rows × tokens of a training step


def algorithms() -> dict[str, Any]:
    """Errors of every start at every rank; of random starts, all seeds."""
    found = {}
    for tile, rank in KNOWN:
        starts = [bilinear.improved(bilinear.random(tile, rank, seed)).error() for seed in range(SEEDS)]
        found[f"{tile} {rank}"] = {
            "known": KNOWN[tile, rank], "strassen": bilinear.algorithm(tile, rank).error(), "als": sorted(starts),
            "hadamard": bilinear.hadamard(tile, rank).error(), "random": bilinear.random(tile, rank).error(),
        }  # fmt: skip
        print(tile, rank, found[f"{tile} {rank}"], flush=True)
    return found


def costs() -> list[dict[str, Any]]:
    """Energy, time and EDP of layers over those of the dense one."""
    model, rows = cost_model("simba-l"), []
    for name in SIZES:
        size = MatrixSize.parse(name)
        for tokens in COSTED_TOKENS:
            dense = model.linear(size, tokens)
            tiles = [TensorSetting("strassen_tile", tiled(*size, 4), (rank,)) for rank in COSTED_RANKS]
            for setting in tiles:
                pivoted, share = FORMATS["pivoted"], setting.plan(tokens).macs / tokens
                shape = pivoted.default_shape(*size)
                low = TensorSetting("pivoted", shape, pivoted.largest_rank(shape, share))
                row = {"size": name, "tokens": tokens, "rank": setting.rank[0], "macs": share / size.elements}
                for kind, one in (("tiles", setting), ("pivoted", low)):
                    cost = model.setting(one, tokens)
                    row[kind] = {"edp": cost.edp / dense.edp, "seconds": cost.seconds / dense.seconds}
                rows.append(row)
                print(row, flush=True)
    return rows


class Bench:
    """The dense model, its calibration rows and statistics, and what is found so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.file = args.results / "strassen_tile.json"
        self.found: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {"starts": {}, "steps": {}}
        self.command = "python -m benchmarks.strassen_tile --data DATA --classifier FOLDER --results benchmarks/results"
        self.dense = AutoModelForSequenceClassification.from_pretrained(args.classifier).eval()
        texts = load_rows(args.data / "sst2" / "train.parquet")["sentence"]
        texts = [text for text in texts if len(text.split()) >= LEAST_WORDS][:ROWS]
        self.batches = calibration_batches(texts, AutoTokenizer.from_pretrained(args.classifier), max_length=TOKENS)
        self.statistics = Statistics.collect(self.dense, encoder_linears(self.dense), self.batches, False, tile=4)

    def save(self) -> None:
        write_json(self.file, {**self.found, **provenance(self.command, "torch", "transformers")})

    def factorized(self, model: Any, **options: Any) -> Any:
        """The report of a model whose linears are replaced."""
        config = HeatConfig(**{"decomposition": "strassen_tile", "accelerator": None, **options})
        return factorize(model, config, self.batches, statistics=self.statistics)

    def start(self, name: str, rank: int) -> None:
        """Errors and divergence of one start at one rank, as it is and after the same steps."""
        key = f"{name} {rank}"
        if key in self.found["starts"]:
            return
        row: dict[str, Any] = {"start": name, "rank": rank}
        for when, steps in (("before", 0), ("after", STEPS)):
            options = {"rank": rank, "modules": [BLOCK], "refine_steps": steps, **STARTS[name]}
            if options["refine_steps"] == steps:
                report = self.factorized(copy.deepcopy(self.dense), **options)
                errors = [tensor.output_error for tensor in report.tensors]
                row[when] = {"output_error": statistics.mean(errors)}
                if report.fidelity is not None:
                    row[when]["divergence"] = report.fidelity.measured
        self.found["starts"][key] = row
        print(row, flush=True)
        self.save()

    def sharing(self, rank: int) -> None:
        """Mean error of the outputs of all layers, by how many matrices share what encodes and decodes their tiles."""
        shared = self.found.setdefault("sharing", {})
        if str(rank) in shared:
            return
        linears = encoder_linears(self.dense)
        shapes = {name: tiled(*MatrixSize.of(linear), 4) for name, linear in linears.items()}
        inputs = self.statistics.tile_moments
        sizes = {name: str(MatrixSize.of(linear)) for name, linear in linears.items()}
        shared[str(rank)] = row = {}
        for scope, groups in (
            ("matrix", {name: name for name in linears}),
            ("size", sizes),
            ("model", dict.fromkeys(linears, "")),
        ):
            errors = []
            for group in set(groups.values()):
                own = [name for name in linears if groups[name] == group]
                weights, moments = [linears[name].weight for name in own], [inputs[name] for name in own]
                found = fitted(weights, [shapes[name] for name in own], rank, None, moments)
                pairs = zip(own, weights, moments, strict=True)
                errors += [found.error(moment, weight_moment(weight, shapes[name])) ** 0.5 for name, weight, moment in pairs]
            row[scope] = {"output_error": statistics.mean(errors), "encoders": len(set(groups.values()))}
            print(rank, scope, row[scope], flush=True)
        self.save()

    def step(self, name: str, options: dict[str, Any]) -> None:
        """Time and memory of a training step, and the time of inference, beside the dense model."""
        if name in self.found["steps"]:
            return
        model = copy.deepcopy(self.dense)
        report = self.factorized(model, refine_steps=0, **options)
        ids = torch.randint(1000, 20_000, STEP, generator=torch.Generator().manual_seed(0))
        passes = {which: partial(_train, one, ids) for which, one in (("dense", self.dense), ("now", model))}
        seconds = race(passes, 15)
        ratios = [now / before for now, before in zip(seconds["now"], seconds["dense"], strict=True)]
        saved = {which: _saved(one, ids) for which, one in (("dense", self.dense), ("now", model))}
        self.found["steps"][name] = row = {
            "macs_ratio": report.macs / report.dense_parameters, "params_ratio": report.params_ratio,
            "step": statistics.quantiles(ratios, n=4), "saved_ratio": saved["now"] / saved["dense"],
            "inference": time_ratio(self.dense, model, 15),
        }  # fmt: skip
        print(name, row, flush=True)
        self.save()


def _train(model: Any, ids: torch.Tensor) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        model(input_ids=ids.clone()).logits.square().sum().backward()
        model.zero_grad()


def _saved(model: Any, ids: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left out."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    keep: Callable[[Any], Any] = lambda value: value  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, keep):
        output = model(input_ids=ids).logits
    del output
    return sum(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    bench = Bench(args)
    if "algorithms" not in bench.found:
        bench.found["algorithms"] = algorithms()
        bench.save()
    if "costs" not in bench.found:
        bench.found["costs"] = costs()
        bench.save()
    for rank in RANKS:
        bench.sharing(rank)
        for name in STARTS:
            bench.start(name, rank)
    for name, options in {
        "strassen_tile, r = 24": {"rank": 24, "initial_values": "hadamard"},
        "pivoted low rank": {"decomposition": "pivoted", "target_params_ratio": 0.47, "loss_aware": False},
    }.items():
        bench.step(name, options)


if __name__ == "__main__":
    main()
