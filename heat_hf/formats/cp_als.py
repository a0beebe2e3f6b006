"""Alternating least squares for CP."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from heat_hf.formats.shape import TensorShape

RIDGE = 1e-10


class Components:
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
    def random(cls, matrix: Tensor, shape: TensorShape, rank: int, seed: int) -> Components:
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
        square = float((gram * _gram(self.columns)).sum())
        return math.sqrt(max(0.0, self.square - 2 * overlap + square) / self.square)

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
