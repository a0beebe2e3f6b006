"""Mappings: counts against Timeloop and against running the loops one by one, the mapper against trying everything."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from heat_hf.hardware import load_accelerator
from heat_hf.hardware.gemm import REUSE, Gemm, Loop, MappedGemm
from heat_hf.hardware.lattice import divisors, prime_factors
from heat_hf.hardware.mapper import Mapper, MisfitError, search, search_padded
from heat_hf.hardware.mapping import evaluate
from heat_hf.hardware.spec import TENSORS, Accelerator, Level, Spatial, shipped_accelerators

SIMBA = load_accelerator("simba-l")
REFERENCE = os.environ.get("HEAT_HF_REFERENCE")


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


def every_mapping(gemm: Gemm, accelerator: Accelerator) -> Iterator[list[Loop]]:
    """All loop nests of a product on an accelerator whose spatial loops do not take the batch."""
    slots: list[tuple[str, Spatial | None]] = []
    for spec in accelerator.levels:
        slots += [(spec.name, None), *((spec.name, spatial) for spatial in spec.spatial)]
    per_dimension = []
    for dimension in "MNK":
        usable = [i for i, (_, spatial) in enumerate(slots) if spatial is None or dimension in spatial.unrolls]
        options = []
        for parts in splits(gemm.extent(dimension), len(usable)):
            extents = [1] * len(slots)
            for place, extent in zip(usable, parts, strict=True):
                extents[place] = extent
            options.append(extents)
        per_dimension.append(options)
    for chosen in itertools.product(*per_dimension):
        extents = list(zip(*chosen, strict=True))
        if any(spatial and math.prod(e) > spatial.size for (_, spatial), e in zip(slots, extents, strict=True)):
            continue
        choices = [
            list(orders(e)) if spatial is None else [tuple("MNK")] for (_, spatial), e in zip(slots, extents, strict=True)
        ]
        for order in itertools.product(*choices):
            loops = [Loop(accelerator.levels[0].name, "B", gemm.batch)] if gemm.batch > 1 else []
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


def run_the_loops(gemm: Gemm, accelerator: Accelerator, loops: Sequence[Loop]) -> Counter:
    """Fills, reads and updates of a nest, counted by running it and watching every instance's tile change."""
    names = [spec.name for spec in accelerator.levels]
    counts: Counter = Counter()
    temporal = [i for i, loop in enumerate(loops) if loop.spatial is None]
    spatial = [i for i, loop in enumerate(loops) if loop.spatial is not None]
    keepers = {tensor: [i for i, spec in enumerate(accelerator.levels) if tensor in spec.keeps] for tensor in TENSORS}
    partial = accelerator.word_bits["partial_sums"] / accelerator.word_bits["outputs"]
    for tensor in TENSORS:
        for place, i in enumerate(keepers[tensor][1:], start=1):
            parent = keepers[tensor][place - 1]
            outside = [j for j, loop in enumerate(loops) if names.index(loop.level) < i]
            inside = [j for j in range(len(loops)) if j not in outside]
            relevant = [j for j in outside if loops[j].dimension != REUSE[tensor]]
            words = math.prod(loops[j].extent for j in inside if loops[j].dimension != REUSE[tensor])
            above = [j for j in spatial if names.index(loops[j].level) < parent]
            current: dict[tuple, tuple] = {}
            done: set[tuple] = set()
            for time in itertools.product(*(range(loops[j].extent) for j in temporal if j in outside)):
                moved: set[tuple] = set()
                arrived = 0
                for where in itertools.product(*(range(loops[j].extent) for j in spatial if j in outside)):
                    at = dict(zip([j for j in temporal if j in outside], time, strict=True))
                    at |= dict(zip([j for j in spatial if j in outside], where, strict=True))
                    tile = tuple(at[j] for j in relevant)
                    if current.get(where) != tile:
                        current[where] = tile
                        arrived += 1
                        moved.add((tuple(at[j] for j in above), tile))
                if tensor == "outputs":
                    for tile in moved:
                        again = tile[1] in done
                        done.add(tile[1])
                        counts[parent, tensor, "updates"] += words * (partial if again else 1)  # the first or the last is final
                        if again:
                            counts[i, tensor, "fills"] += words * (1 if i == keepers[tensor][-1] else partial)
                            counts[parent, tensor, "reads"] += words * partial
                else:
                    counts[i, tensor, "fills"] += arrived * words
                    counts[parent, tensor, "reads"] += len(moved) * words
    return counts


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
        counted = run_the_loops(gemm, accelerator, loops)
        for (place, tensor, kind), words in counted.items():
            assert cost.accesses[levels[place].name][tensor][kind] == pytest.approx(words), f"{cost}\n{place} {tensor} {kind}"
        spilled += any(tensor == "outputs" and kind == "reads" for _, tensor, kind in counted)
    assert 20 < spilled < 150


@pytest.mark.parametrize("constraints", [None, "timeloop"])
def test_what_a_mapping_says_of_itself(constraints: str | None) -> None:
    cost = Mapper(SIMBA, constraints).map(Gemm(384, 768, 768))
    assert cost.edp == pytest.approx(1.7136e-9, rel=1e-4)
    assert cost.cycles == 55296
    assert cost.utilization == 1
    assert cost.bottleneck == "MAC"
    assert cost.energy_pJ == pytest.approx(sum(cost.energy_by_level_pJ.values()))
    by_access = sum(
        sum(counts.values()) * spec.energy_pJ for spec in SIMBA.levels for counts in cost.accesses[spec.name].values()
    )
    assert cost.energy_pJ == pytest.approx(by_access + cost.gemm.macs * SIMBA.mac_pJ)
    assert cost.bound == pytest.approx(cost.objective_value("edp"))
    assert str(cost).startswith("GlobalBuffer\n for ")


def timeloop_workloads() -> dict[str, dict]:
    file = Path(REFERENCE or "", "timeloop.json")
    return json.loads(file.read_text())["workloads"] if REFERENCE else {}


@pytest.mark.skipif(not REFERENCE, reason="HEAT_HF_REFERENCE is not set: Timeloop's workloads are not compared")
def test_timeloops_workloads() -> None:
    """Energy and cycles within 0.1 %, every access count equal; without its constraints never worse."""
    constrained, free = Mapper(SIMBA, "timeloop"), Mapper(SIMBA)
    for name, work in timeloop_workloads().items():
        gemm = Gemm(work["M"], work["N"], work["K"])
        cost = constrained.map(gemm)
        assert cost.energy_pJ == pytest.approx(work["energy_pJ_exact"], rel=1e-6), name
        assert cost.cycles == work["cycles"], name
        assert cost.utilization == pytest.approx(work["utilization"], abs=0.01), name
        for level_name, tensors in work["accesses"].items():
            ours = cost.accesses["WeightReg" if level_name == "WeightRegs" else level_name]
            for tensor, counts in tensors.items():
                for kind in ("reads", "fills", "updates"):
                    assert ours[tensor.lower()][kind] == counts[kind], (name, level_name, tensor, kind)
        assert free.map(gemm).edp <= work["edp_J_s"] * (1 + 1e-9), name
        assert free.map(gemm).bound <= cost.objective_value("edp") * (1 + 1e-9)


# Simba-L under Timeloop's constraints: energy in pJ and cycles that Timeloop 3.0.3 reports.
@pytest.mark.parametrize(
    ("extents", "energy", "cycles"),
    [((384, 768, 768), 52062584.83, 55296), ((384, 64, 768), 9210888.19, 5760), ((4608, 280, 64), 38855802.88, 25048)],
)
def test_timeloops_figures(extents: tuple[int, int, int], energy: float, cycles: int) -> None:
    cost = Mapper(SIMBA, "timeloop").map(Gemm(*extents))
    assert (cost.energy_pJ, cost.cycles) == (pytest.approx(energy, rel=1e-6), cycles)


def test_dense_models_have_the_papers_edp() -> None:
    """ΣE·ΣT over the linears of BERT-base: 34.31 µJ·s at 384 tokens and 5.21 at 128; DistilBERT a quarter (Tables 1 to 3)."""
    for tokens, bert, distilbert in ((384, 34.31, 8.58), (128, 5.21, 1.30)):
        for layers, stated in ((12, bert), (6, distilbert)):
            mapper = Mapper(SIMBA, "timeloop")
            shapes = [Gemm(tokens, 768, 768)] * 4 + [Gemm(tokens, 3072, 768), Gemm(tokens, 768, 3072)]
            found = [mapper.map(gemm) for gemm in shapes * layers]
            edp = sum(c.energy_pJ for c in found) * sum(c.seconds for c in found) * 1e-12
            assert edp * 1e6 == pytest.approx(stated, rel=0.01)


def test_ranks_that_fill_the_vector_are_cheaper() -> None:
    """Under perfect factors rank 96 costs less than rank 90, in both products of a low-rank layer; padding mends that."""
    for rank_96, rank_90 in ((Gemm(384, 96, 768), Gemm(384, 90, 768)), (Gemm(384, 768, 96), Gemm(384, 768, 90))):
        assert search(rank_96, SIMBA).utilization > search(rank_90, SIMBA).utilization
    total = {r: _low_rank_edp(r) for r in (90, 96)}
    assert total[96] < 0.9 * total[90]
    padded = search_padded(Gemm(384, 90, 768), SIMBA)
    assert padded.gemm == Gemm(384, 96, 768)
    assert padded.edp == search(Gemm(384, 96, 768), SIMBA).edp
    assert padded.utilization == pytest.approx(90 / 96)


def _low_rank_edp(rank: int) -> float:
    both = [search(Gemm(384, rank, 768), SIMBA), search(Gemm(384, 768, rank), SIMBA)]
    return sum(c.energy_pJ for c in both) * sum(c.cycles for c in both)


def test_primes_are_padded_everywhere() -> None:
    gemm = Gemm(101, 103, 107)
    assert search(gemm, SIMBA).utilization < 0.001
    padded = search_padded(gemm, SIMBA)
    assert padded.utilization > 0.2
    assert (padded.gemm.M, padded.gemm.N, padded.gemm.K) >= (101, 103, 107)


def test_a_padded_product_that_does_not_fit_is_no_option() -> None:
    """The result waits in the global buffer, which holds it as it is, but not filled up to the next multiple of 32."""
    product = Gemm(1448, 1447, 16, on_chip=("outputs",))
    with pytest.raises(MisfitError, match="GlobalBuffer has 2,097,152 words"):
        search(replace(product, N=1472), SIMBA)
    padded = search_padded(product, SIMBA)
    assert padded.gemm.M * padded.gemm.N <= 2_097_152
    assert padded.edp <= search(product, SIMBA).edp


def test_batches_and_single_products() -> None:
    """A batch is that many products; spread over PEs it takes fewer cycles."""
    one, many = search(Gemm(32, 12, 1), SIMBA), search(Gemm(32, 12, 1, batch=280), SIMBA)
    assert many.gemm.macs == 280 * one.gemm.macs
    assert many.cycles < 280 * one.cycles
    assert search(Gemm(1, 1, 1, batch=4096), SIMBA).bottleneck in {"DRAM", "MAC"}


def test_what_is_on_chip_is_not_moved() -> None:
    apart = search(Gemm(384, 768, 128), SIMBA)
    fused = search(Gemm(384, 768, 128, on_chip=("inputs",)), SIMBA)
    dram = SIMBA.levels[0].energy_pJ
    assert apart.energy_pJ - fused.energy_pJ == pytest.approx(384 * 128 * (dram + SIMBA.levels[1].energy_pJ))
    assert "inputs" not in fused.accesses["DRAM"]
    kept = search(Gemm(384, 768, 128, on_chip=("outputs",)), SIMBA)
    assert "outputs" not in kept.accesses["DRAM"]


@pytest.mark.parametrize("name", shipped_accelerators())
def test_every_shipped_accelerator_maps(name: str) -> None:
    accelerator = load_accelerator(name)
    cost = search(Gemm(384, 128, 768), accelerator)
    assert 0 < cost.utilization <= 1
    assert cost.edp > 0
    assert cost.bound == pytest.approx(cost.objective_value("edp"), rel=0.02)


def test_the_cache_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gemm, padded = Gemm(384, 90, 768), Mapper(SIMBA, padding=True, cache=tmp_path)
    first = padded.map(gemm)
    plain = Mapper(SIMBA, cache=tmp_path).map(gemm)
    assert plain != first
    monkeypatch.setattr("heat_hf.hardware.mapper.search", None)  # nothing is searched again
    monkeypatch.setattr("heat_hf.hardware.mapper.search_padded", None)
    assert Mapper(SIMBA, padding=True, cache=tmp_path).map(gemm) == first
    assert Mapper(SIMBA, cache=tmp_path).map(gemm) == plain


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="K of a matrix product must be at least 1, got 0"):
        Gemm(1, 1, 0)
    with pytest.raises(ValueError, match="on_chip must name some of inputs, weights, outputs"):
        Gemm(1, 1, 1, on_chip=("x",))
    with pytest.raises(ValueError, match="reserved must not be negative"):
        Gemm(1, 1, 1, reserved=-1)
    with pytest.raises(ValueError, match="objective must be one of edp, energy, latency, got 'power'"):
        Mapper(SIMBA, objective="power")
    with pytest.raises(ValueError, match=r"constraints must name one of simba-l's \(timeloop\), got 'none'"):
        Mapper(SIMBA, "none")
    with pytest.raises(ValueError, match="cover 2, the product has 4"):
        evaluate(Gemm(4, 1, 1), SIMBA, [Loop("DRAM", "M", 2)])
    with pytest.raises(ValueError, match="has a loop at 'Cache'"):
        evaluate(Gemm(4, 1, 1), SIMBA, [Loop("Cache", "M", 4)])
    with pytest.raises(ValueError, match="does not fit the 1 words of WeightReg"):
        evaluate(Gemm(1, 4, 1), SIMBA, [Loop("WeightReg", "N", 4)])
    with pytest.raises(ValueError, match="does not fit the 1 words of WeightReg"):
        evaluate(Gemm(1, 1, 1, batch=2), SIMBA, [Loop("WeightReg", "B", 2)])
    with pytest.raises(ValueError, match="does not fit simba-l: GlobalBuffer has 2,097,152 words, 2,097,153 are needed"):
        search(Gemm(4, 4, 4, reserved=2**21 - 1), SIMBA)
