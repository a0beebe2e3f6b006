"""The format contract: shared indices, whitening only where it is valid, and calibration that never makes outputs worse."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heat_hf.formats import FORMATS, Format, Monarch, Solver, TensorShape, balanced_factors
from heat_hf.formats.decomposition import decompose
from heat_hf.formats.projection import weighted_square
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.spectra import truncated_svd
from heat_hf.hardware import cost_model

ROOT = Path(__file__).parents[2]
QUICK = Solver(max_sweeps=20, refinement_steps=15)


def documented_format() -> Format:
    """CONTRIBUTING's complete example, as it stands there."""
    (block,) = [
        b for b in re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S) if "class Hadamard" in b
    ]
    names: dict = {}
    exec(block[: block.index("FORMATS[")], names)
    return names["Hadamard"]()


ALL = [*FORMATS.values(), documented_format()]


def moment(size: int, rank: int, seed: int) -> torch.Tensor:
    """Of inputs that lie near a few directions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, rank, generator=generator, dtype=torch.float64) @ torch.randn(
        rank, size, generator=generator, dtype=torch.float64
    )
    x = x + 0.1 * torch.randn(200, size, generator=generator, dtype=torch.float64)
    return x.T @ x / 200


def shapes(codec: Format) -> list[TensorShape]:
    """Folded on no side, on one, on both, and longer trains, as far as the format takes them."""
    candidates = [
        TensorShape.matrix(12, 16), TensorShape((12,), (4, 4)), TensorShape((3, 4), (16,)), TensorShape((3, 4), (4, 4)),
        TensorShape((3, 4), (16, 1)), TensorShape((12, 1), (1, 16)), TensorShape((1, 12), (4, 4)),
        TensorShape((2, 2, 3), (4, 2, 2)), TensorShape((12, 1, 1), (1, 4, 4)),
    ]  # fmt: skip
    taken = []
    for shape in candidates:
        try:
            codec.check_shape(shape)
            codec.parse_rank(shape, codec.uniform_rank(shape, 1))
        except ValueError:
            continue
        taken.append(shape)
    return taken


@pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.name)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_calibration_never_makes_outputs_worse(codec: Format, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from(shapes(codec)))
    rank = codec.uniform_rank(shape, data.draw(st.integers(1, 4)))
    seed = data.draw(st.integers(0, 10_000))
    weight = torch.randn(12, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    c, g = moment(16, data.draw(st.integers(1, 16)), seed + 1), moment(12, data.draw(st.integers(1, 12)), seed + 2)
    plain = decompose(codec, weight, shape, rank, QUICK)

    def lost(cores: tuple, *moments: torch.Tensor) -> float:
        return float(weighted_square(weight - codec.reconstruct(cores, shape), *moments))

    by_outputs = decompose(codec, weight, shape, rank, QUICK, c)
    assert lost(by_outputs.cores, c) <= lost(plain.cores, c) * (1 + 1e-6) + 1e-9
    if not all(codec.whitens(shape)) or not codec.optimal(shape):  # else the optimum is that of the damped G
        by_loss = decompose(codec, weight, shape, rank, QUICK, c, g)
        assert lost(by_loss.cores, c, g) <= lost(plain.cores, c, g) * (1 + 1e-6) + 1e-9


def test_which_sides_are_whitened() -> None:
    matrix, half, both = TensorShape.matrix(12, 16), TensorShape((3, 4), (16,)), TensorShape((3, 4), (4, 4))
    assert FORMATS["low_rank"].whitens(matrix) == (True, True)
    assert FORMATS["cp"].whitens(half) == (False, True)
    assert FORMATS["tucker"].whitens(both) == (False, False)
    assert FORMATS["ttm"].whitens(TensorShape((12, 1), (1, 16))) == (True, True)
    assert documented_format().whitens(matrix) == (False, False)  # both mode indices lie in two cores
    assert FORMATS["monarch"].whitens(TensorShape((1, 12), (1, 16))) == (True, True)
    assert FORMATS["monarch"].whitens(TensorShape((12, 1), (1, 16))) == (False, True)  # blocks of one row: k lies in both cores


def test_hadamard_calibrated() -> None:
    """Whitened through one of the cores that share an index, its output error was 23.7 where the plain one is .64."""
    codec, shape = documented_format(), TensorShape.matrix(32, 48)
    weight, c = torch.randn(32, 48, generator=torch.Generator().manual_seed(0)), moment(48, 5, 1)
    plain, calibrated = (decompose(codec, weight, shape, (4,), QUICK, *moments) for moments in ((), (c,)))
    output = lambda found: float(weighted_square(weight.double() - codec.reconstruct(found.cores, shape), c))  # noqa: E731
    assert output(calibrated) < output(plain)
    assert calibrated.output_error < 1


def test_monarch_is_two_block_diagonals_and_a_permutation() -> None:
    """W = Pᵀ·blockdiag(L)·P·blockdiag(R) of Dao et al., for rank 1; and every block is the best of its rank."""
    codec, shape = Monarch(), TensorShape((3, 4), (2, 5))
    weight = torch.randn(12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, right = decompose(codec, weight, shape, 1).cores
    inner = torch.block_diag(*(right[j, :, 0] for j in range(2)))  # (j, k) × (j, n)
    order = [j * 3 + k for k in range(3) for j in range(2)]  # to (k, j)
    outer = torch.block_diag(*(left[k, :, :, 0] for k in range(3)))  # (k, i) × (k, j)
    torch.testing.assert_close(outer @ inner[order], codec.reconstruct((left, right), shape))
    for rank in (1, 2, 4):
        rebuilt = codec.reconstruct(decompose(codec, weight, shape, rank).cores, shape).reshape(3, 4, 2, 5)
        for k in range(3):
            for j in range(2):
                u, v = truncated_svd(weight.reshape(3, 4, 2, 5)[k, :, j], rank)
                torch.testing.assert_close(rebuilt[k, :, j], u @ v, rtol=1e-9, atol=1e-9)


def test_monarch_runs_as_batched_products() -> None:
    setting = TensorSetting("monarch", TensorShape((8, 8), (8, 8)), (2,), "contract")
    assert [step.gemm for step in setting.plan(32).steps] == [(8, 32, 16, 8), (8, 32, 8, 16)]
    assert setting.plan(32).macs == 32 * setting.parameters
    assert cost_model("simba-l").setting(setting, 32).edp > 0


@pytest.mark.parametrize("size", [(384, 384), (384, 1536), (7, 12)])
def test_monarchs_default_shape_is_even(size: tuple[int, int]) -> None:
    assert Monarch().default_shape(*size) == TensorShape(balanced_factors(size[0], 2), balanced_factors(size[1], 2))


def test_formats_are_imported_without_torch() -> None:
    code = "import sys, heat_hf.formats.planning, heat_hf.formats.setting; print({'torch', 'tensorly'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
