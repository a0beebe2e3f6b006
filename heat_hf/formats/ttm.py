"""TTM: the tensor-train matrix, a chain of cores that each carry one row mode and one column mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heat_hf.formats.base import Format, Rank, Subscripts, letters
from heat_hf.formats.shape import TensorShape, balanced_factors
from heat_hf.formats.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor


class TTM(Format):
    """X((i₁,j₁),…,(i_d,j_d)) = G₁(i₁,j₁)·…·G_d(i_d,j_d) (paper, Eq. 1), with r₀ = r_d = 1 left out of the rank.

    Core k has extents (r_{k−1}, m_k, n_k, r_k), without the unit axes r₀ and r_d. By TT-SVD: exact at full rank.
    """

    name = "ttm"
    paired_modes = True

    def check_shape(self, shape: TensorShape) -> None:
        """Every core takes one row mode and one column mode; extents of 1 pad the shorter side."""
        if len(shape.out_modes) != len(shape.in_modes):
            raise ValueError(f"ttm needs as many row modes as column modes (extents of 1 are allowed), got {shape}")

    def max_rank(self, shape: TensorShape) -> Rank:
        """r_k ≤ min(∏_{i≤k} mᵢnᵢ, ∏_{i>k} mᵢnᵢ), the rank of the k-th unfolding."""
        pairs = [m * n for m, n in zip(shape.out_modes, shape.in_modes, strict=True)]
        return tuple(min(math.prod(pairs[:k]), math.prod(pairs[k:])) for k in range(1, len(pairs)))

    def clip_rank(self, shape: TensorShape, rank: Rank) -> Rank:
        """r_k ≤ r_{k−1}·m_k·n_k and r_k ≤ m_{k+1}·n_{k+1}·r_{k+1}: no core wider than what its neighbours fill."""
        pairs = [m * n for m, n in zip(shape.out_modes, shape.in_modes, strict=True)]
        ranks = [1, *super().clip_rank(shape, rank), 1]
        for k in range(1, len(pairs)):
            ranks[k] = min(ranks[k], ranks[k - 1] * pairs[k - 1])
        for k in range(len(pairs) - 1, 0, -1):
            ranks[k] = min(ranks[k], ranks[k + 1] * pairs[k])
        return tuple(ranks[1:-1])

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """(r_{k−1}, m_k, n_k, r_k) for each pair of modes, the outer ranks left out."""
        pairs = zip(shape.out_modes, shape.in_modes, strict=True)
        return tuple((*rank[max(k - 1, 0) : k], *pair, *rank[k : k + 1]) for k, pair in enumerate(pairs))

    def subscripts(self, shape: TensorShape) -> Subscripts:
        """Neighbouring cores share a rank index."""
        count = len(shape.out_modes)
        rows, columns = letters(count), letters(count, start=1 + count)
        ranks = letters(count - 1, start=1 + 2 * count)
        cores = (ranks[max(k - 1, 0) : k] + rows[k] + columns[k] + ranks[k : k + 1] for k in range(count))
        return Subscripts(rows, columns, tuple(cores))

    def default_shape(self, rows: int, columns: int) -> TensorShape:
        """Two pairs of modes, as even as the extents allow, the smaller row mode with the larger column mode."""
        return TensorShape(balanced_factors(rows, 2), balanced_factors(columns, 2)[::-1])

    def manual_shape(self, rows: int, columns: int) -> TensorShape:
        """Three even modes on either side, ascending on one and descending on the other."""
        return TensorShape(balanced_factors(rows, 3), balanced_factors(columns, 3)[::-1])

    def optimal(self, shape: TensorShape) -> bool:
        """Of one cut, the SVD; of several, TT-SVD is near the optimum."""
        return len(shape.out_modes) <= 2

    def factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> tuple[list[Tensor], int, bool]:
        """TT-SVD."""
        import tensorly as tl
        from tensorly.decomposition import tensor_train_matrix

        with tl.backend.backend_context("pytorch", local_threadsafe=True):
            train = tensor_train_matrix(tensor, [1, *rank, 1])
        cores = [core.reshape(extents) for core, extents in zip(train, self.core_shapes(shape, rank), strict=True)]
        return cores, 0, True

    def losses(self, matrix: Tensor, shape: TensorShape, ranks: Sequence[Rank], solver: Solver) -> list[float]:
        """What each cut loses, and then the rest."""
        from heat_hf.formats.spectra import train_losses

        count = len(shape.out_modes)
        if count == 1:
            return [0.0] * len(ranks)
        order = [mode for k in range(count) for mode in (k, count + k)]
        paired = matrix.reshape(shape.modes).permute(order)
        pairs = [m * n for m, n in zip(shape.out_modes, shape.in_modes, strict=True)]
        lost = train_losses(paired.reshape(pairs[0], -1), pairs[1:], sorted(set(ranks)))
        return [lost[rank] for rank in ranks]
