"""Mappings of a matrix product onto an accelerator, and what they cost.

A mapping is a loop nest: at every memory level temporal loops over tiles, below some levels spatial loops over copies of the
hardware. Counts follow Timeloop 3.0.3: a level is filled when its tile changes, loops over a dimension the tile does not
depend on keep it in place while nothing else changes, spatial copies of the same data are read once and multicast, the first
read of a partial sum is elided, and outputs that move outwards are counted where they arrive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heat_hf.hardware.gemm import REUSE, Gemm, Loop, MappedGemm
from heat_hf.hardware.spec import TENSORS, Accelerator

Count = float | NDArray[np.float64]


class Move(NamedTuple):
    """Words read from, filled into or sent (updates) to a level, summed over its instances."""

    level: int
    tensor: str
    kind: str
    words: Any


class Traffic:
    """Words moved by mappings of one product that share their spatial loops, or by an array of such choices.

    Args:
        accelerator: the hardware.
        gemm: the product.
        spatial: for every level, the extents unrolled below it, by dimension: integers or arrays of equal shape.
    """

    def __init__(self, accelerator: Accelerator, gemm: Gemm, spatial: Sequence[Mapping[str, Any]]) -> None:
        self.accelerator = accelerator
        self.gemm = gemm
        self.spatial = spatial
        self.shared = shared_level(accelerator)
        self.keepers = {
            tensor: [i for i, level in enumerate(accelerator.levels) if tensor in level.keeps] for tensor in TENSORS
        }
        self._copies: dict[tuple[str, int, int], Any] = {}
        self._instances: dict[int, Any] = {}
        self.partial_words = accelerator.word_bits["partial_sums"] / accelerator.word_bits["outputs"]

    def copies(self, dimension: str, outer: int, inner: int) -> Any:  # noqa: ANN401
        """Over how many copies a dimension is spread between level `outer` and level `inner` (the innermost: their number)."""
        key = (dimension, outer, inner)
        if key not in self._copies:
            self._copies[key] = math.prod((self.spatial[i].get(dimension, 1) for i in range(outer, inner)), start=1)
        return self._copies[key]

    def instances(self, level: int) -> Any:  # noqa: ANN401
        """Instances of a level that are in use."""
        if level not in self._instances:
            self._instances[level] = math.prod((self.copies(dimension, 0, level) for dimension in "MNKB"), start=1)
        return self._instances[level]

    @cached_property
    def busy(self) -> Any:  # noqa: ANN401
        """MACs in use."""
        return self.instances(len(self.accelerator.levels))

    def parent(self, tensor: str, level: int) -> int:
        """The next level outwards that keeps the tensor."""
        keepers = self.keepers[tensor]
        return keepers[keepers.index(level) - 1]

    def resident(self, tensor: str, level: int) -> bool:
        """Whether the whole tensor waits in the shared level, and nothing moves further out."""
        return tensor in self.gemm.on_chip and self.shared is not None and level <= self.shared

    def innermost(self) -> list[Move]:
        """What the MACs themselves read and write."""
        moves = []
        count = len(self.accelerator.levels)
        for tensor in TENSORS:
            level = self.keepers[tensor][-1]
            words = self.gemm.macs / self.copies(REUSE[tensor], level, count)
            if tensor == "outputs":
                first = self.gemm.batch * self.gemm.M * self.gemm.N * self.copies("K", 0, level)
                moves += [Move(level, tensor, "updates", words), Move(level, tensor, "reads", words - first)]
            else:
                moves.append(Move(level, tensor, "reads", words))
        return moves

    def transfers(self, tensor: str, level: int, reach: Any, end: int) -> list[Move]:  # noqa: ANN401
        """What moves between a level and its parent.

        Args:
            tensor: the tensor.
            level: the level; not the outermost.
            reach: extent of the tensor's reuse dimension that the nest has covered, spatial copies included, when a tile of
                the level is replaced.
            end: the level among whose loops that happens; 0 also for a tile that is never replaced.
        """
        parent = self.parent(tensor, level)
        if self.resident(tensor, level):
            return []
        reuse = REUSE[tensor]
        computed = self.gemm.macs * self.copies(reuse, end, level) / reach
        passed = computed / self.copies(reuse, parent, level)
        if tensor != "outputs":
            return [Move(level, tensor, "fills", computed), Move(parent, tensor, "reads", passed)]
        final = self.gemm.batch * self.gemm.M * self.gemm.N
        spilled = np.maximum(passed - final, 0.0)
        accumulator = self.keepers[tensor][-1]
        return [
            Move(level, tensor, "fills", spilled * (1.0 if level == accumulator else self.partial_words)),
            Move(parent, tensor, "reads", spilled * self.partial_words),
            Move(parent, tensor, "updates", spilled * self.partial_words + final),
        ]

    def energy(self, moves: Iterable[Move]) -> Any:  # noqa: ANN401
        """Energy of moves, in pJ."""
        return sum(move.words * self.accelerator.levels[move.level].energy_pJ for move in moves)

    def ports(self, moves: Iterable[Move]) -> dict[int, Any]:
        """Cycles every level's busiest port needs for moves."""
        reads: dict[int, Any] = {}
        writes: dict[int, Any] = {}
        for move in moves:
            side = reads if move.kind == "reads" else writes
            side[move.level] = side.get(move.level, 0.0) + move.words
        busy = {}
        for i in reads.keys() | writes.keys():
            level, count = self.accelerator.levels[i], self.instances(i)
            r, w = reads.get(i, 0.0), writes.get(i, 0.0)
            cycles = 0.0
            if level.shared:
                cycles = (r + w) / (count * level.shared)
            if level.read:
                cycles = np.maximum(cycles, r / (count * level.read))
            if level.write:
                cycles = np.maximum(cycles, w / (count * level.write))
            busy[i] = cycles
        return busy

    def cycles(self, moves: Iterable[Move]) -> Any:  # noqa: ANN401
        """Cycles of computing and of moves, whichever takes longer."""
        slowest = self.gemm.macs / self.busy
        for busy in self.ports(moves).values():
            slowest = np.maximum(slowest, busy)
        return slowest

    def words(self, level: int, tile: Mapping[str, Any], spilled: bool) -> Any:  # noqa: ANN401
        """Words that tiles of the given extents take in one instance of a level; without B, of as many as are spread inside.

        Operands that are on chip already, and other live tensors, lie in the shared level whole.
        """
        gemm = self.gemm
        total: Any = 0.0
        copies = tile["B"] if "B" in tile else self.copies("B", level, len(self.accelerator.levels))
        for tensor in self.accelerator.levels[level].keeps:
            relevant = [dimension for dimension in "MNK" if dimension != REUSE[tensor]]
            size: Any
            if self.resident(tensor, level):
                size = gemm.batch * math.prod(gemm.extent(dimension) for dimension in relevant)
            else:
                size = copies * math.prod(tile[dimension] for dimension in relevant)
            if tensor == "outputs" and spilled and level != self.keepers[tensor][-1]:
                size = size * self.partial_words
            total = total + size
        return total + (gemm.reserved if level == self.shared else 0)


def shared_level(accelerator: Accelerator) -> int | None:
    """The outermost level on chip that keeps inputs and outputs: where the result of one step can wait for the next."""
    for i, level in enumerate(accelerator.levels[1:], start=1):
        if {"inputs", "outputs"} <= set(level.keeps):
            return i
    return None


def evaluate(gemm: Gemm, accelerator: Accelerator, loops: Sequence[Loop], bound: float = 0.0) -> MappedGemm:
    """Cost of one mapping.

    Args:
        gemm: the product.
        accelerator: the hardware.
        loops: the nest from the outside in, grouped by level, at each level temporal loops before spatial ones.
        bound: see `MappedGemm`.

    Raises:
        ValueError: if the loops do not multiply to the product's extents, or a tile does not fit.
    """
    nest, spatial = _by_level(accelerator, loops)
    for dimension in "MNKB":
        covered = math.prod(loop.extent for loop in loops if loop.dimension == dimension)
        if covered != gemm.extent(dimension):
            raise ValueError(f"the mapping's loops over {dimension} cover {covered}, the product has {gemm.extent(dimension)}")
    traffic = Traffic(accelerator, gemm, spatial)
    moves = traffic.innermost()
    tile = dict.fromkeys("MNKB", 1)
    tiles: list[dict[str, int]] = []
    for temporal, unrolled in zip(reversed(nest), reversed(spatial), strict=True):
        for dimension, extent in [*unrolled.items(), *((loop.dimension, loop.extent) for loop in temporal)]:
            tile[dimension] *= extent
        tiles.insert(0, dict(tile))
    spilled = False
    for tensor in TENSORS:
        for level in reversed(traffic.keepers[tensor][1:]):
            moved = traffic.transfers(tensor, level, *_reach(tensor, level, nest, spatial, tiles[level]))
            moves += moved
            spilled |= tensor == "outputs" and any(move.kind == "fills" and move.words > 0 for move in moved)
    for i, spec in enumerate(accelerator.levels):
        if spec.words is not None and traffic.words(i, tiles[i], spilled) > spec.words:
            raise ValueError(f"a tile of {tiles[i]} does not fit the {spec.words} words of {spec.name}")
    return _summarize(traffic, loops, moves, bound)


def _by_level(accelerator: Accelerator, loops: Sequence[Loop]) -> tuple[list[list[Loop]], list[dict[str, int]]]:
    """Temporal loops of every level from the inside out, and spatial extents below every level."""
    nest: list[list[Loop]] = [[] for _ in accelerator.levels]
    spatial: list[dict[str, int]] = [{} for _ in accelerator.levels]
    index = {level.name: i for i, level in enumerate(accelerator.levels)}
    for loop in reversed(loops):
        if loop.level not in index:
            raise ValueError(f"the mapping has a loop at {loop.level!r}; {accelerator.name} has {', '.join(index)}")
        i = index[loop.level]
        if loop.spatial is None:
            nest[i].append(loop)
        else:
            spatial[i][loop.dimension] = spatial[i].get(loop.dimension, 1) * loop.extent
    return nest, spatial


def _reach(
    tensor: str, level: int, nest: Sequence[Sequence[Loop]], spatial: Sequence[Mapping[str, int]], tile: Mapping[str, int]
) -> tuple[int, int]:
    """Extent of the tensor's reuse dimension covered when a tile of the level is replaced, and at which level that is."""
    reuse = REUSE[tensor]
    reach = tile[reuse]
    for i in range(level - 1, -1, -1):
        reach *= spatial[i].get(reuse, 1)
        for loop in nest[i]:
            if loop.extent > 1 and loop.dimension != reuse:
                return reach, i
            reach *= loop.extent
    return reach, 0


def _summarize(traffic: Traffic, loops: Sequence[Loop], moves: Sequence[Move], bound: float) -> MappedGemm:
    accelerator, gemm = traffic.accelerator, traffic.gemm
    accesses: dict[str, dict[str, dict[str, float]]] = {}
    by_level: dict[str, float] = {}
    for move in sorted(moves, key=lambda move: move.level):
        level = accelerator.levels[move.level]
        counts = accesses.setdefault(level.name, {}).setdefault(move.tensor, dict.fromkeys(("reads", "fills", "updates"), 0.0))
        counts[move.kind] += float(move.words)
        by_level[level.name] = by_level.get(level.name, 0.0) + float(move.words) * level.energy_pJ
    by_level["MAC"] = gemm.macs * accelerator.mac_pJ
    ports = {accelerator.levels[i].name: float(cycles) for i, cycles in sorted(traffic.ports(moves).items())}
    cycles = math.ceil(round(float(traffic.cycles(moves)), 6))
    return MappedGemm(
        gemm=gemm,
        loops=tuple(loops),
        energy_pJ=sum(by_level.values()),
        cycles=cycles,
        seconds=cycles / accelerator.clock_hz,
        utilization=gemm.macs / (cycles * accelerator.macs),
        accesses=accesses,
        energy_by_level_pJ=by_level,
        cycles_by_level={**ports, "MAC": gemm.macs / traffic.busy},
        bound=bound,
    )
