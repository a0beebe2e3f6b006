"""Monarch: two block-diagonal matrices with a permutation between them, each pair of blocks of rank r."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from heat_hf.formats.base import Format, Rank, Subscripts
from heat_hf.formats.shape import TensorShape, balanced_factors
from heat_hf.formats.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor


class Monarch(Format):
    """W((k,i),(j,n)) = Σ_r L(k,i,j,r)·R(j,k,r,n), rows as k blocks of i, columns as j blocks of n.

    R is block-diagonal over j, L over k; between them the axes of the blocks change places. So the mode indices j and k lie in
    both cores. Each of the k·j blocks of i×n is an independent matrix of rank r, so the truncated SVDs of all are the exact
    optimum. With r = 1 these are the Monarch matrices of Dao et al. (2022), with more block tensor trains of two cores.
    """

    name = "monarch"

    def check_shape(self, shape: TensorShape) -> None:
        """Two modes on either side."""
        if (len(shape.out_modes), len(shape.in_modes)) != (2, 2):
            raise ValueError(f"monarch takes two row modes and two column modes, blocks × extent of a block, got {shape}")

    def max_rank(self, shape: TensorShape) -> Rank:
        """min(i, n), the rank of a block."""
        return (min(shape.out_modes[1], shape.in_modes[1]),)

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """(k, i, j, r) and (j, k, r, n)."""
        (k, i), (j, n) = shape.out_modes, shape.in_modes
        return (k, i, j, rank[0]), (j, k, rank[0], n)

    def subscripts(self, shape: TensorShape) -> Subscripts:
        """Blocks k and j in both cores, extents i and n in one each."""
        return Subscripts(rows="bc", columns="de", cores=("bcdf", "dbfe"))

    def default_shape(self, rows: int, columns: int) -> TensorShape:
        """As many blocks as they are long, as far as the extents allow."""
        return TensorShape(balanced_factors(rows, 2), balanced_factors(columns, 2))

    def optimal(self, shape: TensorShape) -> bool:
        """Eckart and Young, block by block."""
        return True

    def factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> tuple[list[Tensor], int, bool]:
        """The truncated SVD of every block."""
        from heat_hf.formats.spectra import truncated_svd

        left, right = truncated_svd(_blocks(tensor), rank[0])  # k, j, i, r and k, j, r, n
        return [left.permute(0, 2, 1, 3), right.permute(1, 0, 2, 3)], 0, True

    def losses(self, matrix: Tensor, shape: TensorShape, ranks: Sequence[Rank], solver: Solver) -> list[float]:
        """The tails of all blocks' spectra."""
        from heat_hf.formats.spectra import matrix_losses

        lost = matrix_losses(_blocks(matrix.reshape(shape.modes))).sum((0, 1))
        return [float(lost[rank[0]]) for rank in ranks]


def _blocks(tensor: Tensor) -> Tensor:
    """The matrix's blocks, of extents (k, j, i, n)."""
    return tensor.permute(0, 2, 1, 3)
