"""`heat-hf bench`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import product, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from heat_hf.cli import options
from heat_hf.cli.values import rows_of, show, single_rows, with_encoder
from heat_hf.evaluation.tasks import TASKS, Task, find_task
from heat_hf.hardware.machine.runtimes import PRECISIONS, RUNTIMES

if TYPE_CHECKING:
    from datasets import Dataset

    from heat_hf.integrations.bench import Loaded, Way
    from heat_hf.reports.bench import BenchReport, Pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `bench`."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="Hub ids or folders, dense or compressed")
    names, precisions = ", ".join(RUNTIMES), ", ".join(PRECISIONS)
    parser.add_argument("--runtimes", nargs="+", metavar="R", help=f"of {names} (default: all that are installed)")
    parser.add_argument("--precisions", nargs="+", metavar="P", help=f"of {precisions} (default: all)")
    parser.add_argument("--batch-size", type=options.COUNT, nargs="+", default=[1, 8], metavar="B", help="default: 1 8")
    parser.add_argument(
        "--sequence-length", type=options.COUNT, nargs="+", default=[32, 128], metavar="L", help="default: 32 128"
    )
    text = "of every runtime; several to compare (default: PyTorch's)"
    parser.add_argument("--threads", type=options.whole(1, 4096), nargs="+", metavar="N", help=text)
    parser.add_argument("--repeats", type=options.whole(2), default=20, metavar="N", help="of each (default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="also find the peak memory of each, in a process of its own")
    parser.add_argument("--task", help=f"also score the models: {', '.join(TASKS)}")
    options.add_labelled(parser, required=False)
    text = "relative loss of score that is worth being faster (default: %(default)s)"
    parser.add_argument("--within", type=options.real(0, 1), default=0.01, metavar="R", help=text)
    options.add_ranges(parser, "openvino int8")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoints")
    options.add_output(parser, "DIR", "for bench.json and bench.png")
    options.add_overwrite(parser)
    options.add_json(parser, "what was found")


def run(args: argparse.Namespace) -> int:
    """Time models in runtimes and precisions, score them, and say which to use."""
    from heat_hf.encoders.checkpoints.storage import check_target
    from heat_hf.integrations.bench import ways

    found, left_out = ways(args.runtimes, args.precisions, args.calibration_file is not None)
    labelled = _labelled(args)
    ranges = rows_of(args, "calibration")
    if args.output is not None:
        check_target(args.output, args.overwrite)
    models = _load(args, labelled.task, ranges)
    report = _report(args, models, found, left_out, labelled)
    if args.output is not None:
        _write(report, args.output, args.overwrite)
    show(args, report.to_dict(), str(report))
    return 0


class Labelled(NamedTuple):
    """What models are scored on, if they are."""

    task: Task | None = None
    rows: Dataset | None = None


def _labelled(args: argparse.Namespace) -> Labelled:
    """The task and its rows, checked."""
    from heat_hf.encoders.rows import load_rows
    from heat_hf.evaluation.tasks.base import check_columns

    if (args.task is None) != (args.data is None):
        raise ValueError("--task and --data go together: give both to score the models, or neither")
    if args.task is None:
        return Labelled()
    task, rows = find_task(args.task), load_rows(args.data, args.rows)
    check_columns(rows, args.columns or task.columns, args.data)
    return Labelled(task, rows)


def _load(args: argparse.Namespace, task: Task | None, ranges: Dataset | None) -> dict[str, Loaded]:
    """Models by name; all configurations are read before the first model is."""
    from transformers import AutoConfig

    import heat_hf  # noqa: F401
    from heat_hf.encoders.checkpoints.tokenizer import load_tokenizer
    from heat_hf.encoders.linears import model_class_of
    from heat_hf.integrations.bench import Loaded

    twice = next((name for name in args.models if args.models.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"MODEL must be named once each, got {twice} twice")
    places = {name: with_encoder(name, {"trust_remote_code": args.trust_remote_code}) for name in args.models}
    configs = {name: AutoConfig.from_pretrained(name, **how) for name, (how, _) in places.items()}
    tokenizers = {name: load_tokenizer(name, **how) for name, (how, _) in places.items()}
    for name, config in configs.items():
        _require_room(name, config, tokenizers[name], max(args.sequence_length))
    models = {}
    for name, (how, encoder) in places.items():
        loader = task.model_class if task else model_class_of(configs[name])
        model = loader.from_pretrained(name, **how).float().eval()
        models[name] = Loaded(model, tokenizers[name], encoder, single_rows(model, tokenizers[name], ranges, encoder))
    return models


def _require_room(name: str, config: Any, tokenizer: Any, tokens: int) -> None:  # noqa: ANN401
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    most = min(positions, tokenizer.model_max_length) if positions > 0 else tokenizer.model_max_length
    if tokens > most:
        raise ValueError(f"--sequence-length must be at most {most}, the positions of {name}, got {tokens}")


def _report(
    args: argparse.Namespace, models: Mapping[str, Loaded], found: list[Way], left_out: list[str], labelled: Labelled
) -> BenchReport:
    from importlib.metadata import version

    import torch

    from heat_hf.hardware.machine.measuring import device
    from heat_hf.integrations.bench import bench
    from heat_hf.reports.bench import BenchReport

    threads = list(dict.fromkeys(args.threads or [torch.get_num_threads()]))
    entries = bench(models, found, _passes(args, threads), args.repeats, _score(labelled, args.columns), args.memory)
    task, rows = labelled
    packages = dict.fromkeys(RUNTIMES[way.runtime].package for way in found)
    about = {**device(), "threads": threads, "repeats": args.repeats, "versions": {name: version(name) for name in packages}}
    if task is not None and rows is not None:
        about |= {"task": task.name, "data": args.data, "rows": len(rows)}
    return BenchReport(entries, task.main if task else "", args.within, about, left_out)


def _passes(args: argparse.Namespace, threads: Sequence[int]) -> list[Pass]:
    from heat_hf.reports.bench import Pass

    return list(dict.fromkeys(starmap(Pass, product(args.batch_size, args.sequence_length, threads))))


def _score(labelled: Labelled, columns: Sequence[str] | None) -> Callable[[Any, Any], float] | None:
    """The task's main score of a model with its tokenizer, as `heat-hf evaluate` has it."""
    from heat_hf.evaluation.tasks import evaluate_task

    if labelled.task is None:
        return None
    name, main = labelled.task.name, labelled.task.main
    return lambda model, tokenizer: evaluate_task(model, tokenizer, name, labelled.rows, columns)[main]


def _write(report: BenchReport, output: str, overwrite: bool) -> None:
    import json

    from heat_hf.encoders.checkpoints.storage import atomic_directory
    from heat_hf.reports.figures.bench import draw_bench

    with atomic_directory(output, overwrite) as folder:
        (Path(folder) / "bench.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        draw_bench(report, folder / "bench.png")
