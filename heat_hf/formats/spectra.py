"""Singular values of unfoldings, from which the errors of all ranks follow at once."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_losses(matrix: Tensor) -> Tensor:
    """Element r is ‖X − X_r‖_F² of the best rank-r approximation, from the smaller Gram matrix: exact to about 1e-15·‖X‖²."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return tails(torch.linalg.eigvalsh(gram).clamp_min(0).flip(0))


def tails(spectrum: Tensor) -> Tensor:
    """Element r is what rank r loses: the sum of all squared singular values but the first r."""
    return torch.cat([spectrum.flip(0).cumsum(0).flip(0), spectrum.new_zeros(1)])


def principal_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values, descending, and UᵀX: its first r rows are all that the best rank-r approximation keeps."""
    if matrix.shape[0] <= matrix.shape[1]:
        values, vectors = torch.linalg.eigh(matrix @ matrix.T)
        return values.clamp_min(0).flip(0), vectors.flip(1).T @ matrix
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    values = values.clamp_min(0).flip(0)
    return values, values.sqrt()[:, None] * vectors.flip(1).T
