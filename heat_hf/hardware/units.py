"""The units that people read costs in: one for each quantity, in every table, page, picture and card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unit:
    """A unit, and how many of it are in one of the unit that costs are kept in.

    Attributes:
        name: as it is shown.
        factor: what a kept value is multiplied by.
    """

    name: str
    factor: float

    def of(self, value: Any) -> Any:  # noqa: ANN401
        """A kept value, or an array of them, in this unit."""
        return value * self.factor


ENERGY = Unit("µJ", 1e-6)  # kept in pJ
TIME = Unit("µs", 1e6)  # in s
EDP = Unit("µJ·s", 1e6)  # in J·s
