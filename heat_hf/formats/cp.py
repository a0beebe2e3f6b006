"""CP (CANDECOMP/PARAFAC): a sum of r rank-one tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from heat_hf.formats.base import Format, Rank, Subscripts, letters, truncated_svd
from heat_hf.formats.shape import TensorShape, fold_shorter_side
from heat_hf.formats.solver import Solver


class CP(Format):
    """X = Σ_r a_r ∘ b_r ∘ c_r ∘ …, one factor of extents (mode, r) for each mode; component weights are absorbed.

    Order 2 is the SVD (exact). Above, alternating least squares by TensorLy from an SVD start. Components are sorted by
    norm, so that the first r of them are the best to keep.
    """

    name = "cp"

    def max_rank(self, shape: TensorShape) -> Rank:
        """∏ of all extents but the largest: every tensor has a CP decomposition of that rank."""
        return (math.prod(shape.modes) // max(shape.modes),)

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """(mode, r) for each mode."""
        return tuple((extent, rank[0]) for extent in shape.modes)

    def subscripts(self, shape: TensorShape) -> Subscripts:
        """Every factor carries its mode and the one rank index."""
        modes = letters(shape.order)
        rank = letters(1, start=1 + shape.order)
        split = len(shape.out_modes)
        return Subscripts(modes[:split], modes[split:], tuple(mode + rank for mode in modes))

    def default_shape(self, rows: int, columns: int) -> TensorShape:
        """Order 3, the shorter side folded."""
        return fold_shorter_side(rows, columns)

    def _factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> tuple[list[Tensor], int, bool]:
        if shape.order == 2:
            left, right = truncated_svd(tensor, rank[0])
            return [left, right.T], 0, True
        weights, factors, errors = _alternating_least_squares(tensor, rank[0], solver)
        order = torch.argsort(weights, descending=True, stable=True)
        root = weights[order] ** (1 / shape.order)
        converged = len(errors) < solver.max_sweeps
        return [factor[:, order] * root for factor in factors], len(errors), converged


def _alternating_least_squares(tensor: Tensor, rank: int, solver: Solver) -> tuple[Tensor, list[Tensor], list[float]]:
    """TensorLy's ALS from a random start: non-negative component norms, unit-norm factors, error after each sweep."""
    import tensorly as tl
    from tensorly.cp_tensor import CPTensor, cp_normalize
    from tensorly.decomposition import parafac

    # An SVD start has no more than `mode` columns to offer; where r exceeds a mode, a Gaussian start ends lower.
    generator = torch.Generator().manual_seed(solver.seed)
    start = [torch.randn(extent, rank, dtype=tensor.dtype, generator=generator).to(tensor) for extent in tensor.shape]
    scale = tensor.square().mean().sqrt()
    with (
        tl.backend.backend_context("pytorch", local_threadsafe=True),
        # The einsum backend contracts the largest mode first and never forms the Khatri-Rao product: 5 times as fast.
        tl.tenalg.backend_context("einsum", local_threadsafe=True),
    ):
        decomposed, errors = parafac(
            tensor / scale,
            rank,
            init=CPTensor((None, start)),
            n_iter_max=solver.max_sweeps,
            tol=solver.tolerance,
            # Components that become parallel or vanish make the normal equations singular; this keeps them solvable.
            l2_reg=1e-10,
            return_errors=True,
        )
        weights, factors = cp_normalize(decomposed)
    return weights * scale, list(factors), [float(error) for error in errors]
