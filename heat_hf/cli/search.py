"""`heat-hf search`: its own verbs, by what is searched."""

from __future__ import annotations

import argparse

from heat_hf.cli import ranks, shapes

KINDS = {
    "shapes": ("the cost table of all tensorization shapes and ranks (Level 1)", shapes.add_arguments, shapes.run),
    "ranks": ("a rank for every tensor within budgets of the whole network (Level 2)", ranks.add_arguments, ranks.run),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `search`: those of what is searched."""
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (help, add, _) in KINDS.items():
        add(kinds.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}."))


def run(args: argparse.Namespace) -> int:
    """Search, and print what was found."""
    return KINDS[args.what][2](args)
