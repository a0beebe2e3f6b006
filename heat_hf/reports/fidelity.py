"""How far a compressed model's outputs are from the dense model's: expected before the work, measured after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heat_hf.encoders.checkpoints.reading import require_figures
from heat_hf.encoders.values import whole

MOST_ROWS = 2**53


@dataclass(frozen=True)
class Fidelity:
    """Divergence of the model's outputs from the dense model's, see `heat_hf.encoders.signals`.

    Attributes:
        expected: of the projected model before refinement, as a search measured it on a copy; None where it did not.
        lower, upper: bounds that it should lie between; None likewise.
        measured: of the finished model, before any training; None in a plan, or without calibration data at hand.
        rows: sequences of the calibration data that it was measured on.
    """

    expected: float | None = None
    lower: float | None = None
    upper: float | None = None
    measured: float | None = None
    rows: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fidelity:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: if a key is missing, or a value is of another kind.
        """
        require_figures(data, "expected", "lower", "upper", "measured")
        whole("rows", data["rows"], 0, MOST_ROWS)
        return cls(**{field.name: data[field.name] for field in dataclasses.fields(cls)})

    def __str__(self) -> str:
        parts = []
        if self.expected is not None:
            parts.append(f"expected {self.expected:.4f} (from {self.lower:.4f} to {self.upper:.4f}) as projected")
        if self.measured is not None:
            parts.append(f"measured {self.measured:.4f} on {self.rows:,} rows of the calibration data")
        return f"Divergence from the dense model: {', '.join(parts)}."
