"""The least energy of a matrix product on an accelerator, and the loop nest that has it, by dynamic programming.

Inside out, a loop nest is a path of growing tiles from a single multiply-accumulate to the whole product; every memory level
marks a tile on it that must fit. What a tensor moves at a level depends on one number: how far its reuse dimension has come
when the first loop over another dimension ends the tile's stay. So the least energy follows from dynamic programming over the
lattice of tiles, with a state for what is still staying. It covers all tilings and loop orders of a spatial choice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heat_hf.hardware.gemm import REUSE, Gemm, Loop, MappedGemm
from heat_hf.hardware.lattice import AXES, Array, Lattice, Tile, divisors
from heat_hf.hardware.mapping import Traffic, evaluate
from heat_hf.hardware.spec import Accelerator, Constraints, Spatial

Column = dict[str, NDArray[np.int64]]  # extents of M, N, K and B, an entry for each choice


class State(NamedTuple):
    """A tensor whose tiles have stayed at some levels since the last loop over another dimension; none by default."""

    tensor: str = ""
    levels: tuple[int, ...] = ()


MOVING = State()


@dataclass(frozen=True)
class Choices:
    """Ways to unroll a product: for every spatial dimension the extents of M, N, K and B, as columns of one entry a choice.

    Attributes:
        places: the spatial dimensions, each with the level it is below, from the outside in.
        columns: their extents.
    """

    places: tuple[tuple[int, Spatial], ...]
    columns: tuple[Column, ...]

    def __len__(self) -> int:
        return len(self.columns[0]["B"]) if self.columns else 1

    def take(self, indices: NDArray[np.intp]) -> Choices:
        """Some of the choices."""
        return Choices(self.places, tuple(_take(column, indices) for column in self.columns))

    def by_use(self, size: int) -> Iterator[tuple[int, Choices]]:
        """Groups of at most `size` choices, those that use the most MACs first, each with the most any of them uses."""
        busy = math.prod((extent for column in self.columns for extent in column.values()), start=np.ones(len(self), np.int64))
        order = np.argsort(-busy, kind="stable")
        for start in range(0, len(order), size):
            group = order[start : start + size]
            yield int(busy[group[0]]), self.take(group) if self.columns else self

    def by_level(self, levels: int) -> list[dict[str, NDArray[np.int64]]]:
        """Extents unrolled below every level, as arrays of shape (choices, 1)."""
        result = [dict.fromkeys("MNKB", np.ones((len(self), 1), np.int64)) for _ in range(levels)]
        for (level, _), column in zip(self.places, self.columns, strict=True):
            result[level] = {d: extent * column[d][:, None] for d, extent in result[level].items()}
        return result

    def loops(self, level: int, name: str, choice: int) -> Iterator[Loop]:
        """Spatial loops of one choice below a level."""
        for (above, spatial), column in zip(self.places, self.columns, strict=True):
            for dimension, extent in column.items():
                if above == level and extent[choice] > 1:
                    yield Loop(name, dimension, int(extent[choice]), spatial.name)


@lru_cache(maxsize=4096)
def _unrollings(extents: tuple[int, ...], size: int) -> NDArray[np.int64]:
    """Factors of the extents whose product is within a size, a row for each way."""
    options = [[d for d in divisors(extent) if d <= size] for extent in extents]
    return np.array([factors for factors in itertools.product(*options) if math.prod(factors) <= size], np.int64)


def spatial_choices(gemm: Gemm, accelerator: Accelerator, constraints: Constraints | None = None) -> Choices:
    """All ways to unroll a product, with factors that divide its extents."""
    places = [(i, spatial) for i, level in enumerate(accelerator.levels) for spatial in level.spatial]
    columns: list[Column] = []
    covered = _ones(1)
    for _, spatial in reversed(places):
        grid = _unrollings(tuple(gemm.extent(name) for name in spatial.unrolls), spatial.size)
        old = len(covered["B"])
        each = np.repeat(np.arange(old), len(grid))
        column = _ones(len(each)) | {name: np.tile(grid[:, i], old) for i, name in enumerate(spatial.unrolls)}
        covered = {d: extent * column[d] for d, extent in _take(covered, each).items()}
        fits = np.logical_and.reduce([gemm.extent(d) % extent == 0 for d, extent in covered.items()])
        if constraints and spatial.name in constraints.largest:
            used = np.where(fits, math.prod(column.values(), start=np.int64(1)), 0)
            fits &= used == used.max()
        kept = np.flatnonzero(fits)
        columns = [*(_take(one, each[kept]) for one in columns), _take(column, kept)]
        covered = _take(covered, kept)
    return Choices(tuple(places), tuple(reversed(columns)))


def _ones(length: int) -> Column:
    return dict.fromkeys("MNKB", np.ones(length, np.int64))


def _take(column: Column, choices: NDArray[np.intp]) -> Column:
    return {dimension: extent[choices] for dimension, extent in column.items()}


class Sweep:
    """Dynamic programming over the lattice for a few spatial choices at once.

    Args:
        gemm, accelerator, constraints: the problem.
        choices: the spatial choices.
        spill: whether partial sums may leave the accumulator; they then take more room further out.
        limit: cycles that no transfer may exceed; None for no limit.
    """

    def __init__(
        self,
        gemm: Gemm,
        accelerator: Accelerator,
        constraints: Constraints | None,
        choices: Choices,
        spill: bool,
        limit: float | None = None,
    ) -> None:
        self.gemm, self.accelerator, self.constraints, self.choices = gemm, accelerator, constraints, choices
        self.spill, self.limit = spill, limit
        self.lattice = Lattice(gemm.M, gemm.N, gemm.K)
        self.spatial = choices.by_level(len(accelerator.levels))
        self.traffic = Traffic(accelerator, gemm, self.spatial)
        self.allowed = [self._allowed(level) for level in range(len(accelerator.levels))]
        self.last = self._last()
        self.entering: dict[int, dict[State, Array]] = {}
        self.ended: dict[int, dict[State, Array]] = {}
        self.groups = [0] * len(choices)  # the row of the arrays that each choice has
        self.rows = [0]  # the first choice of each row
        self.group: dict[int, list[int]] = {}
        self.ends: dict[State, tuple[Array, NDArray[np.intp]]] = {}

    def _allowed(self, level: int) -> str:
        """Dimensions that may have temporal loops at a level."""
        spec = self.accelerator.levels[level]
        if self.constraints and spec.name in self.constraints.loops:
            return "".join(d for d in AXES if d in self.constraints.loops[spec.name])
        # Loops around single words are as good outside the innermost level as inside it.
        single = level == len(self.accelerator.levels) - 1 and spec.words == len(spec.keeps)
        return "" if single else AXES

    def _last(self) -> int:
        """The level whose loops end the nest.

        All levels from there outwards hold the whole product, so that loops outside could as well be inside.
        """
        levels, last = self.accelerator.levels, 0
        for i in range(1, len(levels)):
            words = levels[i].words
            roomy = words is None or np.max(self.traffic.words(i, self.lattice.full, self.spill)) <= words
            if not roomy or levels[i - 1].spatial or not set(self.allowed[i - 1]) <= set(self.allowed[i]):
                break
            last = i
        return last

    def run(self) -> Array:
        """The least energy of every choice in pJ, infinite where nothing fits."""
        states = {MOVING: np.full((1, *self.lattice.shape), np.inf)}
        states[MOVING][:, 0, 0, 0] = 0.0
        for level in range(len(self.accelerator.levels) - 1, self.last - 1, -1):
            states = self._split(states, level, level + 1)
            if self.accelerator.levels[level].spatial:
                factors = list(zip(*(self.spatial[level][d][self.rows, 0].tolist() for d in AXES), strict=True))
                states = {state: self.lattice.shift(values, factors) for state, values in states.items()}
            self.entering[level], self.group[level] = states, self.groups
            if level > self.last:
                states = self._loop(level, states)
                states = self._mark(level, self._split(states, level, level))
        states = self._split(states, 0, 0)
        if len(self.rows) < len(self.choices):  # two that differ only in which of two dimensions below a level is unrolled
            states = {state: values[self.groups] for state, values in states.items()}
        total = self.traffic.energy(self.traffic.innermost()) + self.gemm.macs * self.accelerator.mac_pJ
        for tensor in REUSE:
            outer = tuple(level for level in self.traffic.keepers[tensor][1:] if level <= self.last)
            total = total + self._ending(State(tensor, outer))
        self.ends = {state: self._end(state, values) for state, values in states.items()}
        return np.asarray(total[:, 0] + np.min([energy for energy, _ in self.ends.values()], axis=0), float)

    def _split(self, states: dict[State, Array], level: int, inner: int) -> dict[State, Array]:
        """Give choices rows of their own as soon as anything that enters the arrays tells them apart.

        That is what is unrolled below `level` and further in, and how data is multicast to the levels from `inner` inwards.
        """
        if len(self.rows) == len(self.choices):
            return states
        places = range(level, len(self.spatial))
        unrolled = [self.spatial[i][d] for i in places if self.accelerator.levels[i].spatial for d in "MNKB"]
        for tensor, reuse in REUSE.items():
            inside = [i for i in self.traffic.keepers[tensor][1:] if i >= inner]
            unrolled += [self.traffic.copies(reuse, self.traffic.parent(tensor, i), i) for i in inside]
        keys = list(zip(*(column[:, 0].tolist() for column in unrolled if isinstance(column, np.ndarray)), strict=True))
        numbers: dict[tuple[int, ...], int] = {}
        groups = [numbers.setdefault(key, len(numbers)) for key in keys] or [0] * len(self.choices)
        if len(numbers) > len(self.rows):
            self.rows = [groups.index(number) for number in range(len(numbers))]
            parents = [self.groups[row] for row in self.rows]
            states = {state: values[parents] for state, values in states.items()}
            self.groups = groups
        return states

    def _loop(self, level: int, states: dict[State, Array]) -> dict[State, Array]:
        """Temporal loops: a stay goes on while only its reuse dimension grows, and ends with any other loop."""
        if len(states) == 1 and not self.allowed[level]:
            return states
        moving, grown, self.ended[level] = states[MOVING].copy(), {}, {}
        for state, values in states.items():
            if state != MOVING:
                values = values.copy()
                self.lattice.grow(values, self._stayed(level, state))
                ended = values + self._table(state, level)
                np.minimum(moving, ended, out=moving)
                grown[state], self.ended[level][state] = values, ended
        self.lattice.grow(moving, self.allowed[level])
        return {MOVING: moving, **grown}

    def _mark(self, level: int, states: dict[State, Array]) -> dict[State, Array]:
        """The tile at this point is what the level holds: it must fit, and begins to stay."""
        kept = self.accelerator.levels[level].keeps
        tables = {tensor: self._table(State(tensor, (level,)), level) for tensor in kept}
        misfit = self._misfit(level)
        ended = {tensor: sum((tables[other] for other in kept if other != tensor), start=misfit) for tensor in ("", *kept)}
        marked = {State(tensor, (level,)): states[MOVING] + ended[tensor] for tensor in kept}
        for state, values in states.items():
            stays = state.tensor in kept
            levels = (*state.levels, level) if stays else state.levels
            marked[State(state.tensor, levels)] = values + ended[state.tensor if stays else ""]
        return marked

    def _misfit(self, level: int) -> Any:  # noqa: ANN401
        """Infinity at tiles that do not fit a level, else 0."""
        words = self.accelerator.levels[level].words
        if words is None:
            return 0.0
        tile: dict[str, Any] = {d: self.lattice.along(d, self.lattice.extents[d][None]) for d in AXES}
        copies = self.traffic.copies("B", level, len(self.spatial))
        tile["B"] = copies[self.rows, :, None, None] if self.gemm.batch > 1 else 1
        return np.where(self.traffic.words(level, tile, self.spill) > words, np.inf, 0.0)

    def _table(self, state: State, slot: int) -> Array:
        """Energy of the transfers when a state's stays end among the loops of level `slot`, by tile."""
        reuse = REUSE[state.tensor]
        reach = self.lattice.extents[reuse][None]
        total = sum(self._energy(state.tensor, level, reach, slot) for level in state.levels)
        return self.lattice.along(reuse, (np.asarray(total) + np.zeros((len(self.choices), 1)))[self.rows])

    def _ending(self, state: State) -> Any:  # noqa: ANN401
        """Energy of the transfers, shape (choices, 1), when a state's stays last to the end of the nest."""
        full = float(self.lattice.full[REUSE[state.tensor]])
        return sum((self._energy(state.tensor, level, full, 0) for level in state.levels), start=np.zeros((1, 1)))

    def _energy(self, tensor: str, level: int, reach: Any, slot: int) -> Any:  # noqa: ANN401
        moves = self.traffic.transfers(tensor, level, reach, slot)
        energy = self.traffic.energy(moves)
        if self.limit is not None:
            for busy in self.traffic.ports(moves).values():
                energy = np.where(busy > self.limit * (1 + 1e-9), np.inf, energy)
        if not self.spill and tensor == "outputs" and level == self.traffic.keepers[tensor][-1] and moves:
            energy = np.where(moves[0].words > 0, np.inf, energy)
        return energy

    def _end(self, state: State, values: Array) -> tuple[Array, NDArray[np.intp]]:
        """Least energy of the nests that end with this state's dimension innermost in the last loops, and where these begin."""
        values = self.lattice.keep_complete(values, self.allowed[self.last])
        flat = values.reshape(len(values), -1)
        start = flat.argmin(axis=1)
        energy = flat[np.arange(len(flat)), start]
        return energy + (self._ending(state) + np.zeros((len(flat), 1)))[:, 0] if state.levels else energy, start

    def trace(self, choice: int) -> tuple[Loop, ...]:
        """The loops of the best mapping of one choice, from the outside in."""
        state = min(self.ends, key=lambda state: self.ends[state][0][choice])
        m, n, k = (int(i) for i in np.unravel_index(self.ends[state][1][choice], self.lattice.shape))
        tile: Tile = (m, n, k)
        nest = {self.last: self._temporal(self.last, state, tile, self.lattice.end)}
        for level in range(self.last + 1, len(self.accelerator.levels)):
            outer = self.lattice.inside(tile, [int(self.spatial[level - 1][d][choice, 0]) for d in AXES])
            levels = tuple(i for i in state.levels if i != level)
            state, tile = self._enter(level, choice, State(state.tensor, levels) if levels else MOVING, outer)
            nest[level] = self._temporal(level, state, tile, outer)
        repeats = self.gemm.batch // int(math.prod(int(below["B"][choice, 0]) for below in self.spatial))
        loops = [Loop(self.accelerator.levels[0].name, "B", repeats)] if repeats > 1 else []
        for level, spec in enumerate(self.accelerator.levels):
            loops += [*nest.get(level, []), *self.choices.loops(level, spec.name, choice)]
        return tuple(loops)

    def _enter(self, level: int, choice: int, state: State, tile: Tile) -> tuple[State, Tile]:
        """The state and tile from which the loops of a level led to the given ones."""
        choice = self.group[level][choice]
        entering = {other: values[choice] for other, values in self.entering[level].items()}
        if state != MOVING:
            return state, self.lattice.least_below(entering[state], tile, self._stayed(level, state))
        start = self.lattice.least_below(entering[MOVING], tile, self.allowed[level])
        best, entered = entering[MOVING][start], (MOVING, start)
        for other, values in self.ended.get(level, {}).items():
            middle = self.lattice.least_below(values[choice], tile, self.allowed[level])
            if values[choice][middle] < best:
                best = values[choice][middle]
                entered = (other, self.lattice.least_below(entering[other], middle, self._stayed(level, other)))
        return entered

    def _stayed(self, level: int, state: State) -> str:
        """The reuse dimension of what stays, if it may have loops at a level."""
        return "".join(d for d in self.allowed[level] if d == REUSE[state.tensor])

    def _temporal(self, level: int, state: State, inner: Tile, outer: Tile) -> list[Loop]:
        """Loops between two tiles, from the outside in; the reuse dimension of what stays is innermost."""
        factors = self.lattice.factors(inner, outer)
        order = sorted(AXES, key=lambda dimension: state != MOVING and dimension == REUSE[state.tensor])
        return [Loop(self.accelerator.levels[level].name, d, factors[d]) for d in order if factors[d] > 1]

    def mapped(self, choice: int, floor: float) -> Iterator[MappedGemm]:
        """The best mapping of one choice by energy and, if a port makes it slower than `floor` cycles, one it does not."""
        mapped = evaluate(self.gemm, self.accelerator, self.trace(choice))
        yield mapped
        if mapped.cycles > floor and self.limit is None:
            single = self.choices.take(np.array([choice]))
            limited = Sweep(self.gemm, self.accelerator, self.constraints, single, self.spill, floor)
            if np.isfinite(limited.run()[0]):
                yield evaluate(self.gemm, self.accelerator, limited.trace(0))
