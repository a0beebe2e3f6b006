"""Whole blocks as candidates: what the search finds with and without them, untrained, beside a user's plain dropping of blocks.

Ranks and widths, refined, within EDPs on simba-l and times on the machine at hand; where the search drops nothing, there is one
row. Rows already in the output file are kept, so an interrupted run goes on where it stopped.

    python -m benchmarks.blocks --data DATA --classifier FOLDER --output benchmarks/results/blocks.json
"""

from __future__ import annotations

import copy
import dataclasses
import time
from typing import Any

from benchmarks.alternatives import encoder_of, fewer_blocks
from benchmarks.untrained import Bench, found_so_far, parser_of
from heat_hf import HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.compression.job import Job
from heat_hf.formats.setting import Settings
from heat_hf.hardware.cost import EDP
from heat_hf.search.ranks.curves import allocate_ranks

EDPS, TIMES = "simba-l, EDP", "this machine, time"
TARGETS: dict[str, tuple[dict[str, Any], str, tuple[float, ...]]] = {
    EDPS: ({}, "target_edp_ratio", (0.05, 0.1)),
    TIMES: ({"accelerator": "cpu", "batch_size": 8}, "target_latency_ratio", (0.3, 0.5)),
}
WITHOUT, WITH, PLAIN = "ranks and widths, refined", "ranks, widths and blocks, refined", "blocks dropped evenly"
PLAINLY = (3, 2)  # blocks that stay, of six


def compress(bench: Bench, where: str) -> None:
    """Rows of one hardware, with blocks as candidates and without."""
    about, target, budgets = TARGETS[where]
    wanted = [budget for budget in budgets if bench.missing(WITH, where, budget)]
    if not wanted:
        return
    config = HeatConfig(**about, **{target: wanted}, rank_search="sensitivity", widths=True, blocks=True, seed=bench.seed)
    job = Job(bench.dense, config, bench.batches, bench.statistics)
    method = config.method
    for budget in job.budgets:
        assert budget.kind is not None and budget.limit is not None and budget.asked is not None
        found = method.solve(job.problem, budget).settings
        curves = dataclasses.replace(method._curves(job.problem), gone={})  # type: ignore[attr-defined]
        alone = allocate_ranks(curves, budget.kind, budget.limit)[0]
        one = dataclasses.replace(config, **{target: budget.asked})
        for structure, settings in ((WITH, found), (WITHOUT, alone)):
            if structure == WITH or found != alone:
                row(bench, where, budget.asked, structure, one, settings)


def row(bench: Bench, where: str, budget: float, structure: str, config: HeatConfig, settings: Settings) -> None:
    """One of them, if it is not there yet."""
    if not bench.missing(structure, where, budget):
        return
    model, started = copy.deepcopy(bench.dense), time.process_time()
    report = factorize(model, config, bench.batches, settings, statistics=bench.statistics)
    ((_, _, before, after), *_), fidelity = report.figures, report.fidelity
    gone = [] if report.dropped is None else [int(name.rpartition(".")[2]) for name in report.dropped.blocks]
    bench.keep(
        structure, where, budget, model, gone=gone, params_ratio=report.params_ratio,
        edp_ratio=next(b / a for name, _, a, b in report.figures if name.startswith(EDP)),
        predicted=after / before if report.measure != EDP else None,
        divergence=None if fidelity is None else fidelity.measured, seconds=round(time.process_time() - started, 1),
    )  # fmt: skip


def drop(bench: Bench, count: int) -> None:
    """Blocks dropped by hand, evenly spaced."""
    blocks = len(encoder_of(bench.dense).layer)
    budget = (count / blocks) ** 2
    if bench.missing(PLAIN, EDPS, budget):
        step = blocks // count
        gone = [number for number in range(blocks) if number % step != step - 1]
        ratios = {"params_ratio": count / blocks, "edp_ratio": budget}
        bench.keep(PLAIN, EDPS, budget, fewer_blocks(bench.dense, count), gone=gone, **ratios, seconds=0.0)


class Blocks(Bench):
    """Its rows are told apart by what limits them, too."""

    def missing(self, structure: str, where: str, budget: float) -> bool:  # type: ignore[override]
        """Whether there is no such row yet."""
        keys = {(r["data"], r["structure"], r["where"], r["gain"]) for r in self.results["rows"]}
        return (self.name, structure, where, budget) not in keys

    def keep(self, structure: str, where: str, budget: float, model: Any, **figures: Any) -> None:  # type: ignore[override]
        """Score and time a model, and keep its row."""
        super().keep(structure, budget, model, where=where, **figures)


def main() -> None:
    parser = parser_of(__doc__, 1024)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    args = parser.parse_args()
    command = "python -m benchmarks.blocks --data DATA --classifier FOLDER --output FILE"
    results, sources = found_so_far(args, command)
    for name in args.subjects:
        bench = Blocks(name, sources[name], args, results)
        for count in PLAINLY:
            drop(bench, count)
        for where in args.targets:
            compress(bench, where)


if __name__ == "__main__":
    main()
