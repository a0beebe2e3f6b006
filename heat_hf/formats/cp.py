"""CP (CANDECOMP/PARAFAC): a sum of r rank-one tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from heat_hf.formats.base import Format, Rank, Subscripts, letters, truncated_svd
from heat_hf.formats.shape import TensorShape, fold_shorter_side
from heat_hf.formats.solver import Solver
from heat_hf.formats.spectra import matrix_losses

RIDGE = 1e-10
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

    def _factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> tuple[list[Tensor], int, bool]:
        if shape.order == 2:  # ALS converges to this, slowly
            left, right = truncated_svd(tensor, rank[0])
            return [left, right.T], 0, True
        model = _Components.random(tensor.reshape(shape.rows, shape.columns), shape, rank[0], solver.seed)
        lost = [model.sweep() for _ in range(min(2, solver.max_sweeps))]
        while len(lost) < solver.max_sweeps and abs(lost[-2] - lost[-1]) >= solver.tolerance:
            lost.append(model.sweep())
        return model.sorted(), len(lost), len(lost) < solver.max_sweeps

    def _lost(self, matrix: Tensor, shape: TensorShape, ranks: Sequence[Rank], solver: Solver) -> list[float]:
        """Upwards through the ranks, each started from the components of the one before and new random ones, in float32."""
        whole = float(matrix.square().sum())
        if shape.order == 2:
            lost = matrix_losses(matrix)
            return [float(lost[rank[0]]) for rank in ranks]
        model = _Components.random(matrix.float(), shape, 0, solver.seed)
        errors, last = {0: 1.0}, 0
        for (rank,) in sorted(set(ranks)):
            model.grow(rank)
            reached = min(model.sweep() for _ in range(LADDER_SWEEPS if rank >= 1.2 * last else 1))
            errors[rank] = min(reached, errors[last])  # more components never need to lose more
            last = rank
        return [errors[rank[0]] ** 2 * whole for rank in ranks]


class _Components:
    """r rank-one components of a folded matrix, improved by alternating least squares.

    Row factors and column factors are kept apart: as their Khatri-Rao products P (M×r) and Q (N×r), W ≈ P Qᵀ. A sweep then
    takes two products with W, W·Q for all row factors and Wᵀ·P for all column factors, instead of one for each mode.
    """

    def __init__(self, matrix: Tensor, rows: list[Tensor], columns: list[Tensor], generator: torch.Generator) -> None:
        self.scale = matrix.square().mean().sqrt()
        self.matrix = matrix / self.scale
        self.square = float(self.matrix.double().square().sum())
        self.rows, self.columns = rows, columns
        self.generator = generator

    @classmethod
    def random(cls, matrix: Tensor, shape: TensorShape, rank: int, seed: int) -> _Components:
        """Gaussian factors: an SVD start has no more than `mode` columns to offer; where r exceeds a mode, this ends lower."""
        generator = torch.Generator().manual_seed(seed)
        rows, columns = (
            [_gaussian(matrix, extent, rank, generator) for extent in modes] for modes in (shape.out_modes, shape.in_modes)
        )
        return cls(matrix, rows, columns, generator)

    def grow(self, rank: int) -> None:
        """Add random components, of the mean norm of those there are."""
        present = self.rows[0].shape[1]
        factors = self.rows + self.columns
        norms = torch.stack([factor.norm(dim=0) for factor in factors]).clamp_min(1e-30)
        even = norms.log().mean(0).exp()
        size = float(even.mean()) if present else 1.0
        grown = []
        for factor, norm in zip(factors, norms, strict=True):
            new = _gaussian(factor, len(factor), rank - present, self.generator)
            grown.append(torch.cat([factor * (even / norm), new * (size / len(factor) ** 0.5)], dim=1))
        self.rows, self.columns = grown[: len(self.rows)], grown[len(self.rows) :]

    def sweep(self) -> float:
        """Improve every factor once; the relative error after it."""
        _improve(self.rows, self.matrix @ _khatri_rao(self.columns), _gram(self.columns))
        target, gram = self.matrix.T @ _khatri_rao(self.rows), _gram(self.rows)
        _improve(self.columns, target, gram)
        overlap = float((target * _khatri_rao(self.columns)).double().sum())
        own = float((gram * _gram(self.columns)).sum())
        return math.sqrt(max(0.0, self.square - 2 * overlap + own) / self.square)

    def sorted(self) -> list[Tensor]:
        """Factors of W, components in the order of their norm, the largest first."""
        factors = self.rows + self.columns
        norms = torch.stack([factor.norm(dim=0) for factor in factors])
        weights = norms.prod(0) * self.scale
        order = torch.argsort(weights, descending=True, stable=True)
        root = weights[order] ** (1 / len(factors))
        safe = norms.clamp_min(torch.finfo(norms.dtype).tiny)
        return [(factor / norm)[:, order] * root for factor, norm in zip(factors, safe, strict=True)]


def _gaussian(like: Tensor, extent: int, rank: int, generator: torch.Generator) -> Tensor:
    return torch.randn(extent, rank, dtype=like.dtype, generator=generator).to(like.device)


def _khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Column-wise Kronecker product, ∏ extents × r."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None] * factor).flatten(0, 1)
    return product


def _gram(factors: Sequence[Tensor]) -> Tensor:
    """Gram matrix of the Khatri-Rao product, r×r: the product of the factors' own."""
    return torch.stack([(factor.T @ factor).double() for factor in factors]).prod(0)


def _improve(factors: list[Tensor], target: Tensor, gram: Tensor) -> None:
    """Least squares for one factor of a side after the other, in place.

    Args:
        factors: (mode, r) each.
        target: W times the other side's Khatri-Rao product, ∏ modes × r.
        gram: Gram matrix of the other side, r×r.
    """
    for k, factor in enumerate(factors):
        rest = factors[:k] + factors[k + 1 :]
        before, after = (math.prod(map(len, part)) for part in (factors[:k], factors[k + 1 :]))
        folded = target.reshape(before, len(factor), after, -1)
        if rest:
            folded = folded * _khatri_rao(rest).reshape(before, 1, after, -1)
        normal = gram * _gram(rest) if rest else gram.clone()
        # Components that become parallel or vanish make the normal equations singular; this keeps them solvable.
        normal.diagonal().add_(RIDGE * normal.diagonal().mean())
        factors[k] = torch.linalg.solve(normal, folded.sum((0, 2)).T.double()).T.to(factor.dtype)
