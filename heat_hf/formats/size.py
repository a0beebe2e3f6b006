"""The size of a weight matrix."""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class MatrixSize(NamedTuple):
    """Extents of a matrix: M rows (output features) and N columns (input features). As text "384x1536"."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    @property
    def elements(self) -> int:
        """M·N."""
        return self.rows * self.columns

    @classmethod
    def of(cls, linear: Any) -> MatrixSize:  # noqa: ANN401
        """Of a layer with `out_features` and `in_features`."""
        return cls(linear.out_features, linear.in_features)

    @classmethod
    def parse(cls, text: str) -> MatrixSize:
        """Read what `str` wrote.

        Raises:
            ValueError: if the text is no size.
        """
        match = re.fullmatch("([1-9][0-9]*)x([1-9][0-9]*)", text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"a matrix size must be written OUTxIN, as 384x1536, got {text!r}")
        return cls(int(match[1]), int(match[2]))
