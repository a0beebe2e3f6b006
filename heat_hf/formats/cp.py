"""CP (CANDECOMP/PARAFAC): a sum of r rank-one tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heat_hf.formats.base import Format, Rank, Subscripts, letters
from heat_hf.formats.shape import TensorShape, fold_shorter_side
from heat_hf.formats.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor

LADDER_SWEEPS = 4  # after a step to a rank that is larger by a fifth or more; one after a smaller step


class CP(Format):
    """X = Σ_r a_r ∘ b_r ∘ c_r ∘ …, one factor of extents (mode, r) for each mode; component weights are absorbed.

    Order 2 is the SVD (exact). Above, alternating least squares from a random start. Components are sorted by
    norm, so that the first r of them are the best to keep.
    """

    name = "cp"
    iterative = True

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

    def optimal(self, shape: TensorShape) -> bool:
        """Of a matrix, the SVD."""
        return shape.order == 2

    def factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> tuple[list[Tensor], int, bool]:
        """ALS from a random start; the SVD for matrices."""
        from heat_hf.formats.cp_als import Components
        from heat_hf.formats.spectra import truncated_svd

        if shape.order == 2:  # ALS converges to this, slowly
            left, right = truncated_svd(tensor, rank[0])
            return [left, right.T], 0, True
        model = Components.random(tensor.reshape(shape.rows, shape.columns), shape, rank[0], solver.seed)
        lost = [model.sweep() for _ in range(min(2, solver.max_sweeps))]
        while len(lost) < solver.max_sweeps and abs(lost[-2] - lost[-1]) >= solver.tolerance:
            lost.append(model.sweep())
        return model.sorted(), len(lost), len(lost) < solver.max_sweeps

    def losses(self, matrix: Tensor, shape: TensorShape, ranks: Sequence[Rank], solver: Solver) -> list[float]:
        """Upwards through the ranks, each started from the components of the one before and new random ones, in float32."""
        from heat_hf.formats.cp_als import Components
        from heat_hf.formats.spectra import matrix_losses

        whole = float(matrix.square().sum())
        if shape.order == 2:
            lost = matrix_losses(matrix)
            return [float(lost[rank[0]]) for rank in ranks]
        model = Components.random(matrix.float(), shape, 0, solver.seed)
        errors, last = {0: 1.0}, 0
        for (rank,) in sorted(set(ranks)):
            model.grow(rank)
            reached = min(model.sweep() for _ in range(LADDER_SWEEPS if rank >= 1.2 * last else 1))
            errors[rank] = min(reached, errors[last])  # more components never need to lose more
            last = rank
        return [errors[rank[0]] ** 2 * whole for rank in ranks]
