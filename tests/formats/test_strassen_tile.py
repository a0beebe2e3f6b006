"""Strassen-Tile: exact algorithms are the dense layer, others as near as is known, and tiles keep to themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heat_hf.formats import FORMATS, OPERATORS, Solver, StrassenTile, bilinear, get_format, strassen_tile
from heat_hf.formats.decomposition import decompose
from heat_hf.formats.encoding import encode
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.projection import relative_error
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.strassen_tile import tiled
from heat_hf.formats.tiles import masked
from heat_hf.hardware import cost_model

EXACT = [(2, 7), (2, 8), (3, 27), (4, 49), (4, 56), (4, 64)]
QUICK = Solver(start="hadamard")


def layer_of(linear: torch.nn.Linear, tile: int, rank: int, solver: Solver | None = None) -> FactorizedLinear:
    shape = tiled(linear.out_features, linear.in_features, tile)
    setting = TensorSetting("strassen_tile", shape, (rank,))
    return FactorizedLinear.from_linear(linear, setting, encode(linear.weight, shape, rank, solver))


def inexact(dtype: torch.dtype = torch.float64) -> FactorizedLinear:
    torch.manual_seed(0)
    return layer_of(torch.nn.Linear(8, 12, dtype=dtype), 4, 16, QUICK)


@given(st.sampled_from(EXACT), st.integers(1, 3), st.integers(1, 9), st.integers(0, 1000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_exact_algorithms_are_the_dense_layer(kind: tuple[int, int], rows: int, tokens: int, seed: int, double: bool) -> None:
    """To 1e-4 in float32 and 1e-10 in float64, any batch size and length."""
    dtype = torch.float64 if double else torch.float32
    torch.manual_seed(seed)
    linear = torch.nn.Linear(2 * 3 * 4, 3 * 3 * 4, dtype=dtype)
    x = torch.randn(rows, tokens, linear.in_features, dtype=dtype)
    with torch.no_grad():
        wanted, found = linear(x), layer_of(linear, *kind)(x)
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= (1e-10 if double else 1e-4) * wanted.norm()


@pytest.mark.parametrize(("tile", "rank"), [(4, 16), (4, 24), (4, 49), (2, 7)])
def test_macs_and_parameters_are_those_of_the_paper(tile: int, rank: int) -> None:
    """r/t³ + r/M + r/N of the multiply-accumulates, and r/t² of the parameters."""
    rows, columns, tokens = 384, 1536, 128
    setting = TensorSetting("strassen_tile", tiled(rows, columns, tile), (rank,))
    dense = rows * columns
    wanted = tokens * dense * (rank / tile**3 + rank / rows + rank / columns)
    assert setting.plan(tokens).macs == round(wanted)
    assert setting.plan(tokens).macs == tokens * setting.codec.work(setting.shape, setting.rank)
    assert setting.parameters == dense * rank // tile**2 + 2 * rank * tile**2
    assert [step.gemm[0] for step in setting.plan(tokens).steps] == [1, rank, 1]  # encode, r products, decode


def test_tokens_that_fill_no_tile_are_costed_as_one() -> None:
    setting = TensorSetting("strassen_tile", tiled(16, 16, 4), (24,))
    assert setting.plan(1).macs == setting.plan(4).macs < setting.plan(5).macs
    assert cost_model("simba-l").setting(setting, 128).edp > 0


@pytest.mark.parametrize(("rank", "error"), [(4, 0.448), (5, 0.250), (6, 0.125), (7, 0.0), (8, 0.0)])
def test_least_squares_reach_the_known_errors_of_tiles_of_2(rank: int, error: float) -> None:
    assert bilinear.algorithm(2, rank).error() == pytest.approx(error, abs=0.005)
    assert bilinear.algorithm(2, rank, "als").error() <= error + 0.005


@pytest.mark.parametrize(("rank", "known"), [(16, 0.734), (24, 0.548), (32, 0.361), (40, 0.235), (48, 0.064)])
def test_what_is_cut_from_strassens_algorithm_is_better_than_what_random_starts_reach(rank: int, known: float) -> None:
    """`known` is what least squares from random starts were known to reach."""
    found = bilinear.algorithm(4, rank)
    assert found.products == rank
    assert found.error() < known - 0.04
    assert found.error() < bilinear.algorithm(4, rank, "hadamard").error() < bilinear.algorithm(4, rank, "random").error()
    assert max(float(factor.abs().max()) for factor in found.factors) < 10  # no forms that cancel each other


def test_orthogonal_products_have_the_error_of_their_number() -> None:
    for products in (1, 8, 24, 64):
        assert bilinear.hadamard(4, products).error() == pytest.approx(1 - products / 64, abs=1e-12)


def test_an_algorithm_of_algorithms_is_exact_if_both_are() -> None:
    assert bilinear.nested(bilinear.strassen(), bilinear.standard(2)).error() < 1e-20
    assert bilinear.strassen(4).products == 49


def test_least_squares_are_never_worse_than_their_start_whatever_the_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(16, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    moments = x @ x.T, w @ w.T
    for start in (bilinear.algorithm(4, 24), bilinear.hadamard(4, 24), bilinear.random(4, 24)):
        assert bilinear.improved(start, 30, *moments).error(*moments) < start.error(*moments)


def test_moments_of_tiles_lower_the_error_that_inputs_like_these_see() -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 16, dtype=torch.float64)
    mixing = torch.randn(16, 16, dtype=torch.float64)
    tiles = torch.randn(4000, 4, 16, dtype=torch.float64)
    tiles = (tiles.reshape(-1, 16) @ mixing).reshape(-1, 4, 4, 4).transpose(1, 2).reshape(-1, 4, 16)  # 4 tiles of 4×4 each
    flat = tiles.unflatten(-1, (4, 4)).transpose(1, 2).reshape(-1, 16)
    shape = tiled(24, 16, 4)

    def lost(moment: torch.Tensor | None) -> float:
        cores = encode(weight, shape, 24, tile_moment=moment).cores
        layer = FactorizedLinear(TensorSetting("strassen_tile", shape, (24,)), bias=False, dtype=torch.float64)
        with torch.no_grad():
            for parameter, core in zip(layer.cores, cores, strict=True):
                parameter.copy_(core)
            return float((layer(tiles) - tiles @ weight.T).square().sum() / (tiles @ weight.T).square().sum())

    assert lost(flat.T @ flat) < lost(None)


def test_the_error_that_is_told_is_that_of_the_operator() -> None:
    codec, shape = StrassenTile(), tiled(24, 16, 4)
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for rank in (8, 24):
        found = encode(weight, shape, rank, QUICK)
        assert found.relative_error == pytest.approx(
            relative_error(codec.target(weight, shape), codec.reconstruct(found.cores, shape)), rel=1e-9
        )


def test_the_operator_on_a_tile_is_what_the_layer_does() -> None:
    layer = inexact()
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        wanted = (x.reshape(-1) @ layer.reconstruct().T).reshape(1, 4, 12) + layer.bias
        torch.testing.assert_close(layer(x), wanted)


@given(st.integers(1, 9), st.integers(0, 7), st.integers(0, 3), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_padding_and_the_rows_beside_change_nothing(tokens: int, padding: int, beside: int, seed: int) -> None:
    layer, generator = inexact(), torch.Generator().manual_seed(seed)
    own = torch.randn(1, tokens, 8, generator=generator, dtype=torch.float64)
    batch = torch.randn(1 + beside, tokens + padding, 8, generator=generator, dtype=torch.float64)  # padding is not zero
    batch[0, :tokens] = own[0]
    mask = torch.ones(batch.shape[:2], dtype=torch.bool)
    mask[0, tokens:] = False
    with torch.no_grad():
        alone = layer(own)
        with masked(mask):
            torch.testing.assert_close(layer(batch)[:1, :tokens], alone)


@pytest.mark.parametrize("bias", [True, False])
def test_many_tokens_taken_in_parts_are_what_they_are_at_once(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = layer_of(torch.nn.Linear(8, 12, bias, dtype=torch.float64), 4, 16, QUICK), torch.randn(3, 9, 8).double()
    wanted = layer(x)
    monkeypatch.setattr(strassen_tile, "PART", 2)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)


def test_tokens_of_a_tile_depend_on_each_other_and_no_others() -> None:
    layer, x = inexact(), torch.randn(1, 8, 8, dtype=torch.float64)
    changed = x.clone()
    changed[0, 1] += 1
    with torch.no_grad():
        apart = (layer(x) - layer(changed)).abs().sum(-1)[0]
    assert (apart[:4] > 1e-6).all()
    assert (apart[4:] == 0).all()


def test_masks_end_with_their_block_and_are_of_one_thread() -> None:
    import threading

    layer, x, seen = inexact(), torch.randn(1, 6, 8, dtype=torch.float64), []
    with torch.no_grad():
        free = layer(x)
        with masked(torch.tensor([[True] * 5 + [False]])):
            inside = layer(x)
            thread = threading.Thread(target=lambda: seen.append(layer(x).detach()))
            thread.start()
            thread.join()
            with masked(None):
                assert torch.equal(layer(x), free)
        assert torch.equal(layer(x), free)
    assert not torch.allclose(inside[:, 4], free[:, 4])
    torch.testing.assert_close(seen[0], free)


def test_gradients_are_those_of_finite_differences() -> None:
    layer = inexact()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        names = [name for name, _ in layer.named_parameters()]
        with masked(mask):
            return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("extents", [(8,), (3, 8), (2, 3, 4, 8)])
def test_inputs_that_are_no_sequences_are_refused(extents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"reads sequences, of extents \(rows, tokens, features\).*poolers and heads"):
        inexact()(torch.zeros(extents, dtype=torch.float64))


def test_inputs_that_the_mask_is_not_for_are_refused() -> None:
    with masked(torch.ones(2, 5, dtype=torch.bool)), pytest.raises(ValueError, match=r"reads \(2, 6\).*mask has \(2, 5\)"):
        inexact()(torch.zeros(2, 6, 8, dtype=torch.float64))


def test_what_there_is_not_is_said() -> None:
    layer = inexact()
    with pytest.raises(ValueError, match="takes several tokens at once, so no dense layer does the same"):
        layer.to_linear()
    with pytest.raises(ValueError, match="has one rank"):
        layer.set_rank(8)
    with pytest.raises(ValueError, match="cannot be converted"):
        layer.converted("low_rank")
    with pytest.raises(ValueError, match="no factorization of a matrix"):
        decompose(StrassenTile(), torch.randn(8, 8), tiled(8, 8, 4), 16)
    with pytest.raises(ValueError, match="never executed by rebuilding"):
        TensorSetting("strassen_tile", tiled(8, 8, 4), (16,), "reconstruct")
    with pytest.raises(ValueError, match="10×8 matrix does not divide into tiles of 4"):
        tiled(10, 8, 4)
    for shape in ("8:8", "2x4:4x2", "1x8:1x8"):
        with pytest.raises(ValueError, match="takes tiles × extent of a tile on both sides"):
            StrassenTile().check_shape(type(tiled(8, 8, 4)).parse(shape, 8, 8))
    with pytest.raises(ValueError, match="must be an integer from 1 to 64"):
        TensorSetting("strassen_tile", tiled(8, 8, 4), (65,))
    with pytest.raises(ValueError, match="NaN"):
        encode(torch.full((8, 8), float("nan")), tiled(8, 8, 4), 16)
    with pytest.raises(ValueError, match="start must be one of strassen, als, hadamard, random"):
        bilinear.algorithm(4, 16, "fourier")
    with pytest.raises(ValueError, match="tiles of 2 or 4"):
        bilinear.algorithm(3, 9, "hadamard")


def test_a_matrix_of_zeros_can_still_be_trained() -> None:
    found = encode(torch.zeros(8, 8), tiled(8, 8, 4), 16, QUICK)
    assert found.relative_error == 0
    assert [bool(core.any()) for core in found.cores] == [True, False, True]


def test_it_is_no_format_that_searches_meet() -> None:
    assert "strassen_tile" in OPERATORS
    assert "strassen_tile" not in FORMATS
    assert get_format("strassen_tile").name == "strassen_tile"
