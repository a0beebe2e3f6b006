"""Keys: what decides a result, as JSON beside it, by which a half-done one is known to be of the same task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def require_same_key(
    key: Mapping[str, Any],
    wanted: Mapping[str, Any],
    path: str,
    what: str = "search",
    remedy: str = "start anew with overwrite (--overwrite)",
) -> None:
    """Make sure that what was found is of the search, or whatever it is, wanted, in all that `wanted` names.

    Raises:
        ValueError: if it is not; the message says in what they differ.
    """
    for name, value in wanted.items():
        if key.get(name) != value:
            raise ValueError(
                f"{path} holds another {what}: its {name} is {key.get(name)!r}, wanted is {value!r}; "
                f"name another output, or {remedy}"
            )


def read_key(file: Path) -> dict[str, Any]:
    """The key; an empty one, which nothing has, if the file is damaged or not there."""
    try:
        key = json.loads(file.read_text())
    except (ValueError, FileNotFoundError):
        return {}
    return key if isinstance(key, dict) else {}
