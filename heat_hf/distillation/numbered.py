"""Rows that know their numbers, by which the teacher's answers are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset

ROW = "distillation_row"  # the column of numbers


class Numbered(Dataset[Any]):
    """Rows with their numbers."""

    def __init__(self, rows: Any) -> None:  # noqa: ANN401
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self.rows[row], ROW: row}


class KeepNumbers:
    """A collator that does not mind rows' numbers."""

    def __init__(self, collator: Any) -> None:  # noqa: ANN401
        self.collator = collator

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The collator's batch, with the numbers of its rows if they have any."""
        plain = [{key: value for key, value in row.items() if key != ROW} for row in rows]
        numbers = {ROW: torch.tensor([row[ROW] for row in rows])} if ROW in rows[0] else {}
        return {**self.collator(plain), **numbers}
