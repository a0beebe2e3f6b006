"""A cascade of products on an accelerator, with intermediates that stay on chip (paper, section 2.2.1, Fig. 5, "fused Einsum").

Every operand of a step comes from DRAM or waits in the shared buffer, and so does its result: four memory-access types. An
intermediate waits there when it fits with everything else that is live; where it does not, it is tiled over the tokens or
another index of the result, or spilled to DRAM, whichever has the lower total EDP.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from heat_hf.formats.base import TOKENS
from heat_hf.formats.plan import ContractionPlan, Step
from heat_hf.hardware.cost import Cost, Costed
from heat_hf.hardware.gemm import Gemm, MappedGemm
from heat_hf.hardware.lattice import divisors
from heat_hf.hardware.mapper import Mapper
from heat_hf.hardware.mapping import shared_level


@dataclass(frozen=True)
class CascadeStep:
    """One step of a cascade.

    Attributes:
        name: the step's einsum, or what else it is.
        mapped: its best mapping.
        repeats: how often it runs: once for each tile.
        inputs_from, weights_from, outputs_to: names of the levels outside which nothing moves.
    """

    name: str
    mapped: MappedGemm
    repeats: int
    inputs_from: str
    weights_from: str
    outputs_to: str


@dataclass(frozen=True)
class Cascade(Costed):
    """Steps that run one after the other: energies and times add, EDP = ΣE·ΣT (paper, section 2.2.2).

    Attributes:
        steps: the steps.
        clock_hz: cycles a second.
    """

    steps: tuple[CascadeStep, ...]
    clock_hz: float

    @cached_property
    def energy_pJ(self) -> float:  # noqa: N802 - the unit's own spelling
        """Energy."""
        return sum(step.repeats * step.mapped.energy_pJ for step in self.steps)

    @cached_property
    def cycles(self) -> int:
        """Cycles."""
        return sum(step.repeats * step.mapped.cycles for step in self.steps)

    @property
    def seconds(self) -> float:
        """Time."""
        return self.cycles / self.clock_hz

    @property
    def utilization(self) -> float:
        """Useful MACs over what the array could do in the time."""
        useful = sum(step.repeats * step.mapped.utilization * step.mapped.cycles for step in self.steps)
        return useful / self.cycles

    @property
    def accesses(self) -> dict[str, dict[str, dict[str, float]]]:
        """Level → tensor → reads, fills and updates in words, over all steps."""
        total: dict[str, dict[str, dict[str, float]]] = {}
        for step in self.steps:
            for level, tensors in step.mapped.accesses.items():
                for tensor, counts in tensors.items():
                    sums = total.setdefault(level, {}).setdefault(tensor, dict.fromkeys(counts, 0.0))
                    for kind, words in counts.items():
                        sums[kind] += step.repeats * words
        return total

    @property
    def energy_by_level_pJ(self) -> dict[str, float]:  # noqa: N802
        """Level, or "MAC" → energy."""
        total: dict[str, float] = {}
        for step in self.steps:
            for level, energy in step.mapped.energy_by_level_pJ.items():
                total[level] = total.get(level, 0.0) + step.repeats * energy
        return total

    @property
    def cycles_by_bottleneck(self) -> dict[str, int]:
        """Level whose ports, or "MAC" where arithmetic, took the time → cycles."""
        total: dict[str, int] = {}
        for step in self.steps:
            name = step.mapped.bottleneck
            total[name] = total.get(name, 0) + step.repeats * step.mapped.cycles
        return total


def join(parts: Iterable[Cascade]) -> Cascade:
    """Cascades that run one after the other on one accelerator.

    Raises:
        ValueError: for no cascade at all.
    """
    cascades = list(parts)
    if not cascades:
        raise ValueError("there is nothing to cost: no cascade was given")
    return replace(cascades[0], steps=tuple(step for part in cascades for step in part.steps))


def cost_gemm(gemm: Gemm, mapper: Mapper, name: str = "") -> Cascade:
    """A single product as a cascade of one step, operands and result in DRAM."""
    return _cascade([step_cost(name or str(gemm), gemm, mapper)], mapper)


def cost_plan(plan: ContractionPlan, mapper: Mapper, fused: bool = True) -> Cascade:
    """The cost of a contraction plan's forward pass.

    An operand comes from DRAM once for each tile of a step that reads it: once, if nothing is tiled.

    Args:
        plan: the plan.
        mapper: the accelerator's mapper.
        fused: keep intermediates on chip where that pays; else all go through DRAM.

    Raises:
        ValueError: if a step has no mapping.
    """
    whole = _Fusion(plan.steps, mapper)
    if not fused or len(plan.steps) == 1:
        return whole.cost(frozenset())
    best = whole.best()
    for tiled in [] if whole.fits(frozenset(whole.edges)) else _tilings(plan.steps, mapper):
        candidate = min(map(tiled.cost, tiled.largest()), key=lambda cascade: cascade.edp)
        if candidate.edp >= best.edp:
            break
        best = candidate
    return best


def least_edp(plan: ContractionPlan, mapper: Mapper) -> float:
    """A lower bound of a plan's EDP in J·s without a search: every step at its floor, every intermediate on chip."""
    cascade = _Fusion(plan.steps, mapper)
    floors = [_floor(cascade.gemm(i, frozenset(cascade.edges)), mapper) for i in range(len(cascade.steps))]
    energy, cycles = (math.fsum(values) for values in zip(*floors, strict=True))
    return Cost(cycles / mapper.accelerator.clock_hz, energy).edp


def _floor(gemm: Gemm, mapper: Mapper) -> tuple[float, float]:
    """Floors of a step's energy and cycles, whichever way round it is computed: that depends on what else is on chip."""
    other = {"inputs": "weights", "weights": "inputs", "outputs": "outputs"}
    turned = replace(gemm, M=gemm.N, N=gemm.M, on_chip=tuple(other[tensor] for tensor in gemm.on_chip))
    energies, cycles = zip(mapper.floor(gemm), mapper.floor(turned), strict=True)
    return min(energies), min(cycles)


def _tilings(steps: Sequence[Step], mapper: Mapper) -> list[_Fusion]:
    """Ways to cut a cascade along an index of the result so that all intermediates fit, the least DRAM traffic first."""
    tilings = []
    for index in steps[-1].result_indices:
        cut = (_Fusion(steps, mapper, index, tiles) for tiles in sorted(divisors(steps[-1].extents[index]))[1:])
        fitting = (tiled for tiled in cut if tiled.fits(frozenset(tiled.edges)))
        tilings += list(itertools.islice(fitting, 2))
    return sorted(tilings, key=lambda tiled: tiled.outside)


class _Fusion:
    """Steps of a plan, cut into tiles along one index; steps without the index run once, before the others."""

    def __init__(self, steps: Sequence[Step], mapper: Mapper, index: str = TOKENS, tiles: int = 1) -> None:
        self.index = index
        self.tiles = tiles
        self.steps = [cut(step, index, tiles) for step in sorted(steps, key=lambda step: index in step.extents)]
        self.mapper = mapper
        self.position = {step.result: i for i, step in enumerate(self.steps)}
        self.used = {operand: i for i, step in enumerate(self.steps) for operand in (step.left, step.right)}
        level = shared_level(mapper.accelerator)
        spec = None if level is None else mapper.accelerator.levels[level]
        self.shared = spec.keeps if spec else ()
        self.words = (spec.words or math.inf) if spec else 0

    def elements(self, number: int) -> int:
        """Words of an intermediate."""
        return self.steps[self.position[number]].elements

    @property
    def edges(self) -> list[int]:
        """Operand numbers of the intermediates, the largest first."""
        return sorted((step.result for step in self.steps[:-1]), key=lambda number: -self.elements(number))

    @property
    def outside(self) -> int:
        """Words to and from DRAM with all intermediates on chip and every operand moved once a tile."""
        return sum(
            (self.tiles if self.tiled(i) else 1) * step.size(indices)
            for i, step in enumerate(self.steps)
            for operand, indices in (
                (step.left, step.left_indices), (step.right, step.right_indices), (step.result, step.result_indices)
            )
            if operand not in self.position or operand == self.steps[-1].result
        )  # fmt: skip

    def tiled(self, position: int) -> bool:
        """Whether a step runs once for each tile."""
        return self.tiles > 1 and self.index in self.steps[position].extents

    def reserved(self, kept: frozenset[int], position: int) -> int:
        """Words of the kept intermediates that wait during a step without being part of it."""
        step = self.steps[position]
        return sum(
            self.elements(number)
            for number in kept - {step.left, step.right, step.result}
            if self.position[number] < position < self.used[number] or self._waits_for_all(number, position)
        )

    def _waits_for_all(self, number: int, position: int) -> bool:
        """Whether an intermediate is made once and read by every tile, so that it is live in all their steps."""
        return self.tiled(position) and self.tiled(self.used[number]) and not self.tiled(self.position[number])

    def roomy(self, kept: frozenset[int]) -> bool:
        """Whether all that the shared level holds of every step fits whole: then to keep fewer intermediates is not better."""
        return all(self._fits_whole(self.gemm(i, kept)) for i in range(len(self.steps)) if kept)

    def _fits_whole(self, gemm: Gemm) -> bool:
        sizes = {"inputs": gemm.M * gemm.K, "weights": gemm.K * gemm.N, "outputs": gemm.M * gemm.N}
        return gemm.batch * sum(sizes[tensor] for tensor in self.shared) + gemm.reserved <= self.words

    def fits(self, kept: frozenset[int]) -> bool:
        """Whether intermediates that are live together fit, and a step of two of them can read both on chip."""
        for i, step in enumerate(self.steps):
            operands = [n for n in (step.left, step.right, step.result) if n in kept]
            if sum(map(self.elements, operands)) + self.reserved(kept, i) >= self.words:
                return False
            if {step.left, step.right} <= kept and "weights" not in self.shared:
                return False
        return True

    def best(self) -> Cascade:
        """The cascade with the intermediates on chip whose place there pays.

        Begins with every largest set that fits, and takes out the largest while it takes too much room from tiles.
        """
        cascades = []
        for kept in self.largest() or [frozenset()]:
            best = self.cost(kept)
            for number in [n for n in self.edges if n in kept]:
                if self.roomy(kept) or (candidate := self.cost(kept - {number})).edp >= best.edp:
                    break
                best, kept = candidate, kept - {number}
            cascades.append(best)
        return min(cascades, key=lambda cascade: cascade.edp)

    def largest(self) -> list[frozenset[int]]:
        """Sets of intermediates that fit, and no longer do with any other."""
        sets = [frozenset(self.edges)]
        largest: list[frozenset[int]] = []
        while sets:
            fitting = [kept for kept in sets if kept and self.fits(kept) and not any(kept <= other for other in largest)]
            largest += fitting
            sets = list({kept - {n} for kept in sets if kept not in fitting for n in kept})
        return largest

    def cost(self, kept: frozenset[int]) -> Cascade:
        """The cascade with some intermediates on chip."""
        return _cascade([self._step(i, kept) for i in range(len(self.steps))], self.mapper)

    def _step(self, position: int, kept: frozenset[int]) -> CascadeStep:
        repeats = self.tiles if self.tiled(position) else 1
        return step_cost(self.steps[position].equation, self.gemm(position, kept), self.mapper, repeats)

    def gemm(self, position: int, kept: frozenset[int]) -> Gemm:
        """A step as a product, with what is on chip."""
        step = self.steps[position]
        batch, m, n, k = step.gemm
        operands = {"inputs": step.left, "weights": step.right, "outputs": step.result}
        if step.right in kept and "weights" not in self.shared:
            # The shared level does not feed the weights' way: the result is computed transposed.
            m, n = n, m
            operands |= {"inputs": step.right, "weights": step.left}
        on_chip = tuple(tensor for tensor, operand in operands.items() if operand in kept)
        return Gemm(m, n, k, batch, on_chip, self.reserved(kept, position))


def cut(step: Step, index: str, tiles: int) -> Step:
    """The step for one tile."""
    return replace(step, extents={i: e // tiles if i == index else e for i, e in step.extents.items()})


def step_cost(name: str, gemm: Gemm, mapper: Mapper, repeats: int = 1) -> CascadeStep:
    """A product as a step, with where its operands lie.

    Args:
        name: of the step.
        gemm: the product, with what is on chip.
        mapper: of the accelerator.
        repeats: how often it runs.

    Raises:
        MisfitError: if it has no mapping.
    """
    levels = mapper.accelerator.levels
    shared = shared_level(mapper.accelerator)
    places = [
        levels[shared or 0].name if tensor in gemm.on_chip else levels[0].name for tensor in ("inputs", "weights", "outputs")
    ]
    return CascadeStep(name, mapper.map(gemm), repeats, *places)


def _cascade(steps: Sequence[CascadeStep], mapper: Mapper) -> Cascade:
    return Cascade(tuple(steps), mapper.accelerator.clock_hz)
