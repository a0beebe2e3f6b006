"""A machine whose times follow a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heat_hf import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.between import Between
from heat_hf.hardware.machine.curve import UNIT
from heat_hf.hardware.machine.measuring import Timing


class Clock:
    """A machine for which a product takes its MACs in picoseconds, and as much again per product; ranks off the unit, more."""

    def __init__(self, slow: float = 1.0, product: float = 1e-7, ragged: float = 1.5, format: str = "") -> None:
        self.slow, self.product, self.ragged, self.format = slow, product, ragged, format
        self.measured: list[Any] = []

    def __call__(self, subjects: Sequence[tuple[Any, int]]) -> list[Timing]:
        self.measured += subjects
        return [Timing(0.98 * s, s, 1.05 * s) for s in (self.seconds(*subject) for subject in subjects)]

    def seconds(self, what: TensorSetting | MatrixSize | Between, tokens: int) -> float:
        if isinstance(what, Between):
            return tokens * what.features * (4 if what.activation else what.sequence_length) * 1e-12
        if isinstance(what, MatrixSize):
            return tokens * what.elements * 1e-12 + self.product
        plan = what.plan(tokens)
        off = self.ragged if len(what.rank) == 1 and what.rank[0] % UNIT else 1.0
        slow = self.slow if self.format in ("", what.format) else 1.0
        return (plan.macs * 1e-12 + len(plan.steps) * self.product) * off * slow
