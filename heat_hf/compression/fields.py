"""What each field of `HeatConfig` may hold: one check a field, which returns the value as JSON can hold it."""

from __future__ import annotations

import math
import os
import re
import re._parser as parser  # type: ignore[import-not-found, unused-ignore]
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from heat_hf.encoders.values import real, shown, whole
from heat_hf.formats import TensorShape

Check = Callable[[str, Any], Any]  # name, value → the value as JSON can hold it; raises ValueError

MOST_TOKENS = 2**18  # of one forward pass, 512 times 512; with many more the cost model takes minutes
MOST_ITERATIONS = 100_000
MOST_SEED = 2**32 - 1  # as NumPy and Transformers have it
MOST_EXTENT = 2**31 - 1
MOST_MODES = 12  # of a shape; the search for a contraction path grows exponentially with them
MOST_BUDGETS = 1000
_MODE = re.compile(r"\s*[0-9]{1,9}\s*")
NAME_LENGTH = 64  # characters of a module's name, about
MOST_WAYS = 10**8  # in which an expression may match that many characters


def choice(names: Callable[[], Iterable[str]]) -> Check:
    """One of some names, which are asked for anew at every check: formats and methods can be added."""

    def check(name: str, value: Any) -> str:  # noqa: ANN401
        known = list(names())
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {shown(value)}")
        return value

    return check


def number(least: int, most: int) -> Check:
    """A whole number within bounds."""
    return lambda name, value: whole(name, value, least, most)


def truth(name: str, value: Any) -> bool:  # noqa: ANN401
    """True or False, also NumPy's; words such as "no" are true to Python, and refused."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def optional(check: Check) -> Check:
    """None, or what another check takes."""
    return lambda name, value: None if value is None else check(name, value)


def path(name: str, value: Any) -> str:  # noqa: ANN401
    """A file's or an accelerator's name, not empty."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ValueError(f"{name} must be a name or a path, got {shown(value)}")
    return text


def targets(below: float, what: str) -> Check:
    """A number above 0 and below a limit, or a list of different ones."""

    def check(name: str, value: Any) -> float | list[float]:  # noqa: ANN401
        if not isinstance(value, (list, tuple)):
            return real(name, value, below, what)
        if not 0 < len(value) <= MOST_BUDGETS:
            raise ValueError(f"{name} must be one number, or a list of different ones, got {shown(value)}")
        found = [real(name, one, below, what) for one in value]
        if len(set(found)) < len(found):
            raise ValueError(f"{name} must be one number, or a list of different ones, got {shown(value)}")
        return found

    return check


def by_size(check: Check) -> Check:
    """A value for all matrices, or a mapping from a matrix size to a value."""

    def checked(name: str, value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, Mapping):
            return check(name, value)
        for size in value:
            if not isinstance(size, str) or not re.fullmatch(r"\d{1,9}x\d{1,9}", size):
                raise ValueError(f"{name} must be a mapping from matrix sizes such as '384x1536', got the key {shown(size)}")
        if not value:
            raise ValueError(f"{name} must be a value, or a mapping from matrix sizes to values, got {shown(value)}")
        return {size: check(f"{name} of {size}", one) for size, one in value.items()}

    return checked


def rank(name: str, value: Any) -> int | list[int]:  # noqa: ANN401
    """A uniform rank, or one for each rank of the format."""
    if not isinstance(value, (list, tuple)):
        return whole(name, value, 1, MOST_EXTENT)
    if not 0 < len(value) <= MOST_MODES:
        raise ValueError(f"{name} must be a rank or a list of up to {MOST_MODES} of them, got {shown(value)}")
    return [whole(name, one, 1, MOST_EXTENT) for one in value]


def shape(name: str, value: Any) -> str | list[int] | list[list[int]]:  # noqa: ANN401
    """A tensorization shape as a person writes it; whether it fits a matrix is seen later."""
    if isinstance(value, TensorShape):
        value = [value.out_modes, value.in_modes]
    sides = _sides(value)
    if sides is None or not 0 < sum(map(len, sides)) <= MOST_MODES:
        raise ValueError(
            f"{name} must be a shape of up to {MOST_MODES} modes, as '384:16x24' or [[384], [16, 24]], got {shown(value)}"
        )
    found = [[whole(f"a mode of {name}", mode, 1, MOST_EXTENT) for mode in side] for side in sides]
    if isinstance(value, str):
        return value
    return found if len(found) == 2 else found[0]


def _sides(value: Any) -> list[list[Any]] | None:  # noqa: ANN401
    """Modes of rows and of columns, or of both in one list; None where it is neither."""
    if isinstance(value, str):
        value = [[int(mode) if _MODE.fullmatch(mode) else mode for mode in side.split("x")] for side in value.split(":")]
        return value if len(value) <= 2 else None
    if not isinstance(value, (list, tuple)):
        return None
    nested = [isinstance(side, (list, tuple)) for side in value]
    if len(value) == 2 and all(nested):
        return [list(side) for side in value]
    return None if any(nested) else [list(value)]


def patterns(name: str, value: Any) -> list[str]:  # noqa: ANN401
    """Regular expressions, each of which is decided in bounded time."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(pattern, str) for pattern in value):
        raise ValueError(f"{name} must be a list of regular expressions, got {shown(value)}")
    for pattern in value:
        try:
            re.compile(pattern)
            tries = _ways(parser.parse(pattern))
        except (re.error, RecursionError, OverflowError, MemoryError) as error:
            raise ValueError(f"{name} has an invalid regular expression {shown(pattern)}: {error}") from error
        if tries > MOST_WAYS:
            raise ValueError(
                f"{name} has a regular expression that may take for ever, {shown(pattern)}: "
                "use fewer of * and +, and none inside another"
            )
    return list(value)


def _ways(parsed: Any) -> float:  # noqa: ANN401
    """In how many ways, at most, a parsed expression can match at one place: so often backtracking tries."""
    return math.prod(_ways_of(str(kind), value) for kind, value in parsed)


def _ways_of(kind: str, value: Any) -> float:  # noqa: ANN401
    if kind.endswith("REPEAT"):  # greedy, lazy, possessive
        least, most, body = int(value[0]), int(value[1]), _ways(value[2])
        counts = range(least, max(least, min(most, NAME_LENGTH)) + 1)
        # A literal that is repeated matches in one way for every count; what matches nothing still takes time to repeat.
        return max(1, least) * sum(math.exp(min(count * math.log(body), 500.0)) for count in counts)
    if kind == "BRANCH":
        return sum(map(_ways, value[1]))
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return math.prod(_ways(part) for part in parts if isinstance(part, parser.SubPattern))
