"""Cascades: what stays on chip, what is tiled or spilled, and the paper's observations as numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from heat_hf import TensorSetting, TensorShape, plan_contraction
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import load_accelerator
from heat_hf.hardware.analytic import AnalyticModel
from heat_hf.hardware.cascade import Cascade, cost_gemm, cost_plan, join, least_edp
from heat_hf.hardware.gemm import Gemm
from heat_hf.hardware.mapper import Mapper
from heat_hf.hardware.spec import Accelerator

SIMBA = load_accelerator("simba-l")
MAPPER = Mapper(SIMBA)
LOW_RANK = TensorSetting("low_rank", TensorShape.matrix(768, 768), (128,))


def small_buffer(words: int) -> Mapper:
    """Simba-L with a global buffer of so many words."""
    levels = tuple(replace(level, words=words) if level.name == "GlobalBuffer" else level for level in SIMBA.levels)
    return Mapper(replace(SIMBA, levels=levels))


def places(cost: Cascade) -> list[tuple[str, str]]:
    return [(step.inputs_from, step.outputs_to) for step in cost.steps]


def test_low_rank_fused_and_unfused() -> None:
    """AccelForge, whose counting differs in details, finds 2.6675e-10 J·s fused and 2.8487e-10 unfused: a gain of 6.4 %."""
    plan = LOW_RANK.plan(384)
    fused, unfused = cost_plan(plan, MAPPER), cost_plan(plan, MAPPER, fused=False)
    assert fused.edp <= 1.02 * 2.6675e-10
    assert unfused.edp <= 1.02 * 2.8487e-10
    assert 1 - fused.edp / unfused.edp == pytest.approx(0.064, abs=0.02)
    assert places(fused) == [("DRAM", "GlobalBuffer"), ("GlobalBuffer", "DRAM")]
    assert places(unfused) == [("DRAM", "DRAM")] * 2
    # What is saved is the intermediate's way to DRAM and back, and its second entry into the buffer.
    dram, buffer = SIMBA.levels[0].energy_pJ, SIMBA.levels[1].energy_pJ
    assert unfused.energy_pJ - fused.energy_pJ == pytest.approx(384 * 128 * (2 * dram + buffer))


def test_static_operands_come_from_dram_once() -> None:
    cost = cost_plan(LOW_RANK.plan(384), MAPPER)
    assert cost.accesses["DRAM"]["weights"]["reads"] == LOW_RANK.parameters
    assert cost.accesses["DRAM"]["inputs"]["reads"] == 384 * 768
    assert cost.accesses["DRAM"]["outputs"]["updates"] == 384 * 768


def test_totals_are_sums_and_edp_is_their_product() -> None:
    cost = cost_plan(LOW_RANK.plan(384), MAPPER)
    assert cost.energy_pJ == pytest.approx(sum(cost.energy_by_level_pJ.values()))
    assert cost.cycles == sum(cost.cycles_by_bottleneck.values()) == sum(step.mapped.cycles for step in cost.steps)
    assert cost.edp == pytest.approx(cost.energy_pJ * 1e-12 * cost.cycles / SIMBA.clock_hz)
    twice = join([cost, cost])
    assert twice.edp == pytest.approx(4 * cost.edp)
    assert twice.utilization == pytest.approx(cost.utilization)
    with pytest.raises(ValueError, match="nothing to cost"):
        join([])


def test_an_intermediate_that_does_not_fit_is_tiled_over_tokens() -> None:
    """12,288 tokens × 256 words are 3 MiB, the buffer has 2: two tiles, each with its own pass over the cores."""
    big = TensorSetting("low_rank", TensorShape.matrix(3072, 768), (256,))
    cost = cost_plan(big.plan(12288), MAPPER)
    assert {step.repeats for step in cost.steps} == {2}
    assert places(cost) == [("DRAM", "GlobalBuffer"), ("GlobalBuffer", "DRAM")]
    assert cost.accesses["DRAM"]["weights"]["reads"] == 2 * big.parameters
    assert cost.edp < cost_plan(big.plan(12288), MAPPER, fused=False).edp


def test_an_intermediate_is_spilled_where_tiling_does_not_pay() -> None:
    """A buffer of 512 words: tiles so small that the cores' way from DRAM costs more than the intermediate's."""
    tiny = small_buffer(2048)
    cost = cost_plan(LOW_RANK.plan(384), tiny)
    assert places(cost) == [("DRAM", "DRAM")] * 2
    assert cost.edp == cost_plan(LOW_RANK.plan(384), tiny, fused=False).edp


def test_a_rebuilt_matrix_is_tiled_over_its_rows() -> None:
    """Tiles of tokens do not make the matrix smaller; tiles of an output mode do. The input then comes from DRAM for each."""
    ttm = TensorSetting("ttm", TensorShape((24, 32), (24, 32)), (32,), "reconstruct")
    roomy, tight = cost_plan(ttm.plan(384), MAPPER), cost_plan(ttm.plan(384), small_buffer(400_000))
    assert roomy.steps[0].outputs_to == tight.steps[0].outputs_to == "GlobalBuffer"
    assert {step.repeats for step in roomy.steps} == {1}
    assert {step.repeats for step in tight.steps} == {2}
    assert tight.accesses["DRAM"]["weights"]["reads"] > roomy.accesses["DRAM"]["weights"]["reads"]
    for mapper in (MAPPER, small_buffer(400_000), small_buffer(50_000)):
        assert cost_plan(ttm.plan(384), mapper).edp <= cost_plan(ttm.plan(384), mapper, fused=False).edp


def test_what_is_live_takes_room() -> None:
    """An intermediate that waits for a later step leaves less room to the steps between."""
    cp = TensorSetting("cp", TensorShape((24, 32), (768,)), (64,), "contract")
    rows, inputs, last = cost_plan(cp.plan(384), MAPPER).steps
    assert rows.outputs_to == last.inputs_from == "GlobalBuffer"
    assert [step.mapped.gemm.reserved for step in (rows, inputs, last)] == [0, 24 * 32 * 64, 0]


@pytest.mark.parametrize("name", ["simba", "systolic-os", "edge-npu"])
@pytest.mark.parametrize(
    ("format", "shape", "rank"),
    [
        ("low_rank", "768:768", 96),
        ("cp", "12x64:768", 280),
        ("tucker", "12x64:12x64", (12, 48, 12, 48)),
        ("ttm", "24x32:24x32", 64),
    ],
)
def test_fusion_never_costs_more(name: str, format: str, shape: str, rank: object) -> None:
    mapper = Mapper(load_accelerator(name))
    plan = TensorSetting(format, TensorShape.parse(shape, 768, 768), rank).plan(96)
    assert cost_plan(plan, mapper).edp <= cost_plan(plan, mapper, fused=False).edp * (1 + 1e-9)


def test_an_accelerator_without_a_shared_level_cannot_fuse() -> None:
    levels = (
        SIMBA.levels[0],
        replace(SIMBA.levels[1], keeps=("inputs",)),
        *(
            replace(level, keeps=("weights", "outputs")) if level.name == "WeightBuffer" else level
            for level in SIMBA.levels[2:]
        ),
    )
    mapper = Mapper(Accelerator("split", "", 1e9, SIMBA.word_bits, 0.1, levels))
    assert places(cost_plan(LOW_RANK.plan(64), mapper)) == [("DRAM", "DRAM")] * 2


def test_figure_6_the_path_decides() -> None:
    """Fig. 6: following the einsum from left to right costs orders of magnitude more than the MAC-optimal path."""
    extents = {"b": 128, "c": 768, "a": 280, "d": 12, "e": 64}
    naive, best = (
        cost_plan(plan_contraction("bc,a,da,ea,ca->bde", extents, (1, 2, 3, 4), path), MAPPER)
        for path in ("left-to-right", "optimal")
    )
    assert naive.edp / best.edp > 1e4


def test_ttm_reconstructs_and_stays_near_dense() -> None:
    """Section 3.2: the optimal path of TTM rebuilds the matrix, so that it saves little: within half of the dense EDP."""
    ttm = TensorSetting("ttm", TensorShape((24, 32), (24, 32)), (32,))
    dense = AnalyticModel(MAPPER).cascade_of(MatrixSize(768, 768), 384)
    cost = AnalyticModel(MAPPER).cascade_of(ttm, 384)
    assert [step.mapped.gemm.macs for step in cost.steps][-1] == 384 * 768 * 768
    assert ttm.ratio < 0.1
    assert 0.5 < cost.edp / dense.edp < 1.5
    # Low rank with the same number of parameters
    low_rank = TensorSetting("low_rank", TensorShape.matrix(768, 768), (32,))
    assert low_rank.parameters <= ttm.parameters
    assert AnalyticModel(MAPPER).cascade_of(low_rank, 384).edp < 0.1 * cost.edp


def test_high_order_tucker_has_low_utilization() -> None:
    """Section 3.2: high orders make products with extents far below 32, which leave the array idle."""
    high = TensorSetting("tucker", TensorShape((4, 4, 6, 8), (4, 4, 6, 8)), (3, 3, 5, 6) * 2, "contract")
    low = TensorSetting("tucker", TensorShape.matrix(768, 768), (48, 48), "contract")
    found = {s.shape.order: AnalyticModel(MAPPER).cascade_of(s, 384) for s in (high, low)}
    assert min(min(step.mapped.gemm.N, step.mapped.gemm.K) for step in found[8].steps) < 4
    assert found[8].utilization < 0.3
    assert found[2].utilization > 0.6
    assert high.parameters < low.parameters
    assert found[8].edp > 3 * found[2].edp


def test_rank_96_beats_rank_90() -> None:
    """Under factors that divide the extents; with padding the two are close."""
    edp = {}
    for rank in (90, 96):
        low_rank = TensorSetting("low_rank", TensorShape.matrix(768, 768), (rank,))
        edp[rank] = [AnalyticModel(mapper).cascade_of(low_rank, 384).edp for mapper in (MAPPER, Mapper(SIMBA, padding=True))]
    assert edp[96][0] < 0.9 * edp[90][0]
    assert edp[90][1] < 1.05 * edp[96][1]


def test_the_best_setting_changes_with_the_accelerator() -> None:
    """Rank 112 fills the 16 columns of the small NPU, not the 128 of the systolic array."""
    relative = {}
    for name in ("edge-npu", "systolic-os"):
        mapper = Mapper(load_accelerator(name))
        edp = [
            AnalyticModel(mapper).cascade_of(TensorSetting("low_rank", TensorShape.matrix(768, 768), (r,)), 384).edp
            for r in (112, 128)
        ]
        relative[name] = edp[0] / edp[1]
    assert relative["edge-npu"] < 0.9
    assert relative["systolic-os"] > relative["edge-npu"]


def test_auto_takes_the_cheaper_way() -> None:
    ttm = TensorSetting("ttm", TensorShape((24, 32), (24, 32)), (8,))
    ways = [AnalyticModel(MAPPER).cascade_of(replace(ttm, execution=way), 384).edp for way in ("contract", "reconstruct")]
    assert AnalyticModel(MAPPER).cascade_of(ttm, 384).edp == min(ways)


def test_a_single_product_is_a_cascade_of_one() -> None:
    cost = cost_gemm(Gemm(384, 768, 768), MAPPER)
    assert cost.edp == MAPPER.map(Gemm(384, 768, 768)).edp
    assert cost.steps[0].name == "384x768x768"


@pytest.mark.parametrize(
    "setting",
    [
        TensorSetting("low_rank", TensorShape((48,), (96,)), (16,)),
        TensorSetting("cp", TensorShape((6, 8), (96,)), (24,)),
        TensorSetting("tucker", TensorShape((48,), (8, 12)), (24, 4, 6)),
        TensorSetting("ttm", TensorShape((6, 8), (8, 12)), (40,)),
        TensorSetting("ttm", TensorShape((2, 4, 6), (4, 4, 6)), (3, 5)),
    ],
)
def test_what_is_not_searched_could_not_have_been_better(setting: TensorSetting) -> None:
    """A way of execution is skipped by a lower bound of its EDP; the cost is still the least over both."""
    for tokens in (1, 8, 512):
        plans = [replace(setting, execution=way).plan(tokens) for way in ("contract", "reconstruct")]
        costs = [cost_plan(plan, MAPPER).edp for plan in plans]
        for plan, edp in zip(plans, costs, strict=True):
            assert 0 < least_edp(plan, MAPPER) <= min(edp, cost_plan(plan, MAPPER, fused=False).edp)
        assert AnalyticModel(MAPPER).cascade_of(setting, tokens).edp == min(costs)
