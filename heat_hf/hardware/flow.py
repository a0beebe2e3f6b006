"""Many layers as one cascade: what one answers stays in the shared buffer until the last that reads it, where that pays.

The paper's fused Einsum (section 2.2.1, Fig. 5) keeps intermediates of one layer on chip. Here they are those of a whole
Transformer block: products, and element-wise work as products. Runs of operations may be cut into tiles, attention by heads and
a feed-forward network by tokens, so that what lies between them fits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from heat_hf.formats.base import TOKENS
from heat_hf.formats.plan import Step
from heat_hf.hardware.cascade import Cascade, cut, step_cost
from heat_hf.hardware.cost import Cost, MisfitError
from heat_hf.hardware.gemm import Gemm
from heat_hf.hardware.lattice import divisors
from heat_hf.hardware.mapper import Mapper
from heat_hf.hardware.mapping import shared_level


@dataclass(frozen=True)
class Operation:
    """A step of a flow.

    Attributes:
        name: what it is.
        work: the product, or the step of a contraction plan that it is.
        inputs: values that it reads as the product's inputs. If one of several is not on chip, all count as read from DRAM.
        weights: value that it reads as weights; "" for parameters.
        output: value that it makes.
        run: name of the run of operations that is cut with it; "" where it is not cut.
        made: words of the value, where it is more than the product's result.
    """

    name: str
    work: Gemm | Step
    inputs: tuple[str, ...]
    weights: str
    output: str
    run: str = ""
    made: int = 0

    def tile(self, tiles: int) -> Gemm:
        """The product for one of so many tiles: of heads where there are several products, else of tokens."""
        if isinstance(self.work, Step):
            batch, m, n, k = cut(self.work, TOKENS, tiles).gemm
            return Gemm(m, n, k, batch)
        whole = self.work
        return replace(whole, batch=whole.batch // tiles) if whole.batch > 1 else replace(whole, M=whole.M // tiles)

    @property
    def words(self) -> int:
        """Of the value that it makes."""
        whole = self.tile(1)
        return max(self.made, whole.batch * whole.M * whole.N)


@dataclass(frozen=True)
class Schedule:
    """How a flow is run.

    Attributes:
        kept: values that stay on chip.
        tiles: of each run.
    """

    kept: frozenset[str]
    tiles: Mapping[str, int]


class Flow:
    """Operations one after the other, and ways to run them.

    Args:
        operations: in their order; each value is made once, or given.
        mapper: of the accelerator.
        carried: values that are given or left on chip: the hidden state between blocks. Others come from DRAM, or go there.
    """

    def __init__(self, operations: Sequence[Operation], mapper: Mapper, carried: Mapping[str, int] | None = None) -> None:
        self.operations, self.mapper, self.carried = tuple(operations), mapper, dict(carried or {})
        level = shared_level(mapper.accelerator)
        spec = None if level is None else mapper.accelerator.levels[level]
        self.shared = spec.keeps if spec else ()
        self.room = (spec.words or math.inf) if spec else 0
        self._floors: dict[tuple[Gemm, ...], tuple[float, float]] = {}
        self.words = {operation.output: operation.words for operation in self.operations} | self.carried

    @cached_property
    def runs(self) -> dict[str, range]:
        """Places of the operations of each run."""
        places: dict[str, list[int]] = {}
        for place, operation in enumerate(self.operations):
            if operation.run:
                places.setdefault(operation.run, []).append(place)
        return {run: range(own[0], own[-1] + 1) for run, own in places.items()}

    @cached_property
    def cuts(self) -> dict[str, list[int]]:
        """Numbers of tiles by which each run can be cut."""
        return {run: cuts([self.operations[place] for place in places]) for run, places in self.runs.items()}

    @cached_property
    def made(self) -> dict[str, int]:
        """Value → place of the operation that makes it; before all others where it is given."""
        return dict.fromkeys(self.words, -1) | {operation.output: place for place, operation in enumerate(self.operations)}

    @cached_property
    def read(self) -> dict[str, int]:
        """Value → place of the last operation that reads it; behind all others where it is left on chip."""
        last: dict[str, int] = {}
        for place, operation in enumerate(self.operations):
            last |= dict.fromkeys((*operation.inputs, *filter(None, [operation.weights])), place)
        return last | {value: len(self.operations) for value in self.carried if self.made[value] >= 0}

    @cached_property
    def between(self) -> tuple[str, ...]:
        """Values that may stay on chip, the largest first."""
        return tuple(sorted((value for value in self.words if value in self.read), key=lambda value: -self.words[value]))

    def _run_of(self, place: int) -> str:
        return self.operations[place].run if 0 <= place < len(self.operations) else ""

    @cached_property
    def inner(self) -> dict[str, str]:
        """Value → the run that makes and reads it, where nobody else does; "" where there is none."""
        runs = {value: (self._run_of(self.made[value]), self._run_of(self.read[value])) for value in self.between}
        return {value: made if made == read else "" for value, (made, read) in runs.items()}

    @cached_property
    def live(self) -> list[set[str]]:
        """Values that are on chip during each operation if they are kept; a tile comes back to the first of its run."""
        live: list[set[str]] = [set() for _ in self.operations]
        for value in self.between:
            first, last = self.made[value], self.read[value]
            if not self.inner[value]:
                first = self.runs[run].start if (run := self._run_of(first)) else first
                last = self.runs[run].stop - 1 if (run := self._run_of(last)) else last
            for own in live[max(first, 0) : last + 1]:
                own.add(value)
        return live

    def gemm(self, place: int, schedule: Schedule) -> Gemm | None:
        """An operation as a product with what is on chip; None if that cannot be."""
        operation, kept = self.operations[place], schedule.kept
        whole = operation.tile(schedule.tiles.get(operation.run, 1))
        left = bool(operation.inputs) and kept.issuperset(operation.inputs)
        right = operation.weights in kept
        if right and "weights" not in self.shared:
            if left:
                return None  # the shared level does not feed the weights' way
            whole, left, right = replace(whole, M=whole.N, N=whole.M), True, False  # the result is computed transposed
        out = operation.output in kept
        names = ("inputs",) * left + ("weights",) * right + ("outputs",) * out
        sizes = {"inputs": whole.M * whole.K, "weights": whole.K * whole.N, "outputs": whole.M * whole.N}
        own = whole.batch * sum(sizes[name] for name in names)
        live = sum(self.words[value] // schedule.tiles.get(self.inner[value], 1) for value in kept & self.live[place])
        waiting = max(0, live - own)
        if own + waiting >= self.room:
            return None
        # Where all that the shared level holds fits whole, what waits beside it changes no mapping.
        whole_fits = whole.batch * sum(sizes[name] for name in self.shared) + waiting <= self.room
        return replace(whole, on_chip=names, reserved=0 if whole_fits else waiting)

    def fits(self, schedule: Schedule) -> bool:
        """Whether everything that is to be on chip has room there."""
        return all(self.gemm(place, schedule) is not None for place in range(len(self.operations)))

    def cost(self, schedule: Schedule, below: float = math.inf) -> Cascade | None:
        """The cost of a schedule; None if it does not fit, or cannot have less than some EDP."""
        ways = []
        for place, operation in enumerate(self.operations):
            gemm = self.gemm(place, schedule)
            if gemm is None:
                return None
            ways.append((operation, schedule.tiles.get(operation.run, 1), _ways(gemm)))
        clock = self.mapper.accelerator.clock_hz
        floors = [(repeats, *self._floor(gemms)) for _, repeats, gemms in ways]
        energy, cycles = (sum(own[0] * own[figure] for own in floors) for figure in (1, 2))
        if Cost(cycles / clock, energy).edp >= below:
            return None
        steps = (
            min((step_cost(operation.name, gemm, self.mapper, repeats) for gemm in gemms), key=lambda step: step.mapped.edp)
            for operation, repeats, gemms in ways
        )
        return Cascade(tuple(steps), clock)

    def _floor(self, gemms: tuple[Gemm, ...]) -> tuple[float, float]:
        """Energy and cycles below which none of some products can be."""
        if gemms not in self._floors:
            energies, cycles = zip(*map(self.mapper.floor, gemms), strict=True)
            self._floors[gemms] = min(energies), min(cycles)
        return self._floors[gemms]

    def best(self) -> tuple[Schedule, Cascade]:
        """The best schedule found: for some numbers of tiles, as much on chip as fits, then value by value what pays.

        Raises:
            MisfitError: if what is carried does not fit.
        """
        starts = [Schedule(kept, tiles) for tiles in self._tilings() for kept in self._most(tiles)]
        looked_at: set[tuple[frozenset[str], tuple[int, ...]]] = set()
        found = [self._improved(start, looked_at) for start in starts if self.fits(start)]
        if not found:
            raise MisfitError(f"{', '.join(self.carried)} cannot stay on chip: there is no room for it")
        return min(found, key=lambda pair: pair[1].edp)

    def _tilings(self) -> Iterator[dict[str, int]]:
        """Each run whole, and in the first two numbers of tiles by which all between its operations fits."""
        options = []
        for run in self.runs:
            inner = frozenset(value for value in self.between if self.inner[value] == run)
            fitting = (
                tiles for tiles in self.cuts[run] if tiles > 1 and self.fits(Schedule(self._allowed(inner), {run: tiles}))
            )
            options.append([1, *itertools.islice(fitting, 2)])
        for counts in itertools.product(*options):
            yield dict(zip(self.runs, counts, strict=True))

    def _allowed(self, values: frozenset[str]) -> frozenset[str]:
        """Those of some values that a product can read on chip together."""
        if "weights" in self.shared:
            return values
        return values - {operation.weights for operation in self.operations if values.issuperset(operation.inputs)}

    def _most(self, tiles: Mapping[str, int]) -> set[frozenset[str]]:
        """As many values as fit: where they do not, the largest left out first, or those that are not of one run alone."""
        found = set()
        for order in (self.between, sorted(self.between, key=lambda value: bool(self.inner[value]))):
            kept = self._allowed(frozenset(self.between))
            for value in order:
                if self.fits(Schedule(kept, tiles)):
                    break
                kept -= {value} - self.carried.keys()
            for value in reversed(order):  # of those left out, the small ones may fit after all
                if value not in kept and self.fits(Schedule(kept | {value}, tiles)):
                    kept |= {value}
            found.add(kept)
        return found

    def _improved(self, schedule: Schedule, looked_at: set[tuple[frozenset[str], tuple[int, ...]]]) -> tuple[Schedule, Cascade]:
        """Put values on chip or take them off, one at a time or one for another, or cut otherwise, while that pays."""
        best = self.cost(schedule)
        assert best is not None
        while True:
            tried = []
            for other in self._neighbours(schedule):
                key = other.kept, tuple(other.tiles.values())
                if key in looked_at:  # each is costed once, from whichever start it was first met
                    continue
                looked_at.add(key)
                cost = self.cost(other, best.edp) if other.kept.issuperset(self.carried) else None
                if cost is not None and cost.edp < best.edp:
                    tried.append((cost.edp, other, cost))
            if not tried:
                return schedule, best
            _, schedule, best = min(tried, key=lambda own: own[0])

    def _neighbours(self, schedule: Schedule) -> Iterator[Schedule]:
        """One value more or less on chip, each also with one run in more or fewer tiles; or another value instead."""
        kept, out = schedule.kept, [value for value in self.between if value not in schedule.kept]
        sets = [kept, *(kept ^ {value} for value in self.between)]
        every = [schedule.tiles, *self._other_cuts(schedule.tiles)]
        yield from (Schedule(own, tiles) for own in sets for tiles in every)
        yield from (replace(schedule, kept=kept - {inside} | {outside}) for inside in kept for outside in out)

    def _other_cuts(self, tiles: Mapping[str, int]) -> Iterator[dict[str, int]]:
        for run, known in self.cuts.items():
            place = known.index(tiles[run])
            for other in (place - 1, place + 1):
                if 0 <= other < len(known):
                    yield {**tiles, run: known[other]}


def _ways(gemm: Gemm) -> tuple[Gemm, ...]:
    """A product as it is; element by element, either operand may take the weights' way, unless it is on chip."""
    either = gemm.N == 1 and gemm.batch == 1 and "inputs" not in gemm.on_chip
    return (gemm, replace(gemm, M=gemm.N, N=gemm.M)) if either else (gemm,)


def cuts(operations: Sequence[Operation]) -> list[int]:
    """Numbers of tiles by which all operations of a run can be cut."""
    extents = []
    for operation in operations:
        if isinstance(operation.work, Step):
            if TOKENS in operation.work.extents:
                extents.append(operation.work.extents[TOKENS])
        else:
            extents.append(operation.work.batch if operation.work.batch > 1 else operation.work.M)
    return sorted(divisors(math.gcd(*extents)))
