"""Options that several verbs share, one definition of each. A verb adds them to its own groups, in its own order."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from heat_hf.hardware.machine.runtimes import PRECISIONS, RUNTIMES

Group = argparse._ActionsContainer  # a parser, or a group of its arguments
HELP = " (see "  # then where; ends a parser's errors
LARGEST = 2**24  # of what is counted: rows, tokens, steps; more than any machine has the memory or the time for


class Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, to be told in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(f"{message}{HELP}{self.prog} --help)")


def whole(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """A whole number in a range, as the type of an option."""

    def read(text: str) -> int:
        if len(text) > 20 or not text.removeprefix("-").isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, got {text!r}")
        return int(text)

    return read


def real(least: float, most: float) -> Callable[[str], float]:
    """A number between two others, neither of them, as the type of an option."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least < value < most:
            raise argparse.ArgumentTypeError(f"must be between {least:g} and {most:g}, got {text!r}")
        return value

    return read


COUNT = whole(1)
SEED = whole(0, 2**32 - 1)


def output_path(text: str) -> str:
    """Where a result may go, as the type of an option: not nowhere, and not below a file."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"must name a place to write to, got {text!r}")
    file = next((folder for folder in Path(text).absolute().parents if folder.exists() and not folder.is_dir()), None)
    if file is not None:
        raise argparse.ArgumentTypeError(f"must not lie below a file, got {text!r}, and {file} is one")
    return text


def add_targets(group: Group, texts: Mapping[str, str], several: bool = False) -> None:
    """`--target-…`: how far to compress.

    Args:
        group: where.
        texts: "params-ratio", "edp-ratio", "latency-ratio" and "latency", each with its help, in the order to list them in.
        several: whether a target may have several values.
    """
    for name, text in texts.items():
        limits = real(0, math.inf) if name == "latency" else real(0, 1)
        metavar = "S" if name == "latency" and not several else "R"
        group.add_argument(f"--target-{name}", type=limits, nargs="+" if several else None, metavar=metavar, help=text)


def add_shape(group: Group) -> None:
    """`--shape`: of all matrices, or of each size."""
    group.add_argument("--shape", nargs="+", metavar="[SIZE=]S", help="tensorization shape: 768:12x64, or 384x1536=384:32x48 …")


def add_cost_table(group: Group, uses: str) -> None:
    """`--cost-table`: the result of a search for shapes."""
    group.add_argument("--cost-table", metavar="TABLE", help=f"what heat-hf search shapes found, {uses}")


def add_matrices(group: Group, chosen: str = "factorize", others: str = "dense") -> None:
    """`--modules` and `--exclude`: which linears.

    Args:
        group: where.
        chosen: what the chosen ones are for.
        others: as what the others are left.
    """
    group.add_argument("--modules", nargs="+", metavar="REGEX", help=f"linears to {chosen} (default: the Transformer blocks')")
    group.add_argument("--exclude", nargs="+", default=[], metavar="REGEX", help=f"linears to leave {others}")


def add_loading(group: Group) -> None:
    """`--revision`, `--subfolder`, `--trust-remote-code`, `--code-revision`: of the checkpoint, and whether its code runs."""
    add_place(group)
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")


def add_place(group: Group, prefix: str = "", of: str = "the model") -> None:
    """`--revision`, `--subfolder`, `--code-revision`: which files of a checkpoint.

    Args:
        group: where.
        prefix: of the options' names, "teacher-".
        of: whose checkpoint.
    """
    group.add_argument(f"--{prefix}revision", metavar="R", help=f"branch, tag or commit of {of} (default: main)")
    group.add_argument(f"--{prefix}subfolder", metavar="DIR", help=f"of the checkpoint of {of}, where its Transformer is")
    group.add_argument(
        f"--{prefix}code-revision", metavar="R", help=f"of the code that {of} comes with (default: that of {of})"
    )


def add_joint(group: Group) -> None:
    """`--widths`, `--groups` and `--blocks`: what several matrices get together."""
    group.add_argument(
        "--widths", action="store_true", help="also weigh fewer inner neurons of feed-forward networks, and fewer heads"
    )
    group.add_argument("--groups", action="store_true", help="also weigh one basis for the query, key and value of a block")
    group.add_argument("--blocks", action="store_true", help="also weigh dropping whole Transformer blocks")


def add_embedding(group: Group) -> None:
    """`--embedding-rank`: of the word embeddings."""
    group.add_argument("--embedding-rank", type=COUNT, metavar="R", help="of the word embeddings, which stay dense without it")


def add_tiles(group: Group) -> None:
    """`--tile`, `--initial-values` and `--shared-encoders`: of an operator on tiles."""
    from heat_hf.formats.strassen_tile import SCOPES, STARTS, TILE, TILES

    group.add_argument(
        "--tile", type=int, choices=TILES, help=f"tokens and features of a tile of strassen_tile (default: {TILE})"
    )
    group.add_argument("--initial-values", choices=STARTS, help=f"of strassen_tile (default: {STARTS[0]})")
    text = "of strassen_tile: matrices that share what encodes and decodes tiles (default: none do)"
    group.add_argument("--shared-encoders", choices=SCOPES, help=text)


def add_seed(group: Group) -> None:
    """`--seed`: of everything random."""
    group.add_argument("--seed", type=SEED, default=0)


def add_rows(
    group: Group, name: str, text: str, rows: int | None = None, rows_text: str | None = None, required: bool = False
) -> None:
    """`--NAME-file` and `--NAME-rows`: data, and how much of it.

    Args:
        group: where.
        name: of the data.
        text: help of the file.
        rows: default number of rows; None for all.
        rows_text: help of the number of rows.
        required: whether the file must be given.
    """
    group.add_argument(f"--{name}-file", required=required, metavar="FILE", help=text)
    default = "default: all" if rows is None else "default: %(default)s"
    group.add_argument(
        f"--{name}-rows", type=COUNT, default=rows, metavar="N", help=f"{rows_text} ({default})" if rows_text else default
    )


def add_labelled(group: Group, required: bool = True) -> None:
    """`--data`, `--columns` and `--rows`: what a task scores models on."""
    group.add_argument("--data", required=required, metavar="FILE", help="labelled rows: parquet, csv, tsv, json or jsonl")
    group.add_argument("--columns", nargs=3, metavar=("FIRST", "SECOND", "REFERENCE"), help="column names; '' for no SECOND")
    group.add_argument("--rows", type=COUNT, metavar="N", help="use only the first rows")


def add_ranges(group: Group, use: str) -> None:
    """`--calibration-file` and `--calibration-rows`, of an export."""
    add_rows(group, "calibration", f"sentences or rows whose ranges activations get, for {use}", 300, "of these")


def add_statistics(group: Group) -> None:
    """`--statistics`: what was collected of calibration data, read or written."""
    group.add_argument(
        "--statistics", metavar="FILE", help="what calibration found: used if FILE is there, else collected and kept there"
    )


def add_tokens(group: Group) -> None:
    """`--sequence-length` and `--batch-size`: tokens of a forward pass."""
    group.add_argument("--sequence-length", type=COUNT, default=128, metavar="L", help="default: %(default)s")
    group.add_argument("--batch-size", type=COUNT, default=1, metavar="B", help="default: %(default)s")


def add_accelerator(group: Group, use: str = "") -> None:
    """`--accelerator`: the hardware to cost on, with what its costs are used for."""
    group.add_argument("--accelerator", default="simba-l", metavar="NAME|FILE.yaml", help=f"{use}default: %(default)s")


def add_runtime(group: Group) -> None:
    """`--runtime` and `--precision`: what is measured where the hardware is this machine."""
    group.add_argument("--runtime", default="torch", help=f"of --accelerator cpu, {', '.join(RUNTIMES)} (default: %(default)s)")
    group.add_argument("--precision", default="float32", help=f"likewise, {', '.join(PRECISIONS)} (default: %(default)s)")


def add_cache(group: Group, users: str) -> None:
    """`--cache`: where mappings are kept."""
    group.add_argument("--cache", metavar="DIR", help=f"keep mappings there for {users}")


def add_output(group: Group, metavar: str, text: str, required: bool = False) -> None:
    """`--output`: where the result goes."""
    group.add_argument("--output", type=output_path, required=required, metavar=metavar, help=text)


def add_overwrite(group: Group, replaced: str = "a non-empty DIR") -> None:
    """`--overwrite`: replace what is there."""
    group.add_argument("--overwrite", action="store_true", help=f"replace {replaced}")


def add_json(group: Group, printed: str) -> None:
    """`--json`: print as JSON."""
    group.add_argument("--json", action="store_true", help=f"print {printed} as JSON")
