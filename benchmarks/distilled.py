"""Distilled: ranks and widths from refined cores, beside a network with fewer blocks trained alike; each also in int8.

The same rows, steps and batches for all; STS-B with a sentence encoder and no labels, SST-2 with a classifier. Models with
fewer blocks keep evenly spaced ones, the last among them, and all of their weights are trained. Rows already in the results
are kept, and trained models in the cache, so an interrupted run goes on where it stopped, a training at its last checkpoint.

    python -m benchmarks.distilled --data DATA --classifier FOLDER --encoder FOLDER --cache DIR --results benchmarks/results
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

from benchmarks.alternatives import encoder_of, fewer_blocks, time_ratio
from benchmarks.distillation_bench import SST2, STSB, TOKENS, Bench, Subject, parser_of
from benchmarks.machine_search import Search
from heat_hf import CompressionReport, HeatConfig
from heat_hf.compression.job import Job
from heat_hf.encoders.around import EXTRAS
from heat_hf.encoders.cost import model_cost
from heat_hf.hardware.analytic import cost_accelerator
from heat_hf.hardware.machine import MachineModel
from heat_hf.integrations.precision import in_int8
from heat_hf.search.ranks.methods import Solution
from heat_hf.search.ranks.variants import Variant

GAINS = {"STS-B": (5.7, 10.0), "SST-2": (10.0, 20.0, 30.0)}
KEPT_BLOCKS = (3, 2)  # of six
STRUCTURE = "ranks and widths"
# Steps, stages and learning rates of each subject: of factorized networks, and of those with fewer blocks.
SCHEDULES: dict[str, dict[str, dict[str, Any]]] = {
    "STS-B": {
        STRUCTURE: {"recipe": "logits", "learning_rate": 5e-4},
        "blocks": {"recipe": "logits", "learning_rate": 2e-4},
    },
    "SST-2": {
        STRUCTURE: {"layer_share": 0.75, "learning_rate": 3e-4, "logit_learning_rate": 2e-5},
        "blocks": {"layer_share": 0.75, "learning_rate": 2e-4, "logit_learning_rate": 2e-5},
    },
}


def student(bench: Bench, gain: float) -> tuple[Any, CompressionReport]:
    """Ranks and widths within an EDP, or the fastest here of no larger predicted loss, refined; from the cache if there."""
    way: str = bench.args.machine
    folder = bench.args.cache / f"{bench.subject.name}-widths-{gain:g}{way and '-' + way.replace(' ', '-')}"
    if not (folder / "heat_report.json").is_file():
        model = copy.deepcopy(bench.dense)
        config = HeatConfig(rank_search="sensitivity", target_edp_ratio=1 / gain, sequence_length=TOKENS, widths=True)
        job = Job(model, config, bench.calibration, given_statistics=bench.statistics)
        report = job.factorize(fastest(bench, way, job.chosen()) if way else job.chosen())
        model.save_pretrained(folder)
        report.save(folder)
    return type(bench.dense).from_pretrained(folder), CompressionReport.load(folder)


def fastest(bench: Bench, way: str, chosen: Variant) -> Solution:
    """What takes least time on this machine, in a runtime and precision, of all that loses no more than a network."""
    assert chosen.loss is not None
    search = Search(bench.dense, MachineModel(*way.split()), "target_latency_ratio", bench.statistics, bench.calibration)
    settings, loss = search.least(chosen.loss)
    costs = search.problem.costs
    now, before = (costs.total(own).seconds for own in (settings, search.fitting(chosen.settings)))
    assert now is not None
    assert before is not None
    print(f"{way}: loss {loss:.4f} of {chosen.loss:.4f}, predicted {now / before:.3f} of its time", flush=True)
    return Solution(settings)


def measure(bench: Bench, structure: str, size: float, seed: int) -> None:
    """One row: compress or cut, distil, score."""
    key = f"{bench.subject.name} {structure} {size:g} {seed}"
    if key in bench.found["rows"]:
        return
    if structure.startswith(STRUCTURE):
        model, report = student(bench, size)
        assert report.hardware is not None
        assert report.whole is not None
        about = {"edp_gain": 1 / report.hardware.ratio, "params_ratio": report.params_ratio}
        about["whole_gain"] = 1 / report.whole.ratio
    else:
        model = fewer_blocks(bench.dense, int(size))
        share = size / len(encoder_of(bench.dense).layer)
        about = {"edp_gain": share**-2, "params_ratio": share, "whole_gain": _whole_gain(bench.dense, model)}
    about |= {"params_M": model.num_parameters() / 1e6, "untrained_score": bench.score(model)}
    about["schedule"] = {
        "max_steps": bench.args.steps,
        **SCHEDULES[bench.subject.name]["blocks" if structure == "blocks" else STRUCTURE],
    }
    model = trained(bench, model, f"{structure}-{size:g}-{seed}", seed, about["schedule"])
    row = {"data": bench.subject.name, "structure": structure, "size": size, "seed": seed, **about, **timed(bench, model)}
    bench.found["rows"][key] = {**row, "int8": timed(bench, in_int8(model))}
    print(bench.found["rows"][key], flush=True)
    bench.save()


def _whole_gain(dense: Any, model: Any) -> float:
    """EDP of a dense model over that of one with fewer blocks, with all that is around their matrices."""
    costs = cost_accelerator("simba-l")
    before, now = (model_cost(own, costs, TOKENS, count=EXTRAS).total.edp for own in (dense, model))
    return before / now


def trained(
    bench: Bench, model: Any, name: str, seed: int, schedule: dict[str, Any], finish: Callable[[Any], None] | None = None
) -> Any:
    """The model distilled; from the cache if it is there.

    Args:
        bench: its subject's.
        model: to train.
        name: of it, in the cache.
        seed: of the training.
        schedule: steps, stages and learning rates.
        finish: what is done to the model before it is saved.
    """
    folder = bench.args.cache / f"{bench.subject.name}-{name}-{schedule['max_steps']}"
    if not (folder / "config.json").is_file():
        bench.distil(model, name, seed=seed, **schedule)
        if finish is not None:
            finish(model)
        model.save_pretrained(folder)
    return type(bench.dense).from_pretrained(folder).eval()


def timed(bench: Bench, model: Any) -> dict[str, float]:
    """Score and divergence of a model, and its time over the dense one's."""
    return {"time": time_ratio(bench.dense, model, bench.args.repeats), **bench.figures(model)}


def int8(bench: Bench) -> None:
    """The dense model with its linears in int8, dynamic, which trains nothing."""
    key = f"{bench.subject.name} int8"
    if key not in bench.found["rows"]:
        bench.found["rows"][key] = {"data": bench.subject.name, "structure": "int8", **timed(bench, in_int8(bench.dense))}
        print(bench.found["rows"][key], flush=True)
        bench.save()


def run(subject: Subject, checkpoint: str, args: argparse.Namespace) -> None:
    """All rows of a subject, one seed after the other."""
    bench = Bench(subject, checkpoint, args, "distilled.json")
    bench.found.setdefault("dense", {})[subject.name] = bench.teacher_score
    int8(bench)
    for seed in args.seeds:
        for gain in GAINS[subject.name] if args.gains is None else args.gains:
            measure(bench, f"{STRUCTURE} for {args.machine}" if args.machine else STRUCTURE, gain, seed)
        for count in args.blocks:
            measure(bench, "blocks", count, seed)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--subjects", nargs="+", choices=list(GAINS), default=list(GAINS))
    parser.add_argument("--gains", type=float, nargs="*", help="EDP gains; default: those of the data")
    parser.add_argument("--blocks", type=int, nargs="*", default=list(KEPT_BLOCKS), help="blocks to keep, of six")
    text = 'instead of EDP, let ranks and widths obey the time here, as "onnxruntime int8", at equal predicted loss'
    parser.add_argument("--machine", default="", metavar="WAY", help=text)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=15, help="timed forward passes (default: %(default)s)")
    args = parser.parse_args()
    args.command = (
        "python -m benchmarks.distilled --data DATA --classifier FOLDER --encoder FOLDER --cache DIR "
        f"--steps {args.steps} --seeds {' '.join(map(str, args.seeds))} --subjects {' '.join(args.subjects)}"
    )
    for subject, checkpoint in ((STSB, args.encoder), (SST2, args.classifier)):
        if subject.name in args.subjects:
            run(subject, checkpoint, args)


if __name__ == "__main__":
    main()
