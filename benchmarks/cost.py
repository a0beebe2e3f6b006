"""The cost model beside Timeloop, AccelForge and the paper: agreement, speed, and what the figures say.

HEAT_HF_REFERENCE (or --reference) names the folder with `timeloop.json` and `accelforge.json`: energies, cycles and the time
the mappers of these tools took. Everything else is computed here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from transformers import BertConfig, DistilBertConfig

from benchmarks.provenance import provenance
from heat_hf import TensorSetting, TensorShape
from heat_hf.formats import FORMATS, get_format
from heat_hf.formats.planning import plan_contraction
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import load_accelerator
from heat_hf.hardware.analytic import AnalyticModel
from heat_hf.hardware.cascade import Cascade, cost_plan, join
from heat_hf.hardware.gemm import Gemm
from heat_hf.hardware.mapper import Mapper
from recipes.evidence import write_json

BERT_SIZES = {"768x768": 48, "3072x768": 12, "768x3072": 12}  # matrices of BERT-base's blocks
# Table 1 of the paper: million parameters of the factors (the model's less 24.6 M), and the EDP in µJ·s of its HEAT rows.
PAPER = {
    "cp": [(24.3, 5.99), (34.5, 9.01), (49.6, 14.5)],
    "tucker": [(17.5, 4.91), (26.4, 7.45), (39.0, 10.4)],
    "ttm": [(17.0, 25.06), (21.8, 28.93), (30.1, 32.72)],
}
SIMBA = load_accelerator("simba-l")


def seconds(call) -> tuple[float, object]:  # noqa: ANN001
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def dense_models() -> list[dict]:
    """EDP of the dense models the paper states."""
    stated = {("BERT-base", 384): 34.31, ("BERT-base", 128): 5.21, ("DistilBERT", 384): 8.58, ("DistilBERT", 128): 1.30}
    rows = []
    for (name, tokens), paper in stated.items():
        config = BertConfig() if name == "BERT-base" else DistilBertConfig()
        layers, hidden = config.num_hidden_layers, config.hidden_size
        inner = getattr(config, "intermediate_size", None) or config.hidden_dim
        found = {}
        for constraints in ("timeloop", None):
            mapper = Mapper(SIMBA, constraints)
            block = [AnalyticModel(mapper).cascade_of(MatrixSize(hidden, hidden), tokens)] * 4
            block += [
                AnalyticModel(mapper).cascade_of(MatrixSize(inner, hidden), tokens),
                AnalyticModel(mapper).cascade_of(MatrixSize(hidden, inner), tokens),
            ]
            found[constraints] = join(block * layers)
        rows.append(
            {
                "model": name,
                "tokens": tokens,
                "paper": paper,
                "timeloop": found["timeloop"].edp * 1e6,
                "free": found[None].edp * 1e6,
                "energy_mJ": found["timeloop"].energy_pJ * 1e-9,
                "time_ms": found["timeloop"].seconds * 1e3,
            }
        )
    return rows


def against_timeloop(reference: Path, repeats: int) -> list[dict]:
    """Energy, cycles and access counts under Timeloop's constraints; EDP without; and the time to search, cold."""
    rows = []
    for name, work in json.loads((reference / "timeloop.json").read_text())["workloads"].items():
        gemm = Gemm(work["M"], work["N"], work["K"])
        cost = Mapper(SIMBA, "timeloop").map(gemm)
        equal = all(
            cost.accesses[level.replace("WeightRegs", "WeightReg")][tensor.lower()][kind] == counts[kind]
            for level, tensors in work["accesses"].items()
            for tensor, counts in tensors.items()
            for kind in ("reads", "fills", "updates")
        )
        free, times = Mapper(SIMBA).map(gemm), []
        for _ in range(repeats):
            times += [seconds(lambda gemm=gemm: Mapper(SIMBA, "timeloop").map(gemm))[0]]
        cold = [seconds(lambda gemm=gemm: Mapper(SIMBA).map(gemm))[0] for _ in range(repeats)]
        rows.append(
            {
                "gemm": name,
                "energy": cost.energy_pJ / work["energy_pJ_exact"] - 1,
                "cycles": cost.cycles - work["cycles"],
                "counts_equal": equal,
                "free_edp": free.edp / work["edp_J_s"],
                "free_proved": free.bound / free.objective_value("edp"),
                "constrained_s": statistics.median(times),
                "free_s": statistics.median(cold),
                "free_quartiles_s": statistics.quantiles(cold, n=4),
                "timeloop_s": work["mapper_seconds"],
            }
        )
    return rows


def against_accelforge(reference: Path, repeats: int) -> list[dict]:
    """EDP against its optimum, single products and a low-rank layer, fused and unfused."""
    rows = []
    for name, work in json.loads((reference / "accelforge.json").read_text())["workloads"].items():
        dims = work["dims"]

        def run(name: str = name, dims: dict = dims) -> Cascade:
            mapper = Mapper(SIMBA)
            if name.startswith("gemm"):
                return join([AnalyticModel(mapper).cascade_of(MatrixSize(dims["n"], dims["k"]), dims["m"])])
            setting = TensorSetting("low_rank", TensorShape.matrix(dims["n"], dims["k"]), (dims["r"],))
            return AnalyticModel(mapper, not name.endswith("unfused")).cascade_of(setting, dims["m"])

        times = [seconds(run)[0] for _ in range(repeats)]
        rows.append(
            {
                "workload": name,
                "edp": run().edp,
                "accelforge": work["edp_J_s"],
                "ratio": run().edp / work["edp_J_s"],
                "s": statistics.median(times),
                "accelforge_cpu_s": work["mapper_cpu_s"],
            }
        )
    return rows


SHAPES = {
    "low_rank": ["{m}:{n}"],
    "cp": ["{m}:{n}", "24x32:{n}", "{m}:48x64", "24x32:48x64", "12x64:48x64", "8x8x12:{n}", "8x8x12:48x64"],
    "tucker": ["{m}:{n}", "24x32:{n}", "{m}:48x64", "24x32:48x64", "12x64:48x64", "8x8x12:48x64", "8x8x12:12x16x16"],
    "ttm": ["{m}x1:1x{n}", "24x32:48x64", "12x64:48x64", "16x48:64x48", "32x24:64x48", "8x8x12:12x16x16"],
}


def candidates(rows: int, columns: int, count: int, seed: int) -> list[TensorSetting]:
    """Settings of one matrix size: every format, orders 2 to 6, ranks drawn at random, none with more parameters than dense."""
    rng, found = random.Random(seed), {}
    for name in itertools.cycle(SHAPES):
        shape = TensorShape.parse(rng.choice(SHAPES[name]).format(m=rows, n=columns), rows, columns)
        codec = get_format(name)
        unit = rng.choice([1, 2, 4, 8, 16, 32])
        rank = codec.clip_rank(shape, [max(1, min(most, unit * rng.randint(1, 24))) for most in codec.max_rank(shape)])
        setting = TensorSetting(name, shape, rank, "contract")
        if setting.ratio < 0.9:
            found[name, shape, setting.rank] = setting
        if len(found) == count:
            return list(found.values())
    raise AssertionError


@cache
def _mapper() -> Mapper:
    """One for each process."""
    return Mapper(SIMBA)


def cost_candidates(settings: list[TensorSetting]) -> list[dict]:
    """What one process does: plan and cost."""
    rows = []
    for setting in settings:
        plan = setting.plan(384)
        cost = cost_plan(plan, _mapper())
        rows.append({"format": setting.format, "macs": plan.macs, "parameters": setting.parameters, "edp": cost.edp})
    return rows


def cost_table(count: int, seed: int) -> dict:
    """Time to cost many candidates of one size on two processes, and rank correlations of MACs and parameters with EDP."""
    settings = candidates(768, 3072, count, seed)
    settings.sort(key=lambda s: (s.format, str(s.shape), s.rank))  # neighbours share products
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(cost_candidates, [[], []]))  # start both; they know no mapping yet
        chunks = [settings[i : i + 100] for i in range(0, len(settings), 100)]
        took, parts = seconds(lambda: list(pool.map(cost_candidates, chunks)))
    rows = [row for part in parts for row in part]
    edp = [row["edp"] for row in rows]
    return {
        "candidates": len(rows),
        "s": took,
        "macs_spearman": spearmanr([row["macs"] for row in rows], edp).statistic,
        "parameters_spearman": spearmanr([row["parameters"] for row in rows], edp).statistic,
        "largest_spread": _spread(rows),
        "formats": {name: sum(row["format"] == name for row in rows) for name in FORMATS},
    }


def _spread(rows: list[dict]) -> float:
    """How far the EDPs of candidates with the same MACs, within 2 %, are apart at most."""
    ordered = sorted(rows, key=lambda row: row["macs"])
    worst = 1.0
    for i, row in enumerate(ordered):
        near = list(itertools.takewhile(lambda other: other["macs"] <= 1.02 * row["macs"], ordered[i:]))  # noqa: B023
        worst = max(worst, max(n["edp"] for n in near) / min(n["edp"] for n in near))
    return worst


def figure_6() -> dict:
    """The paper's example, a 768×768 matrix as 768×12×64 CP of rank 280, at 128 and 384 tokens: naive against MAC-optimal."""
    equation, found = "bc,a,da,ea,ca->bde", {}
    for tokens in (128, 384):
        # The index "a" is the token's elsewhere; here it is the rank, as in the paper.
        extents = {"b": tokens, "c": 768, "a": 280, "d": 12, "e": 64}
        paths = {path: plan_contraction(equation, extents, (1, 2, 3, 4), path) for path in ("left-to-right", "optimal")}
        costs = {path: cost_plan(plan, Mapper(SIMBA)) for path, plan in paths.items()}
        found[str(tokens)] = {
            "macs": [paths[path].macs for path in paths],
            "edp": [costs[path].edp for path in costs],
            "macs_ratio": paths["left-to-right"].macs / paths["optimal"].macs,
            "edp_ratio": costs["left-to-right"].edp / costs["optimal"].edp,
        }
    return found


def paper_table() -> list[dict]:
    """The least EDP of BERT-base at 384 tokens with at least the paper's factor parameters, one setting for each size."""
    mapper = Mapper(SIMBA)
    options = {name: {size: _options(name, size, mapper) for size in BERT_SIZES} for name in PAPER}
    rows = []
    for name, stated in PAPER.items():
        for parameters, paper in stated:
            row = {"format": name, "parameters_M": parameters, "paper": paper, "settings": {}}
            for kind in KINDS if name == "ttm" else ("best",):
                edp, chosen = _cheapest(options[name], parameters * 1e6, kind)
                row["settings"][kind] = {
                    "edp": edp * 1e6,
                    "parameters_M": sum(BERT_SIZES[size] * s.parameters for size, s in chosen.items()) / 1e6,
                    "settings": {size: f"{s.shape} rank {'×'.join(map(str, s.rank))}" for size, s in chosen.items()},
                }
            row["ratio"] = row["settings"]["best"]["edp"] / paper
            rows.append(row)
    return rows


KINDS = {
    "best": lambda _: True,
    "no mode of extent 1": lambda shape: 1 not in shape.modes,
    "uniform modes": lambda shape: max(shape.modes) < 3 * min(shape.modes),
}
PAPER_SHAPES = {
    "768x768": ["768:768", "24x32:768", "12x64:768", "24x32:24x32"],
    "3072x768": ["3072:768", "48x64:768", "3072:24x32", "48x64:24x32"],
    "768x3072": ["768:3072", "24x32:3072", "768:48x64", "24x32:48x64"],
}


def _options(name: str, size: str, mapper: Mapper) -> list[tuple[TensorSetting, Cascade]]:
    """Settings of one matrix size, with ranks in multiples of 16 where they go beyond 64; uniform ranks in Tucker."""
    rows, columns = MatrixSize.parse(size)
    codec, found = get_format(name), []
    # CP of four modes needs ranks in the thousands for as many parameters, and costs more than the dense matrix.
    pairs = [f"{rows // m}x{m}:{columns // m}x{m}" for m in (2, 4, 8, 16)]
    shapes = {
        "cp": PAPER_SHAPES[size][:3],
        "tucker": PAPER_SHAPES[size],
        "ttm": [f"{rows}x1:1x{columns}", *pairs, PAPER_SHAPES[size][3]],
    }
    for text in shapes[name]:
        shape = TensorShape.parse(text, rows, columns)
        most = max(codec.max_rank(shape))
        for rank in range(16, most + 1, 16) if most > 64 else range(1, most + 1):
            setting = TensorSetting(name, shape, codec.clip_rank(shape, codec.uniform_rank(shape, rank)))
            if setting.ratio < 1:
                found.append((setting, AnalyticModel(mapper).cascade_of(setting, 384)))
    return found


def _cheapest(options: dict, parameters: float, kind: str) -> tuple[float, dict[str, TensorSetting]]:
    """One setting for each size, with shapes of one of `KINDS`."""
    lists = {size: [(s, c) for s, c in found if KINDS[kind](s.shape)] for size, found in options.items()}
    sums = np.zeros((3, 1, 1, 1))
    for axis, (size, found) in enumerate(lists.items(), start=1):
        values = np.array([[s.parameters, c.energy_pJ, c.seconds] for s, c in found]).T * BERT_SIZES[size]
        sums = sums + np.expand_dims(values, [other for other in (1, 2, 3) if other != axis])
    edp = np.where(sums[0] >= parameters, sums[1] * sums[2] * 1e-12, np.inf)
    place = np.unravel_index(int(edp.argmin()), edp.shape)
    return float(edp[place]), {size: found[i][0] for (size, found), i in zip(lists.items(), place, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, default=os.environ.get("HEAT_HF_REFERENCE"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--candidates", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.reference is None:
        parser.error("--reference or HEAT_HF_REFERENCE must name the folder with timeloop.json and accelforge.json")
    table = cost_table(args.candidates, args.seed)
    result = {
        **provenance(
            f"python -m benchmarks.cost --repeats {args.repeats} --candidates {args.candidates} --seed {args.seed} "
            "--reference DIR --output FILE",
            "numpy",
        ),
        "accelerator": {"name": SIMBA.name, "digest": SIMBA.digest},
        "dense": dense_models(),
        "timeloop": against_timeloop(Path(args.reference), args.repeats),
        "accelforge": against_accelforge(Path(args.reference), args.repeats),
        "candidates": table,
        "figure_6": figure_6(),
        "paper": (paper := paper_table()),
        "paper_geometric_mean": statistics.geometric_mean(row["ratio"] for row in paper),
    }
    write_json(args.output, result)


if __name__ == "__main__":
    main()
