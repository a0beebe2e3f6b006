"""The mapper: against Timeloop's figures, padding, what is on chip, and mappings kept on disk."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from heat_hf.hardware import load_accelerator
from heat_hf.hardware.cost import MisfitError
from heat_hf.hardware.gemm import Gemm, Loop
from heat_hf.hardware.mapper import Mapper, search, search_padded
from heat_hf.hardware.mapping import evaluate
from heat_hf.hardware.spec import shipped_accelerators

SIMBA = load_accelerator("simba-l")
REFERENCE = os.environ.get("HEAT_HF_REFERENCE")


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


def test_what_has_no_room_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a search: no way to unroll the product would make room."""
    monkeypatch.setattr("heat_hf.hardware.mapper.spatial_choices", None)
    product = Gemm(384, 96, 256, batch=2, on_chip=("outputs",), reserved=1000)
    for find in (search, search_padded):
        with pytest.raises(MisfitError, match="does not fit simba: GlobalBuffer has 65,536 words, 74,729 are needed"):
            find(product, load_accelerator("simba"))


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
