"""Contraction plans: MACs by hand for the paper's Fig. 6, equality with dense einsum, optimality against brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heat_hf.formats import FORMATS, TensorShape, get_format
from heat_hf.formats.plan import ContractionPlan
from heat_hf.formats.planning import plan_contraction
from heat_hf.formats.setting import EXECUTIONS, TensorSetting, _plan

FIG6 = "bc,a,da,ea,ca->bde"
TOKENS, RANK, IN, D, E = 128, 280, 768, 12, 64


def fig6(path: str) -> ContractionPlan:
    return plan_contraction(FIG6, {"a": RANK, "b": TOKENS, "c": IN, "d": D, "e": E}, static=(1, 2, 3, 4), path=path)


def test_fig6_naive_macs_by_hand() -> None:
    plan = fig6("left-to-right")
    # (x·λ): b c a;  ·D: b c a d;  ·E: b c a d e;  ·C, summed over a and c: b c a d e
    by_hand = [TOKENS * IN * RANK, TOKENS * IN * RANK * D, TOKENS * IN * RANK * D * E, TOKENS * IN * RANK * D * E]
    assert [step.macs for step in plan.steps] == by_hand
    assert by_hand == [27_525_120, 330_301_440, 21_139_292_160, 21_139_292_160]
    assert plan.macs == 42_636_410_880
    assert max(plan.intermediate_elements) == 21_139_292_160


def test_fig6_optimal_macs_by_hand() -> None:
    plan = fig6("optimal")
    # λ·D is done once: d a. In a forward pass: x·C: b c a;  the Khatri-Rao product E·(λD): a d e;  their product: b a d e
    assert [step.macs for step in plan.precomputed] == [D * RANK]
    by_hand = [TOKENS * IN * RANK, RANK * D * E, TOKENS * RANK * D * E]
    assert sorted(step.macs for step in plan.steps) == sorted(by_hand)
    assert plan.macs == sum(by_hand) == 55_265_280
    assert max(plan.intermediate_elements) == RANK * D * E == 215_040
    assert fig6("left-to-right").macs / plan.macs > 771  # orders of magnitude, as the paper says


def test_fig6_gemms() -> None:
    first, last = (step for step in fig6("optimal").steps if step.macs > 10**7)
    assert first.gemm == (1, TOKENS, RANK, IN)
    assert last.gemm == (1, TOKENS, D * E, RANK)
    (outer,) = (step for step in fig6("optimal").steps if step.static)
    assert outer.gemm == (RANK, E, D, 1)
    assert fig6("left-to-right").steps[0].gemm == (1, TOKENS * IN, RANK, 1)


def test_fig6_is_a_readable_table() -> None:
    text = str(fig6("optimal"))
    assert "bc,ca->ba" in text
    assert "27,525,120" in text
    assert "total 55,265,280 MACs (+ 3,360 once), largest intermediate 215,040 elements" in text
    assert max(map(len, text.splitlines())) <= 120


def all_orders(live: tuple[frozenset, ...], output: frozenset, sizes: dict[str, int]) -> int:
    """Fewest MACs over all pairwise orders, by brute force."""
    if len(live) == 1:
        return 0
    best = math.inf
    for i, j in itertools.combinations(range(len(live)), 2):
        rest = tuple(t for k, t in enumerate(live) if k not in (i, j))
        both = live[i] | live[j]
        kept = both & frozenset().union(output, *rest)
        macs = math.prod(sizes[index] for index in both)
        best = min(best, macs + all_orders((*rest, kept), output, sizes))
    return int(best)


@st.composite
def format_settings(draw: st.DrawFn) -> TensorSetting:
    name = draw(st.sampled_from(sorted(name for name in FORMATS if get_format(name).path is None)))  # W′ is an einsum
    fewest, most = (2, 2) if name == "monarch" else (1, 3)
    modes = st.lists(st.integers(1, 4), min_size=fewest, max_size=most)
    if name == "low_rank":
        shape = TensorShape.matrix(draw(st.integers(2, 9)), draw(st.integers(2, 9)))
    else:
        rows = draw(modes)
        columns = draw(st.lists(st.integers(1, 4), min_size=len(rows), max_size=len(rows)) if name == "ttm" else modes)
        shape = TensorShape(tuple(rows), tuple(columns))
    bounds = get_format(name).max_rank(shape)
    rank = get_format(name).clip_rank(shape, tuple(draw(st.integers(1, bound)) for bound in bounds))
    return TensorSetting(name, shape, rank, draw(st.sampled_from(EXECUTIONS)))


@given(setting=format_settings(), tokens=st.integers(1, 9), nominal=st.sampled_from([1, 4, 300]), seed=st.integers(0, 99))
@settings(max_examples=120, deadline=None)
def test_every_plan_equals_the_dense_result(setting: TensorSetting, tokens: int, nominal: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cores = [torch.randn(s, generator=generator, dtype=torch.float64) for s in setting.core_shapes]
    x = torch.randn(tokens, setting.shape.columns, generator=generator, dtype=torch.float64)
    dense = x @ setting.codec.reconstruct(cores, setting.shape).T
    ours = setting.plan(nominal)(x.reshape(tokens, *setting.shape.in_modes), *cores)
    torch.testing.assert_close(ours.reshape(tokens, -1), dense)


@given(setting=format_settings(), tokens=st.sampled_from([1, 7, 200]))
@settings(max_examples=60, deadline=None)
def test_optimal_path_has_the_fewest_macs(setting: TensorSetting, tokens: int) -> None:
    plan = _plan(setting, tokens, "optimal")
    inputs, output = plan.equation.split("->")
    operands = tuple(frozenset(text) for text in inputs.split(","))
    if len(operands) > 6:
        return
    assert plan.macs <= all_orders(operands, frozenset(output), dict(plan.extents))
    assert plan.macs <= _plan(setting, tokens, "left-to-right").macs
    assert plan.macs <= _plan(setting, tokens, "reconstruct").macs


@given(setting=format_settings(), tokens=st.sampled_from([1, 50]))
@settings(max_examples=60, deadline=None)
def test_precomputed_steps_are_static_and_shrink(setting: TensorSetting, tokens: int) -> None:
    for step in setting.plan(tokens).precomputed:
        assert step.static
        assert step.elements < step.size(step.left_indices) + step.size(step.right_indices)


def test_order_2_tucker_folds_into_two_products() -> None:
    plan = TensorSetting("tucker", TensorShape((96,), (64,)), (16, 16)).plan(100)
    assert len(plan.precomputed) == 1
    assert plan.macs == 100 * 16 * (96 + 64)


def test_ttm_reconstructs_the_matrix_for_many_tokens() -> None:
    setting = TensorSetting("ttm", TensorShape((24, 32), (32, 24)), (64,))
    many = setting.plan(384)
    assert many.steps[-1].macs == 384 * 768 * 768  # the paper's observation: the standard linear operation remains
    assert many.macs > 384 * 768 * 768
    assert not any(step.static for step in setting.plan(1).steps)


def test_reconstruct_contracts_static_operands_first() -> None:
    setting = TensorSetting("cp", TensorShape((12, 64), (768,)), (280,), "reconstruct")
    plan = setting.plan(128)
    assert [step.static for step in plan.steps] == [True] * (len(plan.steps) - 1) + [False]
    assert plan.steps[-1].macs == 128 * 768 * 768


def test_auto_is_the_cheaper_execution() -> None:
    # Tiny modes: few MACs, but every intermediate is as large as the input.
    tiny = TensorSetting("ttm", TensorShape((2,) * 8, (2,) * 8), (4, 4, 4, 4, 4, 4, 4))
    assert tiny.plan(4096).path == "reconstruct"
    assert tiny.plan(4096).macs > replace(tiny, execution="contract").plan(4096).macs
    assert TensorSetting("low_rank", TensorShape((768,), (768,)), (64,)).plan(4096).path == "optimal"


def test_a_plan_runs_any_number_of_tokens_without_searching(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = TensorSetting("cp", TensorShape((3, 4), (6,)), (5,))
    plan = setting.plan(10)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("path search in forward")

    monkeypatch.setattr("heat_hf.formats.planning._search", refuse)
    monkeypatch.setattr("heat_hf.formats.planning._plan", refuse)
    cores = [torch.randn(s) for s in setting.core_shapes]
    for tokens in (1, 3, 1000):
        assert plan(torch.randn(tokens, 6), *cores).shape == (tokens, 3, 4)


@pytest.mark.parametrize(
    ("equation", "static", "path", "message"),
    [
        ("ab,bc", (1,), "optimal", "must be 'ab,bc->ac'"),
        ("ab->a", (), "optimal", "two operands"),
        ("aab,bc->ac", (1,), "optimal", "repeats an index"),
        ("ab,cd->ac", (1,), "optimal", "in the result or in two operands"),
        ("ab,bc->ad", (1,), "optimal", "in the result or in two operands"),
        ("ab,bc->ac", (2,), "optimal", "positions from 0 to 1"),
        ("ab,bc->ac", (0, 1), "optimal", "not all"),
        ("ab,bc->ac", (1,), "best", "path must be one of"),
        ("ab,bz->az", (1,), "optimal", "index 'z'"),
    ],
)
def test_bad_equations(equation: str, static: tuple[int, ...], path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_contraction(equation, {"a": 2, "b": 3, "c": 4, "d": 5}, static, path)
