"""What a reader needs to run a benchmark again, written into every result file."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import version

CAPTION_WORDS = 40  # more belongs into the page's text


def provenance(command: str, *packages: str) -> dict:
    """The command, the machine and the versions of the packages that matter."""
    return {
        "command": command,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}",
        "versions": {name: version(name) for name in packages},
    }


def source_line(data: dict) -> str:
    """The provenance of a result file as the line under its table."""
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    return f"`{data['command']}`; {data['machine']}; {versions}."


def captioned(lines: Iterable[str], caption: str, source: str) -> str:
    """A table, or several with an empty line between, over its caption and where it comes from.

    Raises:
        ValueError: for a caption of more than `CAPTION_WORDS` words.
    """
    words = len(caption.split())
    if words > CAPTION_WORDS:
        raise ValueError(f"a caption has at most {CAPTION_WORDS} words, this one has {words}: {caption}")
    return "\n".join([*lines, "", caption, "", source])
