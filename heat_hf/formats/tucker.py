"""Tucker: a core tensor with one factor matrix for each mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heat_hf.formats.base import Format, Rank, Subscripts, letters
from heat_hf.formats.shape import TensorShape, balanced_factors, fold_shorter_side
from heat_hf.formats.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor


class Tucker(Format):
    """X = G ×₁ U₁ ×₂ U₂ …, core G of extents (r₁, …, r_d) and factors U_k of extents (mode_k, r_k).

    The truncated HOSVD (exact at full rank, and the optimum at order 2), then HOOI sweeps by TensorLy.
    """

    name = "tucker"

    def max_rank(self, shape: TensorShape) -> Rank:
        """r_k ≤ min(mode_k, ∏ of the other modes), the rank of the mode-k unfolding."""
        size = math.prod(shape.modes)
        return tuple(min(extent, size // extent) for extent in shape.modes)

    def clip_rank(self, shape: TensorShape, rank: Rank) -> Rank:
        """No rank above the product of the others, the other side of the core's unfolding."""
        ranks = list(super().clip_rank(shape, rank))
        for mode in sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True):
            ranks[mode] = min(ranks[mode], math.prod(ranks) // ranks[mode])
        return tuple(ranks)

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """The core first, then a (mode, r) factor for each mode."""
        return (rank, *zip(shape.modes, rank, strict=True))

    def subscripts(self, shape: TensorShape) -> Subscripts:
        """The core carries all rank indices, each factor its mode and its rank."""
        modes = letters(shape.order)
        ranks = letters(shape.order, start=1 + shape.order)
        split = len(shape.out_modes)
        factors = (mode + rank for mode, rank in zip(modes, ranks, strict=True))
        return Subscripts(modes[:split], modes[split:], (ranks, *factors))

    def default_shape(self, rows: int, columns: int) -> TensorShape:
        """Order 3, the shorter side folded."""
        return fold_shorter_side(rows, columns)

    def manual_shape(self, rows: int, columns: int) -> TensorShape:
        """Three even modes on either side, ascending on one and descending on the other."""
        return TensorShape(balanced_factors(rows, 3), balanced_factors(columns, 3)[::-1])

    def optimal(self, shape: TensorShape) -> bool:
        """Of a matrix, the SVD."""
        return shape.order == 2

    def factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> tuple[list[Tensor], int, bool]:
        """HOSVD, then HOOI."""
        import tensorly as tl
        from tensorly.decomposition import tucker

        with tl.backend.backend_context("pytorch", local_threadsafe=True):
            (core, factors), errors = tucker(
                tensor,
                list(rank),
                init="svd",
                n_iter_max=solver.max_sweeps,
                tol=solver.tolerance,
                random_state=solver.seed,
                return_errors=True,
            )
        return [core, *factors], len(errors), len(errors) < solver.max_sweeps

    def losses(self, matrix: Tensor, shape: TensorShape, ranks: Sequence[Rank], solver: Solver) -> list[float]:
        """From the whole core of the HOSVD: its factors are orthonormal, so what a rank keeps is the corner's energy."""
        import torch

        from heat_hf.formats.spectra import principal_rows

        core = matrix.reshape(shape.modes)
        for mode in range(shape.order):
            unfolded = core.movedim(mode, 0)
            _, rotated = principal_rows(unfolded.flatten(1))
            core = rotated.reshape(len(rotated), *unfolded.shape[1:]).movedim(0, mode)
        whole, kept = matrix.square().sum(), core.square()
        for mode in range(shape.order):
            kept = kept.cumsum(mode)
        corners = tuple(torch.tensor(ranks, device=kept.device).T - 1)
        lost: list[float] = (whole - kept[corners]).tolist()
        return lost
