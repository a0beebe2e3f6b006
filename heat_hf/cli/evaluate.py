"""`heat-hf evaluate`."""

from __future__ import annotations

import argparse
from typing import Any

from heat_hf.cli import options
from heat_hf.cli.values import loading, show, with_encoder
from heat_hf.evaluation.tasks import TASKS, evaluate_task, find_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `evaluate`."""
    parser.add_argument("model", help="Hub id or folder: dense, compressed, or exported")
    *others, last = TASKS
    parser.add_argument("--task", required=True, help=f"{', '.join(others)} or {last}")
    options.add_labelled(parser)
    parser.add_argument("--baseline", metavar="MODEL", help="also score this model, as the one it is compared with")
    parser.add_argument("--latency", action="store_true", help="also time a forward pass of 8 × 128 tokens")
    options.add_loading(parser)
    options.add_json(parser, "the scores")


def run(args: argparse.Namespace) -> int:
    """Score one model, or two side by side."""
    import dataclasses

    import heat_hf  # noqa: F401
    from heat_hf.encoders.checkpoints.tokenizer import load_tokenizer
    from heat_hf.encoders.rows import load_rows
    from heat_hf.evaluation.timing import measure_latency

    task = find_task(args.task)
    rows = load_rows(args.data, args.rows)
    names = [args.model, *([args.baseline] if args.baseline else [])]
    # Where the baseline is, its name says alone.
    how = {name: loading(args) if name == args.model else {"trust_remote_code": args.trust_remote_code} for name in names}
    how = {name: with_encoder(name, options)[0] for name, options in how.items()}
    models = {name: _load(task.model_class, name, how[name]) for name in names}
    results: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        tokenizer = load_tokenizer(name, **how[name])
        scores = evaluate_task(model, tokenizer, args.task, rows, args.columns)
        counted = getattr(model, "num_parameters", None)  # of an exported model there is none
        results[name] = {**scores, **({"parameters": counted()} if counted else {})}
    if args.latency:
        for name, latency in measure_latency(models).items():
            results[name]["latency_s"] = dataclasses.asdict(latency)
    show(args, results, _score_table(results))
    return 0


def _load(loader: Any, name: str, how: dict[str, Any]) -> Any:  # noqa: ANN401
    from heat_hf.integrations.exported import load_exported

    return (load_exported(name) or loader.from_pretrained(name, **how)).eval()


def _score_table(results: dict[str, dict[str, Any]]) -> str:
    from heat_hf.reports.text import text_table

    columns = list(dict.fromkeys(column for scores in results.values() for column in scores))
    rows = [(name, *(_cell(scores.get(column, "")) for column in columns)) for name, scores in results.items()]
    return text_table(["model", *(column.removesuffix("_s") for column in columns)], [rows], width=120)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['median'] * 1e3:.1f} ms ({value['lower'] * 1e3:.1f}–{value['upper'] * 1e3:.1f})"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
