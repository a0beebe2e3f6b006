"""The best mapping of a matrix product onto an accelerator.

Spatial choices, with partial sums that leave the accumulator or not, are tried in the order of a lower bound, a few at a time,
until no better one can be left; `sweep` finds the least energy of each exactly.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heat_hf.hardware.cost import MisfitError, energy_delay
from heat_hf.hardware.disk import Disk
from heat_hf.hardware.gemm import OBJECTIVES, REUSE, Gemm, Loop, MappedGemm, Objective, score
from heat_hf.hardware.lattice import AXES, Array, divisors, prime_factors
from heat_hf.hardware.mapping import Traffic, evaluate
from heat_hf.hardware.spec import Accelerator, Constraints
from heat_hf.hardware.sweep import Choices, Sweep, spatial_choices

CHOICES = 64  # spatial choices bounded together, those that use the most MACs first
BATCH = 4  # spatial choices swept together: more no longer fit the caches
CACHE_NAME = "mappings-2.sqlite"  # the number changes with what the mapper finds


class Mapper:
    """Best mappings onto one accelerator; each product is searched once.

    Args:
        accelerator: the hardware.
        constraints: name of one of its constraints; default: the whole mapping space.
        objective: "edp", "energy" or "latency".
        padding: also try larger products filled up with zeros; default: factors divide the product's extents.
        cache: folder in which mappings are kept for later runs and other processes; default: for this object only.

    Raises:
        ValueError: for a name that is not known.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        constraints: str | None = None,
        objective: Objective = "edp",
        padding: bool = False,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
        self.accelerator = accelerator
        self.constraints = constraints
        self.rules = None if constraints is None else accelerator.rules(constraints)
        self.objective = objective
        self.padding = padding
        self._mapped: dict[Gemm, MappedGemm] = {}
        self.cache = cache
        self._disk = None if cache is None else Disk(Path(cache) / CACHE_NAME)

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes open the cache themselves."""
        return Mapper, (self.accelerator, self.constraints, self.objective, self.padding, self.cache)

    def map(self, gemm: Gemm) -> MappedGemm:
        """The best mapping of a product.

        Raises:
            MisfitError: if none fits.
        """
        if gemm not in self._mapped:
            self._mapped[gemm] = self._recall(gemm) or self._search(gemm)
        return self._mapped[gemm]

    def floor(self, gemm: Gemm) -> tuple[float, float]:
        """Energy and cycles below which no mapping of a product can be, without a search."""
        return _least(gemm, self.accelerator)

    def _search(self, gemm: Gemm) -> MappedGemm:
        find = search_padded if self.padding else search
        cost = find(gemm, self.accelerator, self.rules, self.objective)
        if self._disk:
            padded = [cost.gemm.M, cost.gemm.N, cost.gemm.K]
            self._disk.keep(self._key(gemm), json.dumps([padded, cost.loops, cost.bound]))
        return cost

    def _recall(self, gemm: Gemm) -> MappedGemm | None:
        text = self._disk.get(self._key(gemm)) if self._disk else None
        if text is None:
            return None
        (m, n, k), loops, bound = json.loads(text)
        cost = evaluate(replace(gemm, M=m, N=n, K=k), self.accelerator, [Loop(*loop) for loop in loops], bound)
        return _useful(cost, gemm, self.accelerator)

    def _key(self, gemm: Gemm) -> str:
        return f"{self.accelerator.digest} {self.constraints} {self.objective} {self.padding} {gemm!r}"


def search(
    gemm: Gemm, accelerator: Accelerator, constraints: Constraints | None = None, objective: Objective = "edp"
) -> MappedGemm:
    """The best mapping with factors that divide the product's extents.

    Args:
        gemm: the product.
        accelerator: the hardware.
        constraints: the part of the mapping space to search; default: all of it.
        objective: "edp", "energy" or "latency".

    Raises:
        MisfitError: if no mapping fits; the message names the level.
    """
    best = _search_below(gemm, accelerator, constraints, objective, math.inf)
    if best is None:
        constrained = f"{gemm} has no mapping onto {accelerator.name} within the constraints"
        raise MisfitError(_lack_of_room(gemm, accelerator) or constrained)
    return best


def _search_below(
    gemm: Gemm, accelerator: Accelerator, constraints: Constraints | None, objective: Objective, limit: float
) -> MappedGemm | None:
    """The best mapping, if one has less of the objective than a limit. What cannot be below it is not looked at."""
    if _lack_of_room(gemm, accelerator):
        return None
    best: MappedGemm | None = None
    reached = (limit, -math.inf)  # as much as the limit is not below it, whatever breaks ties
    proved = (math.inf, math.inf)
    least_energy, _ = _least(gemm, accelerator)
    for busy, choices in spatial_choices(gemm, accelerator, constraints).by_use(CHOICES):
        if score(objective, least_energy, gemm.macs / busy) >= reached:
            break
        queue = _Queue.of(gemm, accelerator, choices, constraints, objective)
        while len(batch := queue.pop(reached)):
            sweep = Sweep(gemm, accelerator, constraints, choices.take(queue.choice[batch]), bool(queue.spill[batch[0]]))
            least, cycles = sweep.run(), queue.cycles[batch]
            fitting = int(np.isfinite(least).sum())  # the others are infinite, and so come last
            for choice in np.argsort(energy_delay(least, cycles))[:fitting].tolist():
                bound = score(objective, least[choice], cycles[choice])
                proved = min(proved, bound)
                if bound >= reached:
                    continue
                for mapped in sweep.mapped(choice, cycles[choice]):
                    value = score(objective, mapped.energy_pJ, mapped.cycles)
                    if value < reached:
                        best, reached = mapped, value
    return None if best is None else replace(best, bound=float(min(proved, reached)[0]))


@dataclass
class _Queue:
    """Spatial choices with and without spilling, in the order of lower bounds that let every tile stay until the end.

    Attributes:
        choice, spill: what each entry is.
        cycles: its least cycles.
        floors: lower bounds of its score.
        next: the first entry not taken yet.
    """

    choice: NDArray[np.intp]
    spill: NDArray[np.bool_]
    cycles: Array
    floors: tuple[Array, Array]
    next: int = 0

    @classmethod
    def of(
        cls, gemm: Gemm, accelerator: Accelerator, choices: Choices, constraints: Constraints | None, objective: Objective
    ) -> _Queue:
        traffic = Traffic(accelerator, gemm, choices.by_level(len(accelerator.levels)))
        accumulator = traffic.keepers["outputs"][-1]
        rest = traffic.innermost()
        for tensor, reuse in REUSE.items():
            for level in traffic.keepers[tensor][1:]:
                if (tensor, level) != ("outputs", accumulator):
                    rest += traffic.transfers(tensor, level, gemm.extent(reuse), 0)
        once = traffic.transfers("outputs", accumulator, gemm.K, 0)
        count, zeros = len(choices), np.zeros((len(choices), 1))
        apart = traffic.energy(rest) + gemm.macs * accelerator.mac_pJ + zeros
        energy, cycles = [apart + traffic.energy(once)], [traffic.cycles(rest + once) + zeros]
        if gemm.K > 1 and (constraints is None or constraints.spill):
            twice = traffic.transfers("outputs", accumulator, gemm.K / min(prime_factors(gemm.K))[0], 0)
            places = {move.level for move in twice}
            energy.append(apart + traffic.energy(twice))
            cycles.append(np.maximum(cycles[0], traffic.cycles(twice + [move for move in rest if move.level in places])))
        energies = np.concatenate(energy)[:, 0]
        least = np.ceil(np.round(np.concatenate(cycles), 6))[:, 0]
        spill = np.repeat([False, True][: len(energy)], count)
        floors = score(objective, energies, least)
        order = np.lexsort((spill, floors[1], floors[0]))
        choice = np.tile(np.arange(count), len(energy))
        return cls(choice[order], spill[order], least[order], (floors[0][order], floors[1][order]))

    def pop(self, reached: tuple[float, float]) -> NDArray[np.intp]:
        """The next entries, alike in spilling, that could still be better than a score reached."""
        end = self.next
        while (
            end < min(self.next + BATCH, len(self.choice))
            and (self.floors[0][end], self.floors[1][end]) < reached
            and self.spill[end] == self.spill[self.next]
        ):
            end += 1
        batch = np.arange(self.next, end)
        self.next = end
        return batch


def _lack_of_room(gemm: Gemm, accelerator: Accelerator) -> str:
    """What no mapping could mend: a level that cannot hold the smallest tile beside what lies there whole; "" if all can."""
    traffic = Traffic(accelerator, gemm, [{} for _ in accelerator.levels])
    for i, level in enumerate(accelerator.levels):
        needed = traffic.words(i, dict.fromkeys("MNK", 1), spilled=False)
        if level.words is not None and needed > level.words:
            return f"{gemm} does not fit {accelerator.name}: {level.name} has {level.words:,} words, {needed:,.0f} are needed"
    return ""


def padded_extents(extent: int, sizes: Sequence[int]) -> list[int]:
    """Extents to try instead of one: itself, and the next multiples of powers of two and of the sizes it is spread over."""
    units = {2**i for i in range(1, max([1, *sizes]).bit_length())} | set(sizes)
    return sorted({extent, *(-(-extent // unit) * unit for unit in units if unit < 2 * extent)})


def search_padded(
    gemm: Gemm, accelerator: Accelerator, constraints: Constraints | None = None, objective: Objective = "edp"
) -> MappedGemm:
    """The best mapping of the product, or of a larger one whose operands are filled up with zeros.

    Odd extents leave copies of the hardware idle when factors must divide them; padding pays with useless work instead. The
    zeros are stored and moved like data. The cost is that of the padded product; its utilization counts useful MACs only.

    Raises:
        ValueError: if no mapping fits.
    """
    sizes: dict[str, list[int]] = {dimension: [] for dimension in AXES}
    for level in accelerator.levels:
        for spatial in level.spatial:
            for dimension in set(spatial.unrolls) & set(AXES):
                tried = sizes[dimension]
                sizes[dimension] = [*tried, spatial.size, *(size * spatial.size for size in tried)]
    options = itertools.product(*(padded_extents(gemm.extent(d), sizes[d]) for d in AXES))
    best = search(gemm, accelerator, constraints, objective)
    for padded in sorted((replace(gemm, M=m, N=n, K=k) for m, n, k in options), key=lambda padded: padded.macs):
        limit = best.objective_value(objective)
        if score(objective, *_least(padded, accelerator))[0] < limit:
            # None is better where none is found: a filled-up product may no longer fit beside what waits on chip.
            best = _search_below(padded, accelerator, constraints, objective, limit) or best
    return _useful(best, gemm, accelerator)


def _useful(cost: MappedGemm, gemm: Gemm, accelerator: Accelerator) -> MappedGemm:
    """The cost with the utilization by the MACs of the product before padding."""
    return replace(cost, utilization=gemm.macs / (cost.cycles * accelerator.macs))


def _least(gemm: Gemm, accelerator: Accelerator) -> tuple[float, float]:
    """Energy and cycles that no mapping can undercut: every MAC busy, every tensor moved once, every copy unrolled."""
    copies = [
        {d: max(f for f in divisors(gemm.extent(d)) if f <= spatial.size) for d in spatial.unrolls}
        for level in accelerator.levels
        for spatial in level.spatial
    ]
    most = {d: math.prod(unrolled.get(d, 1) for unrolled in copies) for d in "MNKB"}
    busy = min(accelerator.macs, math.prod(most.values()))
    moved = sum(
        0 if tensor in gemm.on_chip else gemm.batch * math.prod(gemm.extent(d) for d in AXES if d != reuse)
        for tensor, reuse in REUSE.items()
    )
    outer = accelerator.levels[0]
    inner = sum(
        min(level.energy_pJ for level in accelerator.levels if tensor in level.keeps) / most[reuse]
        for tensor, reuse in REUSE.items()
    )
    cycles = max(gemm.macs / busy, moved / outer.shared if outer.shared else 0.0)
    return gemm.macs * (accelerator.mac_pJ + inner) + moved * outer.energy_pJ, cycles
