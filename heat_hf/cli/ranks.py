"""`heat-hf search ranks`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from heat_hf.cli.values import parse_pairs, show
from heat_hf.compression.config import MIXED, RANK_SEARCHES
from heat_hf.formats import FORMATS

if TYPE_CHECKING:
    from heat_hf.search.ranks.supernet import SuperNetArguments

METHODS = tuple(name for name in RANK_SEARCHES if name != "pareto")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `search ranks`."""
    parser.add_argument("model", help="Hub id or folder of the dense checkpoint")
    what = parser.add_argument_group("what is searched")
    what.add_argument("--method", default="sensitivity", help=f"{', '.join(METHODS)} (default: %(default)s)")
    what.add_argument("--decomposition", default="low_rank", help=f"{', '.join(FORMATS)}, {MIXED} (default: %(default)s)")
    for name, text in (
        ("edp-ratio", "EDP of all tensors to keep, 0 < R < 1; several give a variant each"),
        ("params-ratio", "parameters to keep instead"),
        ("latency", "seconds of a forward pass on the accelerator instead"),
    ):
        what.add_argument(f"--target-{name}", type=float, nargs="+", metavar="R", help=text)
    what.add_argument("--shape", nargs="+", metavar="[SIZE=]S", help="tensorization shape: 768:12x64, or 384x1536=384:32x48 …")
    what.add_argument("--cost-table", metavar="TABLE", help="what heat-hf search shapes found, for shapes")
    what.add_argument("--modules", nargs="+", metavar="REGEX", help="linears to choose for (default: the Transformer blocks')")
    what.add_argument("--exclude", nargs="+", default=[], metavar="REGEX", help="linears to leave alone")
    what.add_argument("--seed", type=int, default=0)
    data = parser.add_argument_group("data, a .txt, .parquet, .csv, .tsv, .json or .jsonl file each")
    data.add_argument("--calibration-file", metavar="FILE", help="sentences like those the model will see")
    data.add_argument("--calibration-rows", type=int, default=2048, metavar="N", help="default: %(default)s")
    data.add_argument("--train-file", metavar="FILE", help="to distil the SuperNet on (default: the calibration file)")
    data.add_argument("--train-rows", type=int, metavar="N", help="default: all")
    data.add_argument("--eval-file", metavar="FILE", help="to score SubNets on, with a column label or without")
    data.add_argument("--eval-rows", type=int, default=1000, metavar="N", help="default: %(default)s")
    train = parser.add_argument_group("the SuperNet")
    train.add_argument("--steps", type=int, default=600, metavar="N", help="of its training (default: %(default)s)")
    train.add_argument("--train-batch-size", type=int, default=32, metavar="B", help="default: %(default)s")
    train.add_argument("--learning-rate", type=float, default=1e-4, metavar="R", help="default: %(default)s")
    train.add_argument("--subnets", type=int, metavar="N", help="SubNets to evaluate (default: 200 for each core, said)")
    run = parser.add_argument_group("what is fed, and the hardware")
    run.add_argument("--sequence-length", type=int, default=128, metavar="L", help="default: %(default)s")
    run.add_argument("--batch-size", type=int, default=1, metavar="B", help="default: %(default)s")
    run.add_argument("--accelerator", default="simba-l", metavar="NAME|FILE.yaml", help="default: %(default)s")
    out = parser.add_argument_group("output")
    out.add_argument("--output", required=True, metavar="RECORD", help="JSON file; an interrupted search goes on from there")
    out.add_argument("--overwrite", action="store_true", help="replace another record")
    out.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(args: argparse.Namespace) -> int:
    """Find ranks for every budget, and print them."""
    from heat_hf.compression.compressor import HeatCompressor
    from heat_hf.compression.config import HeatConfig
    from heat_hf.encoders.rows import load_rows

    if args.method not in METHODS:
        raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {args.method!r}")
    config = HeatConfig(
        decomposition=args.decomposition,
        rank_search=args.method,
        target_edp_ratio=args.target_edp_ratio,
        target_params_ratio=args.target_params_ratio,
        target_latency=args.target_latency,
        shape=parse_pairs(args.shape, str),
        cost_table=args.cost_table,
        modules=args.modules,
        exclude=args.exclude,
        seed=args.seed,
        sequence_length=args.sequence_length,
        batch_size=args.batch_size,
        accelerator=args.accelerator,
    )
    rows = {
        name: load_rows(file, count) if file else None
        for name, file, count in (
            ("calibration_dataset", args.calibration_file, args.calibration_rows),
            ("train_dataset", args.train_file, args.train_rows),
            ("eval_dataset", args.eval_file, args.eval_rows),
        )
    }
    supernet: dict[str, Any] = {"arguments": _arguments(args)} if args.method == "supernet" else {}
    compressor = HeatCompressor.from_pretrained(args.model)
    record = compressor.search_ranks(config, output=args.output, overwrite=args.overwrite, **rows, **supernet)
    show(args, record.to_dict(), str(record))
    first = record.variants[0].name
    print(
        f"saved to {args.output}; compress with: heat-hf compress {args.model} --ranks {args.output} --variant {first} …",
        file=sys.stderr,
    )
    return 0


def _arguments(args: argparse.Namespace) -> SuperNetArguments:
    from heat_hf.search.ranks.supernet import SuperNetArguments, default_subnets

    for name in ("steps", "train_batch_size", "subnets"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    subnets = args.subnets or default_subnets()
    if args.subnets is None:
        print(f"evaluating {subnets} SubNets, 200 for each core; the paper takes 2,560 (--subnets)", file=sys.stderr)
    return SuperNetArguments(
        max_steps=args.steps,
        per_device_train_batch_size=args.train_batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=max(1, args.steps // 10),
        subnets=subnets,
        seed=args.seed,
    )
