"""Files of a checkpoint that may be damaged or hostile: read in bounded memory, and what is wrong is one sentence."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from heat_hf.encoders.values import brief, shown

MOST_BYTES = 32 * 2**20  # of a JSON file: several times what the settings of 20,000 tensors take
NOT_THE_FILE = (ImportError, MemoryError)  # what is missing is on this machine


def require_regular(path: Path) -> None:
    """Make sure that opening a file neither waits for a writer nor reads a device.

    Raises:
        OSError: if it is no regular file, or is not there.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is no regular file")


def require_readable(path: Path, most: int = MOST_BYTES) -> None:
    """Make sure that a file of JSON or text can be read in bounded memory.

    Raises:
        OSError: as `require_regular`.
        ValueError: if it has more bytes than `most`.
    """
    require_regular(path)
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{path} has {size / 2**20:,.0f} MiB, more than the {most >> 20} that are read")


def read_json(path: str | os.PathLike[str], kind: type = dict) -> Any:  # noqa: ANN401
    """A JSON file, whose numbers are all finite.

    Args:
        path: of a file.
        kind: what it must hold.

    Raises:
        OSError: if it is no regular file, or cannot be opened.
        ValueError: if it is no JSON, is too large or too deep, or holds anything else.
    """
    file = Path(path)
    require_readable(file)
    return parse_json(file.read_bytes(), file, kind)


def parse_json(content: bytes, name: str | os.PathLike[str], kind: type = dict) -> Any:  # noqa: ANN401
    """The content of a JSON file; arguments and errors as of `read_json`."""
    try:
        found = json.loads(content.decode("utf-8"), parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {brief(str(error))}") from error
    if not isinstance(found, kind):
        raise ValueError(f"{name} must hold a JSON {_NAMES[kind]}, got a {type(found).__name__}")
    return found


def typed(found: Mapping[str, Any], name: str, *kinds: type, default: Any = None) -> Any:  # noqa: ANN401
    """A value of a JSON object; the default where it is null or not there.

    Raises:
        ValueError: if it is of no such kind; truth values are no numbers.
    """
    value = found.get(name)
    if value is not None and type(value) not in kinds:
        raise ValueError(f"{name} must be a {' or '.join(kind.__name__ for kind in kinds)}, got {shown(value)}")
    return default if value is None else value


def require_figures(found: Mapping[str, Any], *names: str) -> None:
    """Make sure that values of a JSON object are finite numbers, or null.

    Raises:
        ValueError: naming one that is not.
    """
    for name in names:
        value = typed(found, name, float, int)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {shown(value)}")


_NAMES: Mapping[type, str] = {dict: "object", list: "list"}


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text}, which is no finite number")
    return number


@contextlib.contextmanager
def told(source: str | os.PathLike[str], what: str = "cannot be loaded") -> Iterator[None]:
    """Whatever is raised while something is read that may be damaged, as one sentence that names it.

    Args:
        source: folder, file or Hub id.
        what: is said of it where the error's own class says too little.

    Raises:
        OSError, ValueError: for errors of these classes, and ValueError for any other that the source can cause.
    """
    try:
        yield
    except NOT_THE_FILE:
        raise
    except Exception as error:
        sentence = named(error, source, what)
        if sentence is error:
            raise
        raise sentence from error


def named(error: Exception, source: str | os.PathLike[str], what: str = "cannot be loaded") -> Exception:
    """An error as `told` raises it; the error itself if it is such a sentence already."""
    text, plain = str(error), brief(str(error))
    if not isinstance(error, (ValueError, OSError)):
        return ValueError(f"{source} {what}: {type(error).__name__}: {plain}")
    if text == plain and str(source) in text:
        return error
    kind = OSError if isinstance(error, OSError) else ValueError
    return kind(plain if str(source) in plain else f"{source} {what}: {plain}")
