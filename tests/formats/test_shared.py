"""One basis for three matrices: the best there is, what it costs, and layers that say what they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from heat_hf import FactorizedLinear, TensorSetting, TensorShape
from heat_hf.formats import FORMATS, PAIRED, SHARED, get_format
from heat_hf.formats.decomposition import decompose, share
from heat_hf.formats.projection import OUTPUT_DAMPING, damped, weighted_square
from heat_hf.formats.shared import MEMBERS, shared_cores, shared_losses

SHAPE = TensorShape.matrix(6, 9)


def moment(size: int, seed: int) -> Tensor:
    x = torch.randn(5 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.T @ x / len(x)


def problem(seed: int = 0, gradients: bool = True, rows: int = 6) -> tuple[list[Tensor], Tensor, list[Tensor | None]]:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(rows, 9, generator=generator, dtype=torch.float64) for _ in MEMBERS]
    return weights, moment(9, seed + 1), [moment(rows, seed + k) if gradients else None for k in (2, 3, 4)]


def lost(weights: list[Tensor], lefts: list[Tensor], right: Tensor, c: Tensor, gs: list[Tensor | None]) -> Tensor:
    """What is lost, computed from scratch; G as it is damped."""
    parts = [
        weighted_square(w - left @ right, c, None if g is None else damped(g, OUTPUT_DAMPING))
        for w, left, g in zip(weights, lefts, gs, strict=True)
    ]
    return torch.stack(parts).sum() / 2


@pytest.mark.parametrize("gradients", [True, False])
def test_losses_are_those_of_the_cores(gradients: bool) -> None:
    weights, c, gs = problem(gradients=gradients)
    losses = shared_losses(weights, c, gs)
    assert len(losses) == 10 and losses[9] == 0 and (losses.diff() <= 0).all()
    for rank in range(1, 9):
        lefts, right = shared_cores(weights, rank, c, gs)
        assert [left.shape for left in lefts] == [(6, rank)] * 3 and right.shape == (rank, 9)
        torch.testing.assert_close(lost(weights, lefts, right, c, gs), losses[rank], rtol=1e-4, atol=1e-6)


@given(seed=st.integers(0, 500), rank=st.integers(1, 5), gradients=st.booleans())
@settings(max_examples=15, deadline=None)
def test_no_other_basis_loses_less(seed: int, rank: int, gradients: bool) -> None:
    """From the cores themselves, and from others, descent by all entries at once finds nothing better."""
    weights, c, gs = problem(seed, gradients)
    lefts, right = shared_cores(weights, rank, c, gs)
    best = float(lost(weights, lefts, right, c, gs))
    generator = torch.Generator().manual_seed(seed + 9)
    for noise in (0.01, 1.0):
        cores = [core + noise * torch.randn(core.shape, generator=generator, dtype=core.dtype) for core in (*lefts, right)]
        variables = [core.requires_grad_() for core in cores]
        optimizer = torch.optim.LBFGS(variables, max_iter=200, line_search_fn="strong_wolfe")

        def closure(variables: list[Tensor] = variables, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = lost(weights, variables[:3], variables[3], c, gs)
            value.backward()
            return value

        optimizer.step(closure)
        with torch.no_grad():
            assert float(lost(weights, variables[:3], variables[3], c, gs)) >= best * (1 - 1e-4) - 1e-9


def test_singular_inputs_and_matrices_of_zeros() -> None:
    weights, _, gs = problem()
    x = torch.randn(4, 9, dtype=torch.float64)
    lefts, right = shared_cores(weights, 5, x.T @ x, gs)
    for weight, left in zip(weights, lefts, strict=True):
        torch.testing.assert_close(x @ right.T @ left.T, x @ weight.T, rtol=1e-3, atol=1e-3)
    for result in share([torch.zeros(6, 9)] * 3, 2, moment(9, 0), [None] * 3):
        assert result.relative_error == result.output_error == 0 and all(torch.isfinite(core).all() for core in result.cores)


def layers(rank: int = 4) -> tuple[list[nn.Linear], list[FactorizedLinear], Tensor]:
    torch.manual_seed(0)
    linears, x = [nn.Linear(9, 6) for _ in MEMBERS], torch.randn(50, 9)
    found = share([linear.weight for linear in linears], rank, x.double().T @ x.double() / 50, [None] * 3)
    made = [
        FactorizedLinear.from_linear(linear, TensorSetting(name, SHAPE, (rank,)), result)
        for linear, name, result in zip(linears, MEMBERS, found, strict=True)
    ]
    return linears, made, x


def test_layers() -> None:
    linears, (first, *others), x = layers()
    assert [name for name, _ in first.named_children()] == ["right", "left"] and first.right.bias is None
    basis = first.cores[1]
    inner = first.right(x)
    for linear, layer in zip(linears, (first, *others), strict=True):
        dense = layer.to_linear(None if layer is first else basis)
        torch.testing.assert_close(layer(inner), dense(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(dense.bias, linear.bias)
    torch.testing.assert_close(first(x), first(inner))  # both of its inputs and of their products with the basis
    for layer in others:
        assert [name for name, _ in layer.named_children()] == ["left"]
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(x)
        with pytest.raises(ValueError, match="on_basis has no basis of its own"):
            layer.reconstruct()
        with pytest.raises(ValueError, match="on_basis layer has one rank"):
            layer.set_rank(2)
    everything, whole, _ = layers(8)
    for dense, layer in zip(everything, whole, strict=True):
        with torch.no_grad():
            assert float((layer(whole[0].right(x)) - dense(x)).norm() / dense(x).norm()) < 0.35


def test_what_they_cost_and_store() -> None:
    first, *others = (TensorSetting(name, SHAPE, (4,)) for name in MEMBERS)
    assert first.parameters + sum(other.parameters for other in others) == 4 * (9 + 3 * 6)
    assert first.plan(10).macs == 10 * 4 * (9 + 6) and all(other.plan(10).macs == 10 * 4 * 6 for other in others)
    assert [step.gemm for other in others for step in other.plan(10).steps] == [(1, 10, 6, 4)] * 2
    assert [step.gemm for step in first.plan(10).steps] == [(1, 10, 4, 9), (1, 10, 6, 4)]
    assert TensorSetting.from_dict(first.to_dict()) == first


def test_what_is_refused() -> None:
    assert not set(SHARED) & (set(FORMATS) | set(PAIRED)) and set(MEMBERS) == set(SHARED)
    for name in SHARED:
        with pytest.raises(ValueError, match="from 1 to 8"):
            TensorSetting(name, SHAPE, (9,))
        with pytest.raises(ValueError, match=f"{name} takes the order-2 shape"):
            TensorSetting(name, TensorShape((2, 3), (9,)), (2,))
        with pytest.raises(ValueError, match="several matrices together"):
            decompose(get_format(name), torch.randn(6, 9), SHAPE, 3)
    with pytest.raises(ValueError, match="never executed by rebuilding"):
        TensorSetting("shared_basis", SHAPE, (3,), "reconstruct")
    with pytest.raises(ValueError, match="holds NaN or infinite values"):
        share([torch.full((6, 9), float("nan"))] * 3, 2, moment(9, 0), [None] * 3)
