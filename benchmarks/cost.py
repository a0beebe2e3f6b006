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
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

from scipy.stats import spearmanr
from transformers import BertConfig, DistilBertConfig

from benchmarks.cost_paper import paper_table, structures_table
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


# Part of the output file → what makes its entries.
PARTS: dict[str, Callable[[argparse.Namespace], dict]] = {
    "dense": lambda _: {"dense": dense_models()},
    "timeloop": lambda args: {"timeloop": against_timeloop(Path(args.reference), args.repeats)},
    "accelforge": lambda args: {"accelforge": against_accelforge(Path(args.reference), args.repeats)},
    "candidates": lambda args: {"candidates": cost_table(args.candidates, args.seed)},
    "figure_6": lambda _: {"figure_6": figure_6()},
    "paper": lambda _: paper_table(),
    "structures": lambda _: structures_table(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, default=os.environ.get("HEAT_HF_REFERENCE"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--candidates", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="make these anew, and keep what else the output file has")
    args = parser.parse_args()
    wanted = set(args.only or PARTS)
    if args.reference is None and wanted & {"timeloop", "accelforge"}:
        parser.error("--reference or HEAT_HF_REFERENCE must name the folder with timeloop.json and accelforge.json")
    command = (
        f"python -m benchmarks.cost --repeats {args.repeats} --candidates {args.candidates} --seed {args.seed} "
        "--reference DIR --output FILE"
    )
    about = {**provenance(command, "numpy"), "accelerator": {"name": SIMBA.name, "digest": SIMBA.digest}}
    result = json.loads(args.output.read_text()) if args.only else about
    for name, make in PARTS.items():
        if name in wanted:
            result |= make(args)
    write_json(args.output, result)


if __name__ == "__main__":
    main()
