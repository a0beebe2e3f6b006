"""A matrix product, and one way to run it: its loop nest with what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from heat_hf.hardware.cost import Costed, energy_delay
from heat_hf.hardware.spec import TENSORS

# A tile of a tensor is used again along the one dimension the tensor lacks.
REUSE = {"inputs": "N", "weights": "M", "outputs": "K"}
Objective = Literal["edp", "energy", "latency"]  # what mappings are chosen by
OBJECTIVES = get_args(Objective)


@dataclass(frozen=True)
class Gemm:
    """Batched matrix product Y[b, M, N] = X[b, M, K]·W[b, K, N]; X are its inputs, W its weights, Y its outputs.

    Attributes:
        M, N, K: extents.
        batch: number of independent products.
        on_chip: tensors that lie in the accelerator's shared buffer whole, so that they are not read from or written to DRAM.
        reserved: words of that buffer that other live tensors take.

    Raises:
        ValueError: for an extent below 1, an unknown tensor, or a negative reservation.
    """

    M: int
    N: int
    K: int
    batch: int = 1
    on_chip: tuple[str, ...] = ()
    reserved: int = 0

    def __post_init__(self) -> None:
        for name in ("M", "N", "K", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a matrix product must be at least 1, got {getattr(self, name)}")
        if not set(self.on_chip) <= set(TENSORS):
            raise ValueError(f"on_chip must name some of {', '.join(TENSORS)}, got {self.on_chip}")
        if self.reserved < 0:
            raise ValueError(f"reserved must not be negative, got {self.reserved}")

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.batch * self.M * self.N * self.K

    def extent(self, dimension: str) -> int:
        """Extent of M, N, K or B."""
        return {"M": self.M, "N": self.N, "K": self.K, "B": self.batch}[dimension]

    def __str__(self) -> str:
        return (f"{self.batch}×" if self.batch > 1 else "") + f"{self.M}x{self.N}x{self.K}"


class Loop(NamedTuple):
    """One loop: at which level, over which dimension, how often; `spatial` names the copies it is spread over."""

    level: str
    dimension: str
    extent: int
    spatial: str | None = None

    def __str__(self) -> str:
        where = f" ({self.spatial})" if self.spatial else ""
        return f"for {self.dimension} in [0:{self.extent}){where}"


def score(objective: Objective, energy: Any, cycles: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """What is minimised, of numbers or arrays in pJ and cycles, and what breaks ties."""
    return {"edp": (energy_delay(energy, cycles), energy), "energy": (energy, cycles), "latency": (cycles, energy)}[objective]


@dataclass(frozen=True)
class MappedGemm(Costed):
    """What one mapping costs.

    Attributes:
        gemm: the product mapped; with padded factors, the padded one.
        loops: the mapping, from the outside in.
        energy_pJ: energy.
        cycles: the slowest of computing and every memory port.
        seconds: cycles over the clock.
        utilization: MACs over what the array could do in these cycles.
        accesses: level → tensor → reads, fills and updates in words, summed over instances.
        energy_by_level_pJ: level → energy, with "MAC" for arithmetic.
        cycles_by_level: level → cycles its ports are busy, with "MAC" for arithmetic.
        bound: no mapping searched has a lower objective (pJ, cycles, or their product); equal to it where that is proved.
    """

    gemm: Gemm
    loops: tuple[Loop, ...]
    energy_pJ: float  # noqa: N815 - the unit's own spelling
    cycles: int
    seconds: float
    utilization: float
    accesses: Mapping[str, Mapping[str, Mapping[str, float]]]
    energy_by_level_pJ: Mapping[str, float]  # noqa: N815
    cycles_by_level: Mapping[str, float]
    bound: float = 0.0

    def objective_value(self, objective: Objective) -> float:
        """Energy in pJ, cycles, or their product."""
        return float(score(objective, self.energy_pJ, self.cycles)[0])

    @property
    def bottleneck(self) -> str:
        """What takes the cycles: "MAC" or the level whose ports do."""
        return max(self.cycles_by_level, key=lambda name: (self.cycles_by_level[name], name == "MAC"))

    def __str__(self) -> str:
        lines = []
        for depth, (outer, loop) in enumerate(zip((None, *self.loops), self.loops, strict=False), start=1):
            if outer is None or outer.level != loop.level:
                lines.append(loop.level)
            lines.append(" " * depth + str(loop))
        return "\n".join(lines)
