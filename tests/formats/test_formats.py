"""Formats: exactness against TensorLy and dense references, bounds, parameter counts, truncation."""

from __future__ import annotations

import math

import pytest
import tensorly as tl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heat_hf.formats import FORMATS, Solver, TensorShape, balanced_factors, get_format
from heat_hf.formats.decomposition import decompose, match_variance
from heat_hf.formats.projection import relative_error

EXACT = ["low_rank", "tucker", "ttm", "monarch"]
EINSUMS = [name for name in FORMATS if get_format(name).path is None]  # W′ is the einsum of its cores, in any order


def random_matrix(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def second_moment(columns: int, seed: int = 1, rows: int = 400) -> torch.Tensor:
    scale = torch.logspace(0, -2, columns, dtype=torch.float64)
    x = random_matrix(rows, columns, seed) * scale @ random_matrix(columns, columns, seed + 1)
    return x.T @ x / rows


@st.composite
def tensor_shapes(draw: st.DrawFn, name: str) -> TensorShape:
    modes = st.lists(st.integers(1, 4), min_size=1, max_size=4)
    if name in ("low_rank", "pivoted"):
        return TensorShape.matrix(draw(st.integers(1 + (name == "pivoted"), 12)), draw(st.integers(1, 12)))
    out_modes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=2) if name == "monarch" else modes)
    size = len(out_modes) if name in ("ttm", "monarch") else draw(st.integers(1, 4))
    return TensorShape(tuple(out_modes), tuple(draw(st.lists(st.integers(1, 4), min_size=size, max_size=size))))


@pytest.mark.parametrize("name", EXACT)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_full_rank_reproduces_the_matrix(name: str, data: st.DataObject) -> None:
    format = get_format(name)
    shape = data.draw(tensor_shapes(name))
    weight = random_matrix(shape.rows, shape.columns, data.draw(st.integers(0, 99)))
    result = decompose(format, weight, shape, format.max_rank(shape))
    assert result.relative_error < 1e-5
    torch.testing.assert_close(format.reconstruct(result.cores, shape), weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("low_rank", TensorShape((96,), (64,))),
        ("tucker", TensorShape((96,), (8, 8))),
        ("tucker", TensorShape((8, 12), (8, 8))),
        ("ttm", TensorShape((8, 12), (8, 8))),
        ("ttm", TensorShape((4, 4, 6), (4, 4, 4))),
    ],
)
def test_full_rank_float32(name: str, shape: TensorShape) -> None:
    format = get_format(name)
    weight = random_matrix(shape.rows, shape.columns, dtype=torch.float32)
    assert decompose(format, weight, shape, format.max_rank(shape)).relative_error < 1e-5


@pytest.mark.parametrize("shape", [TensorShape((30,), (20,)), TensorShape((24,), (4, 5)), TensorShape((3, 8), (4, 5))])
def test_cp_recovers_a_tensor_of_known_rank(shape: TensorShape) -> None:
    factors = [random_matrix(extent, 3, seed) for seed, extent in enumerate(shape.modes)]
    weight = torch.as_tensor(tl.cp_to_tensor((None, [f.numpy() for f in factors]))).reshape(shape.rows, shape.columns)
    result = decompose(get_format("cp"), weight, shape, 3, Solver(max_sweeps=2000, tolerance=1e-12))
    assert result.relative_error < 1e-5
    assert result.converged


@pytest.mark.parametrize(
    ("name", "shape", "rank"),
    [
        ("low_rank", TensorShape((12,), (20,)), (3,)),
        ("cp", TensorShape((3, 4), (20,)), (5,)),
        ("tucker", TensorShape((3, 4), (20,)), (2, 3, 4)),
        ("ttm", TensorShape((3, 4), (4, 5)), (3,)),
    ],
)
def test_cores_have_the_same_root_mean_square(name: str, shape: TensorShape, rank: tuple[int, ...]) -> None:
    """Steps of an optimizer are alike for all entries: entries of a different size would be trained at different speeds."""
    cores = decompose(get_format(name), random_matrix(shape.rows, shape.columns), shape, rank).cores
    sizes = [float(core.square().mean().sqrt()) for core in cores]
    assert sizes == pytest.approx([sizes[0]] * len(sizes), rel=1e-9)


def test_reconstruction_equals_tensorly() -> None:
    shape = TensorShape((2, 3), (4, 5))
    weight = random_matrix(6, 20)
    cores = {
        name: [c.numpy() for c in decompose(get_format(name), weight, shape, rank).cores]
        for name, rank in (("cp", 4), ("tucker", (2, 2, 3, 3)), ("ttm", (3,)))
    }
    first, last = cores["ttm"]
    expected = {
        "cp": tl.cp_to_tensor((None, cores["cp"])),
        "tucker": tl.tucker_to_tensor((cores["tucker"][0], cores["tucker"][1:])),
        "ttm": tl.tt_matrix.tt_matrix_to_tensor([first[None], last[..., None]]),
    }
    for name, tensor in expected.items():
        ours = get_format(name).reconstruct([torch.as_tensor(c) for c in cores[name]], shape)
        torch.testing.assert_close(ours, torch.as_tensor(tensor).reshape(6, 20))


@pytest.mark.parametrize("name", EINSUMS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_core_shapes_indices_and_parameters_agree(name: str, data: st.DataObject) -> None:
    format = get_format(name)
    shape = data.draw(tensor_shapes(name))
    rank = format.uniform_rank(shape, data.draw(st.integers(1, 6)))
    assert format.parse_rank(shape, list(rank)) == rank
    sizes: dict[str, int] = {}
    subscripts = format.subscripts(shape)
    for indices, extents in zip(subscripts.cores, format.core_shapes(shape, rank), strict=True):
        for index, extent in zip(indices, extents, strict=True):
            assert sizes.setdefault(index, extent) == extent
    assert tuple(sizes[i] for i in subscripts.rows + subscripts.columns) == shape.modes
    cores = [torch.ones(extents) for extents in format.core_shapes(shape, rank)]
    assert format.parameters(shape, rank) == sum(core.numel() for core in cores)
    assert format.reconstruct(cores, shape).shape == (shape.rows, shape.columns)


@pytest.mark.parametrize(
    ("name", "shape", "rank", "parameters"),
    [
        ("low_rank", TensorShape((768,), (3072,)), (64,), 64 * (768 + 3072)),
        ("cp", TensorShape((12, 64), (768,)), (280,), 280 * (12 + 64 + 768)),
        ("tucker", TensorShape((12, 64), (768,)), (4, 8, 16), 4 * 8 * 16 + 12 * 4 + 64 * 8 + 768 * 16),
        ("ttm", TensorShape((24, 32), (32, 24)), (10,), 24 * 32 * 10 * 2),
        ("ttm", TensorShape((8, 8, 12), (8, 8, 12)), (5, 7), 64 * 5 + 5 * 64 * 7 + 7 * 144),
    ],
)
def test_parameter_counts_by_hand(name: str, shape: TensorShape, rank: tuple[int, ...], parameters: int) -> None:
    assert get_format(name).parameters(shape, rank) == parameters


@pytest.mark.parametrize("order", range(2, 9))
def test_tucker_and_ttm_of_orders_2_to_8_are_sayable(order: int) -> None:
    shape = TensorShape((2,) * order, (2,) * (order - 1) + (3,))
    for name in ("tucker", "ttm", "cp"):
        rank = get_format(name).uniform_rank(shape, 2)
        assert get_format(name).parse_rank(shape, rank) == rank
        assert len(get_format(name).core_shapes(shape, rank)) == order * {"tucker": 2, "ttm": 1, "cp": 2}[name] + (
            name == "tucker"
        )


def test_order_3_shape_of_the_paper() -> None:
    assert TensorShape.parse("768x12x64", 768, 768) == TensorShape((768,), (12, 64))
    assert TensorShape.parse("12x64:768", 768, 768) == TensorShape((12, 64), (768,))
    assert TensorShape.parse([[12, 64], [768]], 768, 768) == TensorShape((12, 64), (768,))
    assert get_format("cp").equation(TensorShape((12, 64), (768,))) == "ad,be,ce,de->abc"  # bc,da,ea,ca->bde, renamed


@pytest.mark.parametrize("name", list(FORMATS))
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_clipped_rank_is_valid_and_decomposes(name: str, data: st.DataObject) -> None:
    format = get_format(name)
    shape = data.draw(tensor_shapes(name))
    wanted = tuple(data.draw(st.integers(1, 20)) for _ in format.max_rank(shape))
    rank = format.clip_rank(shape, wanted)
    assert all(0 < r <= w for r, w in zip(rank, wanted, strict=True))
    assert format.parse_rank(shape, list(rank)) == rank
    cores = decompose(format, random_matrix(shape.rows, shape.columns), shape, rank, Solver(max_sweeps=3)).cores
    cores = [core for core in cores if core.is_floating_point()]
    assert [tuple(core.shape) for core in cores] == list(format.core_shapes(shape, rank))


@pytest.mark.parametrize("name", EINSUMS)
def test_rank_truncation_takes_the_first_slices(name: str) -> None:
    format = get_format(name)
    shape = format.default_shape(24, 36)
    large, small = (format.uniform_rank(shape, level) for level in (6, 3))
    cores = decompose(format, random_matrix(24, 36), shape, large).cores
    cut = format.truncate(cores, shape, small)
    assert [tuple(core.shape) for core in cut] == list(format.core_shapes(shape, small))
    for core, whole in zip(cut, cores, strict=True):
        torch.testing.assert_close(core, whole[tuple(slice(0, extent) for extent in core.shape)])


def test_truncated_low_rank_is_the_smaller_optimum() -> None:
    weight, moment, shape = random_matrix(20, 30), second_moment(30), TensorShape.matrix(20, 30)
    format = get_format("low_rank")
    for c in (None, moment):
        large = decompose(format, weight, shape, 10, second_moment=c)
        small = decompose(format, weight, shape, 4, second_moment=c)
        cut = format.reconstruct(format.truncate(large.cores, shape, (4,)), shape)
        torch.testing.assert_close(cut, format.reconstruct(small.cores, shape))


def test_low_rank_error_is_the_tail_of_the_spectrum() -> None:
    weight = random_matrix(30, 20)
    singular = torch.linalg.svdvals(weight)
    result = decompose(get_format("low_rank"), weight, TensorShape.matrix(30, 20), 5)
    assert result.relative_error == pytest.approx(float(singular[5:].norm() / singular.norm()), rel=1e-9)


def test_activation_aware_low_rank_is_the_optimum() -> None:
    weight, moment = random_matrix(16, 24), second_moment(24)
    root = torch.linalg.cholesky(moment + 1e-12 * torch.eye(24, dtype=torch.float64))
    u, s, vh = torch.linalg.svd(weight @ root, full_matrices=False)
    expected = torch.linalg.solve_triangular(root, (u[:, :6] * s[:6]) @ vh[:6], upper=False, left=False)
    result = decompose(get_format("low_rank"), weight, TensorShape.matrix(16, 24), 6, second_moment=moment)
    torch.testing.assert_close(result.cores[0] @ result.cores[1], expected, rtol=1e-4, atol=1e-5)
    assert result.output_error == pytest.approx(float(s[6:].norm() / s.norm()), rel=1e-4)


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("columns", [36, 60])
def test_calibrated_is_better_than_plain(name: str, columns: int) -> None:
    format = get_format(name)
    weight, moment = random_matrix(24, columns), second_moment(columns)
    shape = format.default_shape(24, columns)
    rank = format.largest_rank(shape, 0.5 * weight.numel())
    plain = decompose(format, weight, shape, rank)
    aware = decompose(format, weight, shape, rank, second_moment=moment)
    before = relative_error(weight, format.reconstruct(plain.cores, shape), moment)
    assert aware.output_error is not None
    assert aware.output_error < 0.95 * before
    assert plain.relative_error <= aware.relative_error + 1e-6


@pytest.mark.parametrize("name", list(FORMATS))
def test_calibration_with_fewer_tokens_than_features(name: str) -> None:
    format = get_format(name)
    weight, moment = random_matrix(12, 24), second_moment(24, rows=5)
    shape = format.default_shape(12, 24)
    result = decompose(format, weight, shape, format.uniform_rank(shape, 4), second_moment=moment)
    assert math.isfinite(result.relative_error)
    assert all(torch.isfinite(core).all() for core in result.cores)


@pytest.mark.parametrize("name", list(FORMATS))
def test_same_seed_same_cores(name: str) -> None:
    format = get_format(name)
    shape = format.default_shape(24, 36)
    rank = format.uniform_rank(shape, 5)
    first, second = (decompose(format, random_matrix(24, 36), shape, rank, Solver(seed=3)) for _ in range(2))
    for a, b in zip(first.cores, second.cores, strict=True):
        assert torch.equal(a, b)


def test_convergence_is_reported() -> None:
    weight, shape = random_matrix(24, 36), TensorShape((24,), (6, 6))
    for name in ("cp", "tucker"):
        stopped = decompose(get_format(name), weight, shape, 3, Solver(max_sweeps=2, tolerance=1e-15))
        assert (stopped.sweeps, stopped.converged) == (2, False)
        assert decompose(get_format(name), weight, shape, 3, Solver(max_sweeps=500, tolerance=1e-4)).converged


@pytest.mark.parametrize("name", list(FORMATS))
def test_variance_matching(name: str) -> None:
    format = get_format(name)
    weight, shape = random_matrix(24, 36), format.default_shape(24, 36)
    cores = decompose(format, weight, shape, format.uniform_rank(shape, 2)).cores
    scaled = format.reconstruct(match_variance(weight, cores, format, shape), shape)
    assert float(scaled.var()) == pytest.approx(float(weight.var()), rel=1e-6)


@pytest.mark.parametrize("name", list(FORMATS))
@given(ratio=st.floats(0.2, 0.95))
@settings(max_examples=20, deadline=None)
def test_largest_rank_is_the_largest_within_the_budget(name: str, ratio: float) -> None:
    format = get_format(name)
    shape = format.default_shape(96, 384)
    rank = format.largest_rank(shape, ratio * 96 * 384)
    assert format.parameters(shape, rank) <= ratio * 96 * 384
    bigger = format.uniform_rank(shape, max(rank) + 1)
    assert bigger == rank or format.parameters(shape, bigger) > ratio * 96 * 384


@given(extent=st.integers(1, 400), count=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_balanced_factors(extent: int, count: int) -> None:
    factors = balanced_factors(extent, count)
    assert math.prod(factors) == extent
    assert len(factors) == count
    assert list(factors) == sorted(factors)


def test_balanced_factors_are_uniform() -> None:
    assert balanced_factors(768, 2) == (24, 32)
    assert balanced_factors(3072, 3) == (12, 16, 16)


@pytest.mark.parametrize("name", list(FORMATS))
def test_rank_above_that_of_the_matrix(name: str) -> None:
    format, shape = get_format(name), get_format(name).default_shape(24, 36)
    weight = random_matrix(24, 2) @ random_matrix(2, 36)
    result = decompose(format, weight, shape, format.uniform_rank(shape, 20))
    assert result.relative_error < (0.3 if name == "ttm" else 1e-4)
