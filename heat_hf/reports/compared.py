"""A cost beside that of what is dense in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from heat_hf.hardware import units
from heat_hf.hardware.cost import EDP, TIME, Cost


@dataclass(frozen=True)
class Compared:
    """A cost, and that of what is dense in its place.

    Attributes:
        now: of the layers as they are.
        dense: of the dense layers.
    """

    now: Cost
    dense: Cost

    @property
    def measure(self) -> str:
        """What `ratio` compares: "EDP", or "time" where energies are not known."""
        return self.now.measure

    @property
    def gain(self) -> str:
        """What is left of the dense layers' EDP, or of their time where energies are not known."""
        return f"×{self.ratio:.3f}"

    @property
    def ratio(self) -> float:
        """EDP as a fraction of the dense layers'; time where energies are not known."""
        return self.now.objective / self.dense.objective

    def rows(self) -> list[tuple[str, str, float, float]]:
        """What is known, as (figure, unit, dense, now) in units that people read."""
        rows = [(TIME, units.TIME.name, *map(units.TIME.of, (self.dense.seconds, self.now.seconds)))]
        if self.now.energy_pJ is None or self.dense.energy_pJ is None:
            return rows
        energy = ("energy", units.ENERGY.name, *map(units.ENERGY.of, (self.dense.energy_pJ, self.now.energy_pJ)))
        return [(EDP, units.EDP.name, *map(units.EDP.of, (self.dense.edp, self.now.edp))), energy, *rows]

    def __add__(self, other: Compared) -> Compared:
        return Compared(self.now + other.now, self.dense + other.dense)

    def __mul__(self, runs: int) -> Compared:
        return Compared(self.now * runs, self.dense * runs)

    def to_dict(self) -> dict[str, float]:
        """As JSON, products included; without energies, times alone."""
        data = {"seconds": self.now.seconds, "dense_seconds": self.dense.seconds}
        if self.now.energy_pJ is None or self.dense.energy_pJ is None:
            return data
        return {
            "energy_pJ": self.now.energy_pJ,
            "seconds": self.now.seconds,
            "dense_energy_pJ": self.dense.energy_pJ,
            "dense_seconds": self.dense.seconds,
            "edp_J_s": self.now.edp,
            "dense_edp_J_s": self.dense.edp,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, float]) -> Compared:
        """Read what `to_dict` wrote."""
        now, dense = (Cost(data[f"{kind}seconds"], data.get(f"{kind}energy_pJ")) for kind in ("", "dense_"))
        return cls(now, dense)
