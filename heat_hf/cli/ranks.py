"""`heat-hf search ranks`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from heat_hf.cli import options
from heat_hf.cli.values import heat_config, loading, rows_of, show, statistics_of
from heat_hf.formats import FORMATS
from heat_hf.search.ranks.methods import MIXED, RANK_SEARCHES

if TYPE_CHECKING:
    from heat_hf.search.ranks.supernet import SuperNetArguments

METHODS = tuple(name for name, method in RANK_SEARCHES.items() if not method.needs_table)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `search ranks`."""
    parser.add_argument("model", help="Hub id or folder of the dense checkpoint")
    what = parser.add_argument_group("what is searched")
    what.add_argument(
        "--rank-search", metavar="METHOD", default="sensitivity", help=f"{', '.join(METHODS)} (default: %(default)s)"
    )
    what.add_argument("--decomposition", default="low_rank", help=f"{', '.join(FORMATS)}, {MIXED} (default: %(default)s)")
    targets = {
        "edp-ratio": "EDP of all tensors to keep, 0 < R < 1; several give a variant each",
        "params-ratio": "parameters to keep instead",
        "latency-ratio": "time of all matrices on the accelerator to keep instead, 0 < R < 1",
        "latency": "the same in seconds",
    }
    options.add_targets(what, targets, several=True)
    options.add_joint(what)
    options.add_shape(what)
    options.add_cost_table(what, "for shapes")
    options.add_matrices(what, "choose for", "alone")
    options.add_seed(what)
    data = parser.add_argument_group("data, a .txt, .parquet, .csv, .tsv, .json or .jsonl file each")
    options.add_rows(data, "calibration", "sentences like those the model will see", 2048)
    options.add_statistics(data)
    options.add_rows(data, "train", "to distil the SuperNet on (default: the calibration file)")
    options.add_rows(data, "eval", "to score SubNets on, with a column label or without", 1000)
    train = parser.add_argument_group("the SuperNet")
    train.add_argument("--steps", type=options.COUNT, default=600, metavar="N", help="of its training (default: %(default)s)")
    train.add_argument("--train-batch-size", type=options.COUNT, default=32, metavar="B", help="default: %(default)s")
    train.add_argument("--learning-rate", type=options.real(0, 1), default=1e-4, metavar="R", help="default: %(default)s")
    train.add_argument(
        "--subnets", type=options.COUNT, metavar="N", help="SubNets to evaluate (default: 200 for each core, said)"
    )
    train.add_argument(
        "--without", nargs="+", default=[], metavar="STABILIZER",
        help="leave some out, to see what they are worth: first_slices, bounded_change, sandwich, normalized_variance",
    )  # fmt: skip
    run = parser.add_argument_group("what is fed, and the hardware")
    options.add_tokens(run)
    options.add_accelerator(run, "hardware, cpu for this machine; ")
    options.add_runtime(run)
    options.add_loading(parser.add_argument_group("loading"))
    out = parser.add_argument_group("output")
    options.add_output(out, "RECORD", "JSON file; an interrupted search goes on from there", required=True)
    options.add_overwrite(out, "another record")
    options.add_json(out, "what was found")


def run(args: argparse.Namespace) -> int:
    """Find ranks for every budget, and print them."""
    from heat_hf.compression.compressor import HeatCompressor

    if args.rank_search not in METHODS:
        raise ValueError(f"--rank-search must be one of {', '.join(METHODS)}, got {args.rank_search!r}")
    config = heat_config(args)
    rows = {f"{name}_dataset": rows_of(args, name) for name in ("calibration", "train", "eval")}
    supernet: dict[str, Any] = {"arguments": _arguments(args)} if RANK_SEARCHES[args.rank_search].needs_training else {}
    compressor = HeatCompressor.from_pretrained(args.model, **loading(args))
    supernet["statistics"] = statistics_of(args, compressor, config, rows["calibration_dataset"])
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

    subnets = args.subnets or default_subnets()
    if args.subnets is None:
        print(f"evaluating {subnets} SubNets, 200 for each core; the paper takes 2,560 (--subnets)", file=sys.stderr)
    return SuperNetArguments(
        max_steps=args.steps,
        per_device_train_batch_size=args.train_batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=max(1, args.steps // 10),
        subnets=subnets,
        without=args.without,
        seed=args.seed,
    )
