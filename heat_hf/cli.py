"""The `heat-hf` command. Every verb is also reachable as `optimum-cli heat VERB`.

Beyond what importing heat_hf loads anyway, each verb imports what it needs inside its `run_…` function.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from heat_hf.config import CALIBRATION_MEMORY
from heat_hf.formats import FORMATS
from heat_hf.setting import EXECUTIONS

BAD_INPUT = 2


def _pairs(values: Sequence[str] | None, read: Callable[[str], Any]) -> Any:  # noqa: ANN401
    """`["V"]` → V for all matrices; `["384x1536=V", …]` → a mapping by matrix size."""
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return read(values[0])
    if not all("=" in value for value in values):
        raise ValueError(f"give one value for all matrices or SIZE=VALUE for each size, got {' '.join(values)}")
    return {size: read(value) for size, value in (value.split("=", 1) for value in values)}


def _rank(text: str) -> int | list[int]:
    try:
        ranks = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--rank must be an integer or integers with commas between, got {text!r}") from error
    return ranks[0] if len(ranks) == 1 else ranks


def add_compress_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `compress`."""
    parser.add_argument("model", help="Hub id or folder of the dense checkpoint")
    size = parser.add_argument_group("what to factorize, and how far")
    size.add_argument("--decomposition", default="low_rank", help=f"{', '.join(FORMATS)} (default: %(default)s)")
    size.add_argument("--target-params-ratio", type=float, metavar="R", help="parameters to keep, 0 < R < 1")
    size.add_argument("--rank", nargs="+", metavar="[SIZE=]R", help="rank instead: 64, or 16,24,80, or 384x1536=96 …")
    size.add_argument("--shape", nargs="+", metavar="[SIZE=]S", help="tensorization shape: 768:12x64, or 384x1536=384:32x48 …")
    size.add_argument("--modules", nargs="+", metavar="REGEX", help="linears to factorize (default: the Transformer blocks')")
    size.add_argument("--exclude", nargs="+", default=[], metavar="REGEX", help="linears to leave dense")
    how = parser.add_argument_group("calibration and decomposition")
    how.add_argument("--calibration-file", metavar="FILE", help="sentences for the activation-aware projection")
    how.add_argument("--calibration-rows", type=int, default=4096, metavar="N", help="rows of it to use (default: %(default)s)")
    how.add_argument("--calibration-memory", default="model", choices=CALIBRATION_MEMORY, help="default: %(default)s")
    how.add_argument("--match-variance", action="store_true", help="scale W' to the variance of W")
    how.add_argument("--seed", type=int, default=0)
    run = parser.add_argument_group("execution")
    run.add_argument("--execution", default="auto", choices=EXECUTIONS, help="default: %(default)s")
    run.add_argument("--sequence-length", type=int, default=128, metavar="L", help="default: %(default)s")
    run.add_argument("--batch-size", type=int, default=1, metavar="B", help="default: %(default)s")
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="DIR", help="where to save; appears only when all is done")
    out.add_argument("--overwrite", action="store_true", help="replace a non-empty DIR")
    out.add_argument("--max-shard-size", metavar="SIZE", help="split the weights, as 500MB")
    out.add_argument("--dry-run", action="store_true", help="print the plan; decompose and write nothing")
    out.add_argument("--json", action="store_true", help="print the report as JSON")


def run_compress(args: argparse.Namespace) -> int:
    """Compress a checkpoint, or print the plan."""
    from heat_hf.compressor import HeatCompressor
    from heat_hf.config import HeatConfig
    from heat_hf.data import load_rows
    from heat_hf.storage import check_target

    config = HeatConfig(
        decomposition=args.decomposition,
        target_params_ratio=args.target_params_ratio,
        rank=_pairs(args.rank, _rank),
        shape=_pairs(args.shape, str),
        modules=args.modules,
        exclude=args.exclude,
        calibration_memory=args.calibration_memory,
        match_variance=args.match_variance,
        seed=args.seed,
        execution=args.execution,
        sequence_length=args.sequence_length,
        batch_size=args.batch_size,
    )
    if not args.dry_run:
        if args.output is None:
            raise ValueError("--output is missing: name the folder to save to, or use --dry-run")
        check_target(args.output, args.overwrite)
    rows = load_rows(args.calibration_file, args.calibration_rows) if args.calibration_file else None
    compressor = HeatCompressor.from_pretrained(args.model)
    if args.dry_run:
        report = compressor.plan(config)
    else:
        sharding = {"max_shard_size": args.max_shard_size} if args.max_shard_size else {}
        report = compressor.compress(config, rows, args.output, args.overwrite, **sharding)
    _show(args, report.to_dict(), str(report))
    if not args.dry_run:
        print(f"saved to {args.output}; load it with: import heat_hf, then AutoModel….from_pretrained", file=sys.stderr)
    return 0


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `evaluate`."""
    parser.add_argument("model", help="Hub id or folder, dense or compressed")
    parser.add_argument("--task", required=True, help="sentence-similarity or text-classification")
    parser.add_argument("--data", required=True, metavar="FILE", help="labelled rows: parquet, csv, tsv, json or jsonl")
    parser.add_argument("--columns", nargs=3, metavar=("FIRST", "SECOND", "REFERENCE"), help="column names; '' for no SECOND")
    parser.add_argument("--rows", type=int, metavar="N", help="use only the first rows")
    parser.add_argument("--baseline", metavar="MODEL", help="also score this model, as the one it is compared with")
    parser.add_argument("--latency", action="store_true", help="also time a forward pass of 8 × 128 tokens")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")


def run_evaluate(args: argparse.Namespace) -> int:
    """Score one model, or two side by side."""
    import dataclasses

    import transformers

    import heat_hf  # noqa: F401
    from heat_hf.data import load_rows
    from heat_hf.evaluation import TASKS, evaluate_task, measure_latency

    if args.task not in TASKS:
        raise ValueError(f"unknown task {args.task!r}; known are {', '.join(TASKS)}")
    rows = load_rows(args.data, args.rows)
    names = [args.model, *([args.baseline] if args.baseline else [])]
    loader = getattr(transformers, TASKS[args.task].model_class)
    models = {name: loader.from_pretrained(name).eval() for name in names}
    results: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        scores = evaluate_task(model, tokenizer, args.task, rows, args.columns)
        results[name] = {**scores, "parameters": model.num_parameters()}
    if args.latency:
        for name, latency in measure_latency(models).items():
            results[name]["latency_s"] = dataclasses.asdict(latency)
    _show(args, results, _score_table(results))
    return 0


def _score_table(results: dict[str, dict[str, Any]]) -> str:
    from heat_hf.text import text_table

    columns = list(next(iter(results.values())))
    rows = [(name, *(_cell(scores[column]) for column in columns)) for name, scores in results.items()]
    return text_table(["model", *(column.removesuffix("_s") for column in columns)], [rows], width=120)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['median'] * 1e3:.1f} ms ({value['lower'] * 1e3:.1f}–{value['upper'] * 1e3:.1f})"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `report`."""
    parser.add_argument("model", help="Hub id or folder of a compressed model")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run_report(args: argparse.Namespace) -> int:
    """Print the report of a compressed model."""
    from pathlib import Path

    from heat_hf.report import REPORT_NAME, CompressionReport

    folder = Path(args.model)
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        folder = Path(hf_hub_download(args.model, REPORT_NAME)).parent
    report = CompressionReport.load(folder)
    _show(args, report.to_dict(), str(report))
    return 0


def _show(args: argparse.Namespace, data: object, text: str) -> None:
    print(json.dumps(data, indent=2) if args.json else text)


@dataclass(frozen=True)
class Verb:
    """A subcommand: its help line, its arguments, and what it does."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


VERBS = {
    "compress": Verb("factorize a checkpoint's encoder linears", add_compress_arguments, run_compress),
    "evaluate": Verb("score a model on labelled rows", add_evaluate_arguments, run_evaluate),
    "report": Verb("show what a compressed model's tensors got", add_report_arguments, run_report),
}


def build_parser(prog: str = "heat-hf") -> argparse.ArgumentParser:
    """The parser of `heat-hf`."""
    parser = argparse.ArgumentParser(prog=prog, description="Hardware-efficient tensor factorization of Transformer encoders.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        verb.add_arguments(verbs.add_parser(name, help=verb.help, description=f"{verb.help[0].upper()}{verb.help[1:]}."))
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "heat-hf") -> int:
    """Entry point; returns the exit code: 0 for success, 2 for bad input, which gets one line on standard error."""
    args = build_parser(prog).parse_args(argv)
    try:
        return VERBS[args.verb].run(args)
    except (ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
