"""What a computation costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

EDP, TIME = "EDP", "time"  # what costs are compared by


class MisfitError(ValueError):
    """Something cannot run on the hardware that a cost model stands for."""


class NoGainError(MisfitError):
    """Something runs there, but no faster than the dense layer."""


def energy_delay(energy: Any, time: Any) -> Any:  # noqa: ANN401
    """Energy-delay product E·T of numbers or arrays, in the product of their units (paper, section 2.2.2)."""
    return energy * time


@dataclass(frozen=True)
class Cost:
    """Time, and energy where it is known. Costs of what runs one after the other add (paper, section 2.2.2).

    Attributes:
        seconds: time.
        energy_pJ: energy; None where the cost model knows only times.
    """

    seconds: float
    energy_pJ: float | None = None  # noqa: N815 - the unit's own spelling

    @property
    def edp(self) -> float:
        """Energy-delay product in J·s.

        Raises:
            ValueError: if the energy is not known.
        """
        if self.energy_pJ is None:
            raise ValueError("the cost model knows no energies, so there is no EDP: use target_latency_ratio")
        edp: float = energy_delay(self.energy_pJ * 1e-12, self.seconds)
        return edp

    @property
    def objective(self) -> float:
        """What the better of two ways has less of: EDP, or time where the energy is not known."""
        return self.seconds if self.energy_pJ is None else self.edp

    @property
    def measure(self) -> str:
        """What `objective` is: "EDP", or "time" where the energy is not known."""
        return TIME if self.energy_pJ is None else EDP

    def __add__(self, other: Cost) -> Cost:
        if self.energy_pJ is None or other.energy_pJ is None:
            return Cost(self.seconds + other.seconds)
        return Cost(self.seconds + other.seconds, self.energy_pJ + other.energy_pJ)

    def __mul__(self, runs: int) -> Cost:
        return Cost(runs * self.seconds, None if self.energy_pJ is None else runs * self.energy_pJ)

    @property
    def figures(self) -> tuple[float, ...]:
        """All that is known: energy, if it is, then time."""
        return (self.seconds,) if self.energy_pJ is None else (self.energy_pJ, self.seconds)

    def map(self, function: Callable[[Any], Any]) -> Cost:
        """The same with a function applied to every figure; figures may be arrays, one element for each of many costs."""
        return Cost(function(self.seconds), None if self.energy_pJ is None else function(self.energy_pJ))

    @staticmethod
    def total(costs: Sequence[Cost]) -> Cost:
        """The sum of at least one cost."""
        return sum(costs[1:], start=costs[0])


class Costed:
    """What has a time and an energy of its own, beside other figures."""

    if TYPE_CHECKING:

        @property
        def seconds(self) -> float: ...  # noqa: D102

        @property
        def energy_pJ(self) -> float | None: ...  # noqa: D102, N802

    @property
    def cost(self) -> Cost:
        """Time and energy."""
        return Cost(self.seconds, self.energy_pJ)

    @property
    def edp(self) -> float:
        """Energy-delay product in J·s."""
        return self.cost.edp
