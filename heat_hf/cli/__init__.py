"""The `heat-hf` command. Every verb is also reachable as `optimum-cli heat VERB`.

Parsing takes names alone: neither torch nor Transformers is loaded before a verb's `run`, which imports what it needs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heat_hf.cli import compress, cost, distill, evaluate, export, push, report, search
from heat_hf.encoders.checkpoints.names import package_version

BAD_INPUT = 2


@dataclass(frozen=True)
class Verb:
    """A subcommand: its help line, its arguments, and what it does."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


VERBS = {
    "compress": Verb("factorize a checkpoint's encoder linears", compress.add_arguments, compress.run),
    "cost": Verb("what a product, a matrix or a model costs on an accelerator", cost.add_arguments, cost.run),
    "distill": Verb("train a compressed model to match the dense one", distill.add_arguments, distill.run),
    "evaluate": Verb("score a model on labelled rows", evaluate.add_arguments, evaluate.run),
    "export": Verb("export a model to ONNX, in float32 or int8", export.add_arguments, export.run),
    "push": Verb("push a compressed model to the Hub, with its card", push.add_arguments, push.run),
    "report": Verb("show what a compressed model's tensors got, or a cost table", report.add_arguments, report.run),
    "search": Verb("find tensorization shapes and ranks for a checkpoint", search.add_arguments, search.run),
}


def build_parser(prog: str = "heat-hf") -> argparse.ArgumentParser:
    """The parser of `heat-hf`."""
    parser = argparse.ArgumentParser(prog=prog, description="Hardware-efficient tensor factorization of Transformer encoders.")
    parser.add_argument("--version", action="version", version=f"heat-hf {package_version()}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        verb.add_arguments(verbs.add_parser(name, help=verb.help, description=f"{verb.help[0].upper()}{verb.help[1:]}."))
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "heat-hf") -> int:
    """Entry point; returns the exit code: 0 for success, 2 for bad input, which gets one line on standard error."""
    args = build_parser(prog).parse_args(argv)
    try:
        return VERBS[args.verb].run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return BAD_INPUT
