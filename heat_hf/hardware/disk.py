"""Texts by key in a file: what is costly to find out, kept for later runs and other processes."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any


class Disk:
    """An SQLite file, safe to share between processes; what is written is there whole or not at all.

    Args:
        path: of the file; its folder is made.

    Raises:
        OSError: in every method, if the file cannot be used or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot keep anything in {path.parent}: {error.strerror}") from error
        self._run("CREATE TABLE IF NOT EXISTS texts (key TEXT PRIMARY KEY, text TEXT)")

    def get(self, key: str) -> str | None:
        """The text of a key, or None."""
        row = self._run("SELECT text FROM texts WHERE key = ?", key)
        return row[0] if row else None

    def keep(self, key: str, text: str) -> str:
        """Write a text where there is none yet; returns the one that is there, the same for all processes."""
        self._run("INSERT OR IGNORE INTO texts VALUES (?, ?)", key, text)
        kept = self.get(key)
        assert kept is not None
        return kept

    def _run(self, statement: str, *values: str) -> Any:  # noqa: ANN401
        try:
            if not hasattr(self, "_connection"):
                self._connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            return self._connection.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise OSError(f"{self.path} cannot be used ({error}): delete it, and what it held is found again") from error
