"""`heat-hf search shapes`."""

from __future__ import annotations

import argparse
import os
import sys

from heat_hf.cli import options
from heat_hf.cli.values import loading, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `search shapes`."""
    parser.add_argument("model", help="Hub id or folder of the dense checkpoint")
    space = parser.add_argument_group("what is tried")
    space.add_argument("--formats", nargs="+", metavar="F", help="default: all")
    space.add_argument(
        "--orders", nargs="+", type=options.COUNT, metavar="D", help="numbers of modes (default: 2 to 4, as possible)"
    )
    space.add_argument(
        "--top-k", type=options.COUNT, default=3, metavar="K", help="factorizations of a side kept (default: %(default)s)"
    )
    space.add_argument(
        "--budgets", type=options.COUNT, default=9, metavar="B", help="sizes tried of a shape (default: at least %(default)s)"
    )
    space.add_argument(
        "--layers", type=_layers, default="1", metavar="N|all", help="matrices of one size to decompose (default: %(default)s)"
    )
    options.add_matrices(space)
    options.add_seed(space)
    run = parser.add_argument_group("what is fed, and where it runs")
    options.add_tokens(run)
    options.add_accelerator(run, "hardware, cpu for this machine; ")
    options.add_runtime(run)
    run.add_argument(
        "--workers", type=options.COUNT, metavar="N", help="processes on this machine (default: its cores, shared)"
    )
    options.add_cache(run, "other searches")
    options.add_loading(parser.add_argument_group("loading"))
    out = parser.add_argument_group("output")
    options.add_output(out, "TABLE", "Parquet file; an interrupted search goes on from there", required=True)
    options.add_overwrite(out, "another table")
    options.add_json(out, "what was found")


def run(args: argparse.Namespace) -> int:
    """Fill a cost table, and print what was found. Under `accelerate launch`, the first process prints."""
    from heat_hf.compression.compressor import HeatCompressor
    from heat_hf.formats import FORMATS
    from heat_hf.hardware.analytic import cost_model
    from heat_hf.hardware.spec import CPU
    from heat_hf.reports.shapes import table_data, table_text
    from heat_hf.search.shapes.search import ShapeSearch, search_shapes

    search = ShapeSearch(
        formats=tuple(args.formats or FORMATS),
        orders=None if args.orders is None else tuple(args.orders),
        top_k=args.top_k,
        budgets=args.budgets,
        layers=args.layers,
        seed=args.seed,
    )
    costs = cost_model(args.accelerator, args.cache, args.runtime, args.precision)
    model = HeatCompressor.from_pretrained(args.model, **loading(args)).model
    table = search_shapes(
        model,
        costs,
        args.sequence_length * args.batch_size,
        search,
        output=args.output,
        overwrite=args.overwrite,
        workers=args.workers or (1 if args.accelerator == CPU else _own_cores()),  # what measures must be alone
        modules=args.modules,
        exclude=args.exclude,
    )
    if os.environ.get("RANK", "0") == "0":
        show(args, table_data(table), table_text(table))
        print(f"saved to {args.output}; draw it with: heat-hf report {args.output} --output DIR", file=sys.stderr)
    return 0


def _layers(text: str) -> int | None:
    if text == "all":
        return None
    try:
        return options.COUNT(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or all") from error


def _own_cores() -> int:
    """Cores for this process, of those it may use: its share where `accelerate launch` started several."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
