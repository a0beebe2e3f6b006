"""Low rank: W ≈ L·R, the closed-form baseline every other format has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from heat_hf.formats.base import Format, Rank, Subscripts
from heat_hf.formats.shape import TensorShape
from heat_hf.formats.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor


class LowRank(Format):
    """W = L·R with L: M×r and R: r×N, by the truncated SVD (exact). r ≤ min(M, N)."""

    name = "low_rank"

    def check_shape(self, shape: TensorShape) -> None:
        """Low rank works on the matrix itself."""
        if shape.order != 2:
            raise ValueError(f"low_rank takes the order-2 shape {shape.rows}:{shape.columns}, got {shape}")

    def max_rank(self, shape: TensorShape) -> Rank:
        """min(M, N)."""
        return (min(shape.rows, shape.columns),)

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """(M, r) and (r, N)."""
        return (shape.rows, rank[0]), (rank[0], shape.columns)

    def subscripts(self, shape: TensorShape) -> Subscripts:
        """L_mr, R_rn."""
        return Subscripts(rows="c", columns="b", cores=("cd", "db"))

    def default_shape(self, rows: int, columns: int) -> TensorShape:
        """The matrix itself."""
        return TensorShape.matrix(rows, columns)

    def optimal(self, shape: TensorShape) -> bool:
        """Eckart and Young."""
        return True

    def factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> tuple[list[Tensor], int, bool]:
        """The truncated SVD."""
        from heat_hf.formats.spectra import truncated_svd

        return [*truncated_svd(tensor, rank[0])], 0, True

    def losses(self, matrix: Tensor, shape: TensorShape, ranks: Sequence[Rank], solver: Solver) -> list[float]:
        """The tails of the spectrum."""
        from heat_hf.formats.spectra import matrix_losses

        lost = matrix_losses(matrix)
        return [float(lost[rank[0]]) for rank in ranks]
