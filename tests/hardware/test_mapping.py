"""Mappings: counts against running the loops one by one, the mapper's choice against trying everything."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from heat_hf.hardware.gemm import REUSE, Gemm, Loop, MappedGemm
from heat_hf.hardware.lattice import divisors, prime_factors
from heat_hf.hardware.mapper import search
from heat_hf.hardware.mapping import evaluate
from heat_hf.hardware.spec import TENSORS, Accelerator, Level, Spatial

Slot = tuple[str, Spatial | None]  # a level's temporal loops, or the copies below it


def toy(*levels: Level) -> Accelerator:
    return Accelerator(
        name="toy",
        technology="none",
        clock_hz=1e9,
        word_bits={"inputs": 8, "weights": 8, "outputs": 8, "partial_sums": 24},
        mac_pJ=0.5,
        levels=levels,
    )


def level(name: str, keeps: str, words: int | None, energy: float, *spatial: Spatial, shared: float | None = None) -> Level:
    tensors = tuple(tensor for tensor in TENSORS if tensor[0] in keeps)
    return Level(name, tensors, words, None, None, shared, energy, spatial)


DRAM = level("DRAM", "iwo", None, 20.0, shared=4)
TOYS = {
    "weight-stationary": toy(
        DRAM,
        level("Buffer", "io", 12, 3.0, Spatial("PE", 2, ("N", "M"))),
        level("Weights", "w", 4, 1.0),
        level("Sums", "o", 2, 0.7, Spatial("vector", 2, ("K",))),
        level("Register", "w", 1, 0.1),
    ),
    "output-stationary": toy(
        DRAM,
        level("Buffer", "iwo", 24, 2.0, Spatial("row", 2, ("M",)), Spatial("column", 2, ("N",))),
        level("Sums", "o", 1, 0.3),
    ),
    "reducing": toy(
        DRAM,
        level("Buffer", "iwo", 30, 2.0, Spatial("PE", 4, ("K", "B", "N"))),
        level("Local", "iw", 6, 0.5),
        level("Sums", "o", 3, 0.2),
    ),
}


def orders(extents: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Distinct orders of the temporal loops that are there."""
    present = [dimension for dimension, extent in zip("MNK", extents, strict=True) if extent > 1]
    yield from itertools.permutations(present)


def splits(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (number,)
        return
    for first in divisors(number):
        for rest in splits(number // first, parts - 1):
            yield (first, *rest)


def spreads(dimension: str, extent: int, slots: Sequence[Slot]) -> Iterator[list[int]]:
    """Ways to spread a dimension over the slots that may take it."""
    usable = [i for i, (_, spatial) in enumerate(slots) if spatial is None or dimension in spatial.unrolls]
    for parts in splits(extent, len(usable)):
        extents = [1] * len(slots)
        for place, part in zip(usable, parts, strict=True):
            extents[place] = part
        yield extents


def every_mapping(gemm: Gemm, accelerator: Accelerator) -> Iterator[list[Loop]]:
    """All loop nests of a product on an accelerator whose spatial loops do not take the batch."""
    slots: list[Slot] = []
    for spec in accelerator.levels:
        slots += [(spec.name, None), *((spec.name, spatial) for spatial in spec.spatial)]
    batch = [Loop(accelerator.levels[0].name, "B", gemm.batch)] if gemm.batch > 1 else []
    for chosen in itertools.product(*(list(spreads(d, gemm.extent(d), slots)) for d in "MNK")):
        extents = list(zip(*chosen, strict=True))
        if all(spatial is None or math.prod(e) <= spatial.size for (_, spatial), e in zip(slots, extents, strict=True)):
            yield from (batch + loops for loops in nests(slots, extents))


def nests(slots: Sequence[Slot], extents: Sequence[tuple[int, ...]]) -> Iterator[list[Loop]]:
    """Loops with given extents, in every order of the temporal ones."""
    choices = [orders(e) if spatial is None else ["MNK"] for (_, spatial), e in zip(slots, extents, strict=True)]
    for order in itertools.product(*choices):
        loops = []
        for (name, spatial), e, dimensions in zip(slots, extents, order, strict=True):
            sizes = dict(zip("MNK", e, strict=True))
            loops += [Loop(name, d, sizes[d], spatial.name if spatial else None) for d in dimensions if sizes[d] > 1]
        yield loops


def costs(gemm: Gemm, accelerator: Accelerator, mappings: Iterator[list[Loop]]) -> Iterator[MappedGemm]:
    for loops in mappings:
        try:
            yield evaluate(gemm, accelerator, loops)
        except ValueError as error:
            assert "does not fit" in str(error)


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("extents", [(2, 2, 2), (1, 4, 3), (4, 2, 1), (3, 1, 4)])
@pytest.mark.parametrize("objective", ["edp", "energy", "latency"])
def test_the_mapper_finds_the_best_of_all_mappings(name: str, extents: tuple[int, int, int], objective: str) -> None:
    accelerator = TOYS[name]
    gemm = Gemm(*extents)
    mappings = list(every_mapping(gemm, accelerator))
    if len(mappings) > 4000:
        mappings = random.Random(0).sample(mappings, 4000)
    best = min(cost.objective_value(objective) for cost in costs(gemm, accelerator, iter(mappings)))
    found = search(gemm, accelerator, objective=objective)
    assert found.objective_value(objective) <= best * (1 + 1e-9)
    assert found.bound <= best * (1 + 1e-9)
    assert evaluate(gemm, accelerator, found.loops).energy_pJ == found.energy_pJ


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("gemm", [Gemm(2, 2, 2), Gemm(4, 2, 2), Gemm(2, 4, 3, batch=2), Gemm(2, 2, 4, on_chip=("inputs",))])
def test_exhaustive_search_agrees_exactly(name: str, gemm: Gemm) -> None:
    """On two levels inside DRAM everything can be tried."""
    accelerator = replace(TOYS[name], levels=TOYS[name].levels[:2] + TOYS[name].levels[-1:])
    if name == "weight-stationary":
        sums = level("Sums", "ow", 3, 0.3)
        accelerator = replace(accelerator, levels=(*accelerator.levels[:2], sums))
    if name == "reducing":
        sums = level("Sums", "o", 3, 0.2)
        spatial = (Spatial("PE", 4, ("K", "N")),)
        buffer = replace(accelerator.levels[1], spatial=spatial)
        accelerator = replace(accelerator, levels=(DRAM, buffer, sums))
    best = min(cost.objective_value("energy") for cost in costs(gemm, accelerator, every_mapping(gemm, accelerator)))
    found = search(gemm, accelerator, objective="energy")
    assert found.energy_pJ == pytest.approx(best, rel=1e-9)
    assert found.bound == pytest.approx(best, rel=1e-9)


def run_the_loops(accelerator: Accelerator, loops: Sequence[Loop]) -> Counter:
    """Fills, reads and updates of a nest, counted by running it and watching every instance's tile change."""
    counts: Counter = Counter()
    for tensor in TENSORS:
        keepers = [i for i, spec in enumerate(accelerator.levels) if tensor in spec.keeps]
        for parent, place in itertools.pairwise(keepers):
            inside = [loop for loop in loops if accelerator.levels[place:].count(level_of(accelerator, loop))]
            words = math.prod(loop.extent for loop in inside if loop.dimension != REUSE[tensor])
            changes = tile_changes(accelerator, loops, tensor, parent, place)
            if tensor == "outputs":
                count_sums(counts, accelerator, words, changes, (parent, place, keepers[-1]))
                continue
            for arrived, moved in changes:
                counts[place, tensor, "fills"] += arrived * words
                counts[parent, tensor, "reads"] += len(moved) * words
    return counts


def level_of(accelerator: Accelerator, loop: Loop) -> Level:
    return next(spec for spec in accelerator.levels if spec.name == loop.level)


def tile_changes(
    accelerator: Accelerator, loops: Sequence[Loop], tensor: str, parent: int, place: int
) -> Iterator[tuple[int, set[tuple]]]:
    """At every point in time, how many instances of a level get another tile, and what their parents send: each tile once."""
    depths = [accelerator.levels.index(level_of(accelerator, loop)) for loop in loops]
    outside = [j for j, depth in enumerate(depths) if depth < place]
    times = [j for j in outside if loops[j].spatial is None]
    copies = [j for j in outside if loops[j].spatial is not None]
    relevant = [j for j in outside if loops[j].dimension != REUSE[tensor]]
    above = [j for j in copies if depths[j] < parent]
    current: dict[tuple, tuple] = {}
    for time in itertools.product(*(range(loops[j].extent) for j in times)):
        moved, arrived = set(), 0
        for where in itertools.product(*(range(loops[j].extent) for j in copies)):
            at = dict(zip([*times, *copies], [*time, *where], strict=True))
            tile = tuple(at[j] for j in relevant)
            if current.get(where) != tile:
                current[where] = tile
                arrived += 1
                moved.add((tuple(at[j] for j in above), tile))
        yield arrived, moved


def count_sums(
    counts: Counter, accelerator: Accelerator, words: int, changes: Iterator[tuple[int, set]], levels: tuple[int, int, int]
) -> None:
    """Sums that move between a parent and a level: counted where they arrive, the first reads elided."""
    parent, place, accumulator = levels
    partial = accelerator.word_bits["partial_sums"] / accelerator.word_bits["outputs"]
    done: set[tuple] = set()
    for _, moved in changes:
        for _, tile in moved:
            again = tile in done
            done.add(tile)
            counts[parent, "outputs", "updates"] += words * (partial if again else 1)  # the first or the last is final
            if again:
                counts[place, "outputs", "fills"] += words * (1 if place == accumulator else partial)
                counts[parent, "outputs", "reads"] += words * partial


def random_mapping(gemm: Gemm, accelerator: Accelerator, rng: random.Random) -> list[Loop]:
    slots = [(spec, spatial) for spec in accelerator.levels for spatial in (None, *spec.spatial)]
    extents = [dict.fromkeys("MNK", 1) for _ in slots]
    for dimension in "MNK":
        for prime, exponent in prime_factors(gemm.extent(dimension)):
            for _ in range(exponent):
                usable = [
                    i
                    for i, (_, spatial) in enumerate(slots)
                    if spatial is None
                    or (dimension in spatial.unrolls and math.prod(extents[i].values()) * prime <= spatial.size)
                ]
                extents[rng.choice(usable)][dimension] *= prime
    loops = []
    for (spec, spatial), sizes in zip(slots, extents, strict=True):
        order = rng.sample("MNK", 3)
        loops += [Loop(spec.name, d, sizes[d], spatial.name if spatial else None) for d in order if sizes[d] > 1]
    return loops


@pytest.mark.parametrize("name", TOYS)
def test_counts_are_those_of_running_the_loops(name: str) -> None:
    levels = tuple(replace(spec, words=spec.words and spec.words * 1000) for spec in TOYS[name].levels)
    accelerator, gemm, rng = replace(TOYS[name], levels=levels), Gemm(4, 6, 8), random.Random(1)
    spilled = 0
    for _ in range(150):
        loops = random_mapping(gemm, accelerator, rng)
        cost = evaluate(gemm, accelerator, loops)
        counted = run_the_loops(accelerator, loops)
        for (place, tensor, kind), words in counted.items():
            assert cost.accesses[levels[place].name][tensor][kind] == pytest.approx(words), f"{cost}\n{place} {tensor} {kind}"
        spilled += any(tensor == "outputs" and kind == "reads" for _, tensor, kind in counted)
    assert 20 < spilled < 150
