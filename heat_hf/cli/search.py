"""`heat-hf search`."""

from __future__ import annotations

import argparse
import os
import sys

from heat_hf.cli import ranks
from heat_hf.cli.values import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `search`: those of what is searched."""
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (help, add, _) in KINDS.items():
        add(kinds.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}."))


def run(args: argparse.Namespace) -> int:
    """Search, and print what was found."""
    return KINDS[args.what][2](args)


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="Hub id or folder of the dense checkpoint")
    space = parser.add_argument_group("what is tried")
    space.add_argument("--formats", nargs="+", metavar="F", help="default: all")
    space.add_argument("--orders", nargs="+", type=int, metavar="D", help="numbers of modes (default: 2 to 4, as possible)")
    space.add_argument("--top-k", type=int, default=3, metavar="K", help="factorizations of a side kept (default: %(default)s)")
    space.add_argument(
        "--budgets", type=int, default=9, metavar="B", help="sizes tried of a shape (default: at least %(default)s)"
    )
    space.add_argument(
        "--layers", default="1", metavar="N|all", help="matrices of one size to decompose (default: %(default)s)"
    )
    space.add_argument("--modules", nargs="+", metavar="REGEX", help="linears to factorize (default: the Transformer blocks')")
    space.add_argument("--exclude", nargs="+", default=[], metavar="REGEX", help="linears to leave dense")
    space.add_argument("--seed", type=int, default=0)
    run = parser.add_argument_group("what is fed, and where it runs")
    run.add_argument("--sequence-length", type=int, default=128, metavar="L", help="default: %(default)s")
    run.add_argument("--batch-size", type=int, default=1, metavar="B", help="default: %(default)s")
    run.add_argument("--accelerator", default="simba-l", metavar="NAME|FILE.yaml", help="default: %(default)s")
    run.add_argument("--workers", type=int, metavar="N", help="processes on this machine (default: its cores, shared)")
    run.add_argument("--cache", metavar="DIR", help="keep mappings there for other searches")
    out = parser.add_argument_group("output")
    out.add_argument("--output", required=True, metavar="TABLE", help="Parquet file; an interrupted search goes on from there")
    out.add_argument("--overwrite", action="store_true", help="replace another table")
    out.add_argument("--json", action="store_true", help="print what was found as JSON")


def _run_shapes(args: argparse.Namespace) -> int:
    """Fill a cost table and print what it says. Under `accelerate launch`, the first process prints."""
    from heat_hf.compression.compressor import HeatCompressor
    from heat_hf.formats import FORMATS
    from heat_hf.reports.shapes import table_data, table_text
    from heat_hf.search.shapes.search import ShapeSearch, search_shapes

    search = ShapeSearch(
        formats=tuple(args.formats or FORMATS),
        orders=None if args.orders is None else tuple(args.orders),
        top_k=args.top_k,
        budgets=args.budgets,
        layers=_layers(args.layers),
        seed=args.seed,
    )
    for option in ("sequence_length", "batch_size", "workers"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be at least 1, got {value}")
    model = HeatCompressor.from_pretrained(args.model).model
    table = search_shapes(
        model,
        args.accelerator,
        args.sequence_length * args.batch_size,
        search,
        output=args.output,
        overwrite=args.overwrite,
        workers=args.workers or _own_cores(),
        cache=args.cache,
        modules=args.modules,
        exclude=args.exclude,
    )
    if os.environ.get("RANK", "0") == "0":
        show(args, table_data(table), table_text(table))
        print(f"saved to {args.output}; draw it with: heat-hf report shapes {args.output} --output DIR", file=sys.stderr)
    return 0


def _layers(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise ValueError(f"--layers must be a positive integer or all, got {text!r}")
    return int(text)


def _own_cores() -> int:
    """Cores for this process, of those it may use: its share where `accelerate launch` started several."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


KINDS = {
    "shapes": ("the cost table of all tensorization shapes and ranks (Level 1)", _add_shapes, _run_shapes),
    "ranks": ("a rank for every tensor within budgets of the whole network (Level 2)", ranks.add_arguments, ranks.run),
}
