"""Candidate shapes and ranks, and the errors of many ranks at once."""

from __future__ import annotations

import itertools
import math

import pytest
import tensorly as tl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import parafac

from heat_hf.formats import FORMATS, Solver, TensorShape, get_format
from heat_hf.formats.decomposition import decompose, rank_errors
from heat_hf.hardware import cost_model
from heat_hf.search.ranks.baselines import TENSORLY_RULES, random_rank, random_shares, tensorly_rank
from heat_hf.search.shapes.ranks import choose_ranks, is_sweet, rank_options, rank_vectors
from heat_hf.search.shapes.space import entropy, possible_orders, shape_space

EXTENTS = st.sampled_from([1, 2, 7, 12, 16, 24, 30, 48, 60])


def weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A matrix with a decaying spectrum, as trained ones have."""
    torch.manual_seed(seed)
    left, right = torch.randn(rows, rows), torch.randn(columns, columns)
    decay = torch.zeros(rows, columns)
    decay.fill_diagonal_(1.0)
    decay[range(min(rows, columns)), range(min(rows, columns))] = 0.9 ** torch.arange(min(rows, columns))
    return torch.linalg.qr(left)[0] @ decay @ torch.linalg.qr(right)[0]


def text(shapes: tuple[TensorShape, ...]) -> set[str]:
    return {str(shape) for shape in shapes}


def test_the_shapes_of_a_small_matrix_are_the_expected_ones() -> None:
    found = shape_space("cp", 6, 4, orders=[2, 3], top_k=3)
    assert text(found.shapes) == {"6:4", "2x3:4", "3x2:4", "6:2x2"}
    # With extents of 1 there are 4 ordered pairs for 6, 3 for 4.
    assert found.unpruned_shapes == 1 + 4 + 3
    assert found.dropped == {"degenerate": 4}
    trains = shape_space("ttm", 6, 4, orders=[2, 3], top_k=3)
    assert {"6x1:1x4", "1x6:4x1"} & text(trains.shapes) == {"1x6:4x1"}, "the same chain, read backwards"
    assert {"2x3:1x4", "3x2:4x1", "6x1:2x2", "1x6:2x2"} < text(trains.shapes)
    assert "2x3:2x2" not in text(trains.shapes), "order 4 was not asked for"
    assert trains.dropped["the same tensor as another"] == 1


def test_uniform_factorizations_come_first() -> None:
    found = shape_space("tucker", 768, 768, orders=[3], top_k=2)
    assert text(found.shapes) == {"24x32:768", "32x24:768", "16x48:768", "48x16:768"} | {
        f"768:{m}" for m in ("24x32", "32x24", "16x48", "48x16")
    }
    assert str(found.shapes[0]) in {"24x32:768", "768:24x32"}
    assert entropy((24, 32)) > entropy((16, 48)) > entropy((2, 384))
    assert found.dropped["not of the highest entropy"] == 2 * (16 - 4)


def test_the_unpruned_space_counts_every_rank() -> None:
    found = shape_space("low_rank", 30, 12)
    assert (found.unpruned_shapes, found.unpruned_settings) == (1, 12)
    pair = shape_space("ttm", 4, 4, orders=[4], top_k=9)
    every = [TensorShape((a, 4 // a), (b, 4 // b)) for a, b in itertools.product((1, 2, 4), repeat=2)]
    assert pair.unpruned_shapes == len(every)
    assert pair.unpruned_settings == sum(get_format("ttm").max_rank(shape)[0] for shape in every)


@given(rows=EXTENTS, columns=EXTENTS, name=st.sampled_from(list(FORMATS)), top_k=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_every_candidate_is_a_valid_smaller_shape(rows: int, columns: int, name: str, top_k: int) -> None:
    codec = get_format(name)
    found = shape_space(name, rows, columns, top_k=top_k)
    assert len(found.shapes) + sum(found.dropped.values()) == found.unpruned_shapes
    assert len(set(found.shapes)) == len(found.shapes)
    for shape in found.shapes:
        shape.require(rows, columns)
        codec.check_shape(shape)
        assert codec.parameters(shape, codec.uniform_rank(shape, 1)) < rows * columns


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ([3], "cannot be folded to order 3.*7 = 7, 11 = 11.*largest order is 2"),
        ([], "orders is empty"),
        ([1], "integers of at least 2"),
        ([2.0], "integers of at least 2"),
    ],
)
def test_impossible_orders_are_refused(orders: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shape_space("cp", 7, 11, orders)
    assert text(shape_space("cp", 7, 11).shapes) == {"7:11"}
    assert list(possible_orders(7, 12)) == [2, 3, 4]
    with pytest.raises(ValueError, match=r"order 5.*7 = 7, 12 = 2·2·3"):
        shape_space("tucker", 7, 12, [4, 5])
    with pytest.raises(ValueError, match="top_k must be a positive integer, got 0"):
        shape_space("cp", 8, 8, top_k=0)


def test_ranks_include_the_accelerators_widths() -> None:
    units = cost_model("simba-l").units
    assert units == (8, 16, 32)  # lanes, PEs, vector
    options = rank_options(384, units)
    assert {1, 2, 3, 32, 64, 96, 384} <= set(options)
    assert any(not is_sweet(rank, 8) for rank in options), "plain ranks are offered as well"
    assert max(options) == 384
    assert all(a < b for a, b in itertools.pairwise(options))


def test_no_rank_takes_more_work_than_the_matrix() -> None:
    shape = TensorShape((8, 12), (96,))
    ranks = rank_vectors(get_format("cp"), shape, (8,))
    assert max(rank[0] for rank in ranks) <= 48  # 96·96 / (96 + 96)
    assert all(get_format("cp").parameters(shape, rank) < 96 * 96 for rank in ranks)


def test_chosen_ranks_lose_least_within_their_size() -> None:
    codec, shape, matrix = get_format("tucker"), TensorShape((24,), (4, 6)), weights(24, 24)
    vectors = rank_vectors(codec, shape, (4,))
    errors = dict(zip(vectors, rank_errors(codec, matrix, shape, vectors), strict=True))
    chosen = choose_ranks(codec, shape, (4,), 6, lambda ranks: [errors[rank] for rank in ranks])
    plain = [r for r in chosen if not all(is_sweet(v, 4) or v == b for v, b in zip(r, (24, 4, 6), strict=True))]
    assert plain, "a rank that is no multiple of a width is best within some size"
    for rank in plain:
        size = codec.parameters(shape, rank)
        assert errors[rank] <= min(e for other, e in errors.items() if codec.parameters(shape, other) <= size) + 1e-12
    assert choose_ranks(codec, TensorShape((1,), (3,)), (4,), 6, lambda ranks: [0.0] * len(ranks)) == []


@pytest.mark.parametrize(
    ("name", "shape", "ranks"),
    [
        ("low_rank", "24:36", [(1,), (7,), (24,)]),
        ("cp", "24:36", [(1,), (7,), (24,)]),
        ("ttm", "4x6:6x6", [(1,), (9,), (24,)]),
        ("ttm", "24x1:1x36", [(1,), (9,), (24,)]),
        ("ttm", "2x3x4:4x3x3", [(1, 1), (8, 5), (3, 9), (8, 12)]),
        ("ttm", "2x2x2x3:2x3x2x3", [(4, 9, 4), (2, 3, 2), (4, 1, 1)]),
    ],
)
def test_errors_of_closed_forms_are_those_of_the_decomposition(name: str, shape: str, ranks: list) -> None:
    codec, matrix = get_format(name), weights(24, 36)
    folded = TensorShape.parse(shape, 24, 36)
    expected = [decompose(codec, matrix, folded, rank).relative_error for rank in ranks]
    assert rank_errors(codec, matrix, folded, ranks) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("shape", ["24:4x9", "4x6:36", "96:2x3x1", "4x6:6x6"])
def test_tucker_errors_are_those_of_the_truncated_hosvd(shape: str) -> None:
    codec = get_format("tucker")
    rows = 96 if shape.startswith("96") else 24
    columns = 6 if rows == 96 else 36
    matrix, folded = weights(rows, columns).double(), TensorShape.parse(shape, rows, columns)
    ranks = [codec.uniform_rank(folded, level) for level in (1, 2, 3, 5, 200)]
    tensor = matrix.reshape(folded.modes)
    found = rank_errors(codec, matrix, folded, ranks)
    for rank, error in zip(ranks, found, strict=True):
        projected = tensor
        for mode, r in enumerate(rank):
            basis = torch.linalg.svd(tensor.movedim(mode, 0).flatten(1), full_matrices=False)[0][:, :r]
            projected = torch.tensordot(projected, basis @ basis.T, dims=([mode], [0])).movedim(-1, mode)
        assert error == pytest.approx(float((tensor - projected).norm() / tensor.norm()), abs=1e-6)
        assert decompose(codec, matrix, folded, rank).relative_error <= error + 1e-6, "sweeps only improve it"


def test_cp_sweeps_are_tensorlys() -> None:
    """The same start and number of sweeps give the same factors, up to rounding."""
    matrix, shape, rank = weights(24, 36).double(), TensorShape((4, 6), (36,)), 9
    found = decompose(get_format("cp"), matrix, shape, rank, Solver(max_sweeps=12, tolerance=0.0))
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(extent, rank, dtype=torch.float64, generator=generator) for extent in shape.modes]
    with tl.backend.backend_context("pytorch"):
        tensor = matrix.reshape(shape.modes) / matrix.square().mean().sqrt()
        _, errors = parafac(tensor, rank, init=CPTensor((None, start)), n_iter_max=12, tol=0, return_errors=True)
    assert found.relative_error == pytest.approx(float(errors[-1]), rel=1e-4)
    assert found.sweeps == 12


def test_cp_errors_fall_with_the_rank_and_stay_near_the_decomposition() -> None:
    codec, matrix, shape = get_format("cp"), weights(48, 64), TensorShape((48,), (8, 8))
    ranks = [(r,) for r in (2, 4, 6, 8, 12, 16, 24, 32)]
    errors = rank_errors(codec, matrix, shape, ranks)
    assert errors == sorted(errors, reverse=True)
    thorough = [decompose(codec, matrix, shape, rank).relative_error for rank in ranks]
    for error, reached in zip(errors, thorough, strict=True):
        assert 0.97 * reached <= error <= reached + 0.08


def test_rank_errors_of_bad_input() -> None:
    codec, shape = get_format("tucker"), TensorShape((24,), (4, 9))
    with pytest.raises(ValueError, match="weight holds NaN"):
        rank_errors(codec, torch.full((24, 36), float("nan")), shape, [(2, 2, 2)])
    with pytest.raises(ValueError, match="does not fit a 24×24 matrix"):
        rank_errors(codec, torch.ones(24, 24), shape, [(2, 2, 2)])
    with pytest.raises(ValueError, match=r"rank\[0\] of tucker"):
        rank_errors(codec, torch.ones(24, 36), shape, [(99, 2, 2)])
    assert rank_errors(codec, torch.zeros(24, 36), shape, [(2, 2, 2)]) == [0.0]
    assert rank_errors(codec, torch.ones(24, 36), shape, []) == []


def test_manual_shapes_are_the_documented_ones() -> None:
    assert str(get_format("tucker").manual_shape(768, 3072)) == "8x8x12:16x16x12"
    assert str(get_format("ttm").manual_shape(768, 768)) == "8x8x12:12x8x8"
    assert str(get_format("cp").manual_shape(768, 768)) == "24x32:768"
    assert str(get_format("low_rank").manual_shape(768, 3072)) == "768:3072"


@pytest.mark.parametrize("name", list(TENSORLY_RULES))
@pytest.mark.parametrize("ratio", [0.2, 0.42])
def test_tensorlys_rule_gives_about_the_parameters_asked_for(name: str, ratio: float) -> None:
    codec = get_format(name)
    shape = codec.default_shape(384, 1536)
    rank = codec.parse_rank(shape, tensorly_rank(name, shape, ratio))
    assert codec.parameters(shape, rank) / (384 * 1536) == pytest.approx(ratio, rel=0.1)


def test_random_ranks_fill_what_they_are_given() -> None:
    codec, shape = get_format("tucker"), TensorShape((6, 8), (6, 8))
    found = {random_rank(codec, shape, 900, seed) for seed in range(20)}
    assert len(found) > 5
    for rank in found:
        assert codec.parse_rank(shape, rank) == rank
        assert 0.6 * 900 < codec.parameters(shape, rank) <= 900
    assert random_rank(codec, shape, 900, 3) == random_rank(codec, shape, 900, 3)
    with pytest.raises(ValueError, match="smallest rank has"):
        random_rank(codec, shape, 5, 0)


def test_random_shares_add_up() -> None:
    sizes = [100, 400, 400, 50]
    shares = random_shares(sizes, 0.3, seed=1)
    assert sum(s * share for s, share in zip(sizes, shares, strict=True)) == pytest.approx(0.3 * sum(sizes))
    assert len(set(shares)) == 4
    assert random_shares(sizes, 0.3, seed=2) != shares
    assert all(math.isclose(share, 0.95) for share in random_shares(sizes, 3.0, seed=0))


def test_tensorly_has_no_rule_for_other_formats() -> None:
    with pytest.raises(ValueError, match="no rank rule for monarch: it has one for low_rank, cp, tucker, ttm"):
        tensorly_rank("monarch", TensorShape((16, 24), (16, 24)), 0.5)
