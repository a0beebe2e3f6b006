"""The `heat-hf` command. Every verb is also reachable as `optimum-cli heat VERB`.

Parsing takes names alone: neither torch nor Transformers is loaded before a verb's `run`, which imports what it needs.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from heat_hf.cli import batch, bench, compress, cost, distill, evaluate, export, push, report, search, trim
from heat_hf.cli.options import Parser
from heat_hf.encoders.checkpoints.names import package_version

BAD_INPUT, INTERRUPTED, BROKEN_PIPE, TERMINATED = 2, 130, 141, 143
BAD_INPUT_ERRORS = (ValueError, OSError, ImportError, OverflowError, MemoryError, RecursionError)
READERS = ("safetensors", "safetensors_rust", "datasets", "pyarrow", "huggingface_hub", "yaml", "csv", "_csv")
"""Libraries that read what the user names: their errors are about that, whatever class they have."""
KEPT = (".partial", ".checkpoints")  # after the output's name: what an interrupted command leaves to go on from


class Terminated(BaseException):
    """SIGTERM, so that what is half written is removed on the way out, as after Ctrl-C."""


@dataclass(frozen=True)
class Verb:
    """A subcommand: its help line, its arguments, and what it does."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


VERBS = {
    "batch": Verb("compress many checkpoints to many budgets", batch.add_arguments, batch.run),
    "bench": Verb("time models side by side in the runtimes of this machine", bench.add_arguments, bench.run),
    "compress": Verb("factorize a checkpoint's encoder linears", compress.add_arguments, compress.run),
    "cost": Verb("what a product, a matrix or a model costs on an accelerator", cost.add_arguments, cost.run),
    "distill": Verb("train a compressed model to match the dense one", distill.add_arguments, distill.run),
    "evaluate": Verb("score a model on labelled rows", evaluate.add_arguments, evaluate.run),
    "export": Verb("export a model to ONNX or OpenVINO, in float32 or int8", export.add_arguments, export.run),
    "push": Verb("push a compressed model to the Hub, with its card", push.add_arguments, push.run),
    "report": Verb("show what a model, a search or a layer has, and draw it", report.add_arguments, report.run),
    "search": Verb("find tensorization shapes and ranks for a checkpoint", search.add_arguments, search.run),
    "trim": Verb("leave a checkpoint with the tokens of a corpus", trim.add_arguments, trim.run),
}


def build_parser(prog: str = "heat-hf") -> argparse.ArgumentParser:
    """The parser of `heat-hf`."""
    parser = Parser(prog=prog, description="Hardware-efficient tensor factorization of Transformer encoders.")
    parser.add_argument("--version", action="version", version=f"heat-hf {package_version()}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        verb.add_arguments(verbs.add_parser(name, help=verb.help, description=f"{verb.help[0].upper()}{verb.help[1:]}."))
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "heat-hf") -> int:
    """Entry point.

    Returns:
        The exit code: 0 for success; 2 for bad input, 130 after Ctrl-C and 143 after SIGTERM, with one line on standard error;
        141 if nobody reads what is printed.
    """
    args = None
    try:
        with _terminable():
            args = build_parser(prog).parse_args(argv)
            code = VERBS[args.verb].run(args)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's last flush fails, too
        return BROKEN_PIPE
    except (KeyboardInterrupt, Terminated) as stop:
        word, code = ("terminated", TERMINATED) if isinstance(stop, Terminated) else ("interrupted", INTERRUPTED)
        return _tell(prog, f"{word}{_kept(args)}", code)
    except Exception as error:
        if not isinstance(error, BAD_INPUT_ERRORS) and type(error).__module__.split(".")[0] not in READERS:
            raise
        return _tell(prog, str(error) or type(error).__name__, BAD_INPUT)


def _tell(prog: str, text: str, code: int) -> int:
    line = f"{prog}: {' '.join(text.split())}"
    bars = sys.modules.get("tqdm")
    if bars is None:
        print(line, file=sys.stderr)
    else:
        bars.tqdm.write(line, file=sys.stderr)  # on a line of its own, also where a bar of another thread is on the last one
    return code


def _kept(args: argparse.Namespace | None) -> str:
    """What the same command goes on from."""
    output = getattr(args, "output", None)
    kept = (
        [] if output is None else [f"{output.rstrip('/')}{end}" for end in KEPT if Path(f"{output.rstrip('/')}{end}").exists()]
    )
    return f"; the same command goes on from {' and '.join(kept)}" if kept else ""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the block, unless somebody else handles it."""

    def stop(*_: object) -> None:
        raise Terminated

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # else a late Ctrl-C is a traceback
