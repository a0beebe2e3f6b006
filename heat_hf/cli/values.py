"""Reading option values, and printing results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any


def parse_pairs(values: Sequence[str] | None, read: Callable[[str], Any]) -> Any:  # noqa: ANN401
    """`["V"]` → V for all matrices; `["384x1536=V", …]` → a mapping by matrix size."""
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return read(values[0])
    if not all("=" in value for value in values):
        raise ValueError(f"give one value for all matrices or SIZE=VALUE for each size, got {' '.join(values)}")
    return {size: read(value) for size, value in (value.split("=", 1) for value in values)}


def parse_rank(text: str) -> int | list[int]:
    """`"64"` → 64, `"16,24,80"` → [16, 24, 80]."""
    try:
        ranks = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--rank must be an integer or integers with commas between, got {text!r}") from error
    return ranks[0] if len(ranks) == 1 else ranks


def show(args: argparse.Namespace, data: object, text: str) -> None:
    """Print the data as JSON if that was asked for, else the text."""
    print(json.dumps(data, indent=2) if args.json else text)
