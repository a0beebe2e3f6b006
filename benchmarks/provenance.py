"""What a reader needs to run a benchmark again, written into every result file."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version


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
