"""Pivoted low rank: r rows of W′ kept as they are, the others as combinations of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from heat_hf.formats.base import Format, Rank
from heat_hf.formats.low_rank import LowRank
from heat_hf.formats.plan import Path
from heat_hf.formats.shape import TensorShape

if TYPE_CHECKING:
    from torch import Tensor


class Pivoted(LowRank):
    """W′ = P·[R; L·R] with R: r×N, L: (M−r)×r and a permutation P of the rows: any matrix of rank r, in r(M+N−r) elements.

    Of two factors' r(M+N) elements, r² are a choice of basis. Here the basis is r rows of W′ itself, its pivots, so that this
    part is an identity that is neither stored nor multiplied with. Pivots are those of a column-pivoted QR factorization,
    which keeps the entries of L small. Cores: L, R, and the place of every row of W′ among the rows of [R; L·R].

    Plans give the products alone; P is a copy.
    """

    name = "pivoted"
    path: ClassVar[Path] = "left-to-right"
    """x·Rᵀ is a part of the result: no other order gives it."""
    sliceable: ClassVar[bool] = False
    scalable: ClassVar[int] = 1

    @property
    def solved_as(self) -> Format:
        """Two factors of the same rank."""
        return LowRank()

    def max_rank(self, shape: TensorShape) -> Rank:
        """N, or M − 1: with all rows as pivots nothing is left to combine."""
        return (max(1, min(shape.rows - 1, shape.columns)),)

    def check_shape(self, shape: TensorShape) -> None:
        """As low rank; there are two rows at least."""
        if shape.order != 2 or shape.rows < 2:
            raise ValueError(f"pivoted takes the order-2 shape {shape.rows}:{shape.columns} with two rows or more, got {shape}")

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """(M−r, r) and (r, N)."""
        return (shape.rows - rank[0], rank[0]), (rank[0], shape.columns)

    def equation(self, shape: TensorShape) -> str:
        """x·Rᵀ first, then that times Lᵀ; the rows are those that are no pivots."""
        return "ab,db,cd->ac"

    def stored(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """L, R and the order of the rows (int32), of the product of two factors (M, r) and (r, N)."""
        import numpy as np
        import torch
        from scipy.linalg import qr, solve_triangular

        left, right = cores
        rows, rank = left.shape
        # The rows of L·R are those of L·Tᵀ in other coordinates, orthonormal ones, where Rᵀ = Q·T: far fewer columns.
        coordinates = (torch.linalg.qr(right.mT, mode="r")[1] @ left.mT).cpu().numpy()
        triangle, chosen = qr(coordinates, mode="r", pivoting=True)
        order = np.empty(rows, dtype=np.int32)
        order[chosen] = np.arange(rows, dtype=np.int32)
        # Where fewer rows span all of them, the diagonal ends there, and further pivots are in no combination.
        diagonal = np.abs(triangle.diagonal())
        span = int((diagonal > np.finfo(triangle.dtype).eps * rows * diagonal[0]).sum())
        combined = left.new_zeros(rows - rank, rank)
        if span:  # of a matrix of zeros nothing is to solve, which older versions of SciPy refuse
            solved = solve_triangular(triangle[:span, :span], triangle[:span, rank:])
            combined[:, :span] = torch.from_numpy(solved.T).to(combined)
        pivots = left[torch.from_numpy(chosen[:rank]).to(left.device)]
        return [combined, pivots @ right, torch.from_numpy(order).to(left.device)]

    def solved(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """Two factors, (M, r) and (r, N): the rows of the first that belong to pivots are those of an identity."""
        import torch

        left, right, order = cores
        return [torch.cat((torch.eye(left.shape[1]).to(left), left)).index_select(0, order), right]

    def reconstruct(self, cores: Sequence[Tensor], shape: TensorShape) -> Tensor:
        """The M×N matrix W′ that the cores stand for."""
        import torch

        left, right, order = cores
        return torch.cat((right, left @ right)).index_select(0, order)

    def truncate(self, cores: Sequence[Tensor], shape: TensorShape, rank: Rank) -> tuple[Tensor, ...]:
        """Refused: fewer pivots have other combinations.

        Raises:
            ValueError: always, but for the rank at hand.
        """
        if rank[0] != cores[1].shape[0]:
            raise ValueError(f"pivoted cores of rank {cores[1].shape[0]} hold no rank {rank[0]}: use low_rank to cut ranks")
        return tuple(cores)
