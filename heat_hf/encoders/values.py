"""Values that people give: shown in a message, and checked. Every check returns the value as JSON can hold it."""

from __future__ import annotations

import numbers
from typing import Any

SHOWN = 80  # characters of a value in a message
TOLD = 600  # characters of a message of others


def brief(text: str) -> str:
    """A message of others: one line, not long."""
    line = " ".join(text.split())
    return line if len(line) <= TOLD else f"{line[:TOLD]}…"


def shown(value: object) -> str:
    """A value for a message: one line, not long, whatever the value is."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # another's __repr__, or an integer of more digits than Python prints
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def whole(name: str, value: Any, least: int, most: int) -> int:  # noqa: ANN401
    """A whole number within bounds, both included; NumPy's, too.

    Raises:
        ValueError: for anything else, truth values included.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= int(value) <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most:,}, got {shown(value)}")
    return int(value)


def real(name: str, value: Any, below: float, what: str) -> float:  # noqa: ANN401
    """A number above 0 and below a limit; NumPy's, too.

    Args:
        name: of the value.
        value: to check.
        below: the limit.
        what: the value must be, for the message.

    Raises:
        ValueError: for anything else, NaN, infinity and truth values included.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 < value < below:
        raise ValueError(f"{name} must be {what}, got {shown(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} must be {what}, got {shown(value)}") from error
