"""Singular values of unfoldings, from which the errors of all ranks follow at once, and the scales of cores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor


def matrix_losses(matrix: Tensor) -> Tensor:
    """Element r is ‖X − X_r‖_F² of the best rank-r approximation, from the smaller Gram matrix: exact to about 1e-15·‖X‖².

    Of a batch of matrices, for each.
    """
    gram = matrix @ matrix.mT if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT @ matrix
    return tails(torch.linalg.eigvalsh(gram).clamp_min(0).flip(-1))


def tails(spectrum: Tensor) -> Tensor:
    """Element r is what rank r loses: the sum of all squared singular values but the first r."""
    return torch.cat([spectrum.flip(-1).cumsum(-1).flip(-1), spectrum.new_zeros(*spectrum.shape[:-1], 1)], dim=-1)


def principal_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values, descending, and UᵀX: its first r rows are all that the best rank-r approximation keeps."""
    if matrix.shape[0] <= matrix.shape[1]:
        values, vectors = torch.linalg.eigh(matrix @ matrix.T)
        return values.clamp_min(0).flip(0), vectors.flip(1).T @ matrix
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    values = values.clamp_min(0).flip(0)
    return values, values.sqrt()[:, None] * vectors.flip(1).T


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-r approximation of M×N as (M, r) and (r, N), the singular values shared evenly, descending.

    Of a batch of matrices, for each.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root[..., None, :], root[..., :, None] * vh[..., :rank, :]


def train_losses(rest: Tensor, pairs: Sequence[int], ranks: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
    """What TT-SVD loses for each rank: the tail of the first cut, and, by orthogonality, what the rest then loses.

    Args:
        rest: first core's (r₀·m₁n₁) rows × the columns of all others.
        pairs: m_k·n_k of the others.
        ranks: sorted ranks, one entry for each cut.
    """
    if len(pairs) == 1:
        lost = matrix_losses(rest)
        return {rank: float(lost[min(rank[0], len(lost) - 1)]) for rank in ranks}
    spectrum, projected = principal_rows(rest)
    lost = tails(spectrum)
    losses: dict[tuple[int, ...], float] = {}
    for first, group in groupby(ranks, key=lambda rank: rank[0]):
        kept = projected[:first]
        later = train_losses(kept.reshape(len(kept) * pairs[0], -1), pairs[1:], [rank[1:] for rank in group])
        losses |= {(first, *rank): float(lost[min(first, len(lost) - 1)]) + value for rank, value in later.items()}
    return losses


def even_factors(left: Tensor, right: Tensor) -> list[Tensor]:
    """The same product of M×r and r×N, in factors that share its singular values, of equal root mean square.

    An optimizer's step then moves the product about as far in every direction that it has.
    """
    (first, outer), (second, inner) = torch.linalg.qr(left), torch.linalg.qr(right.mT)
    u, values, v = torch.linalg.svd(outer @ inner.mT)
    return balanced([first @ u * values.sqrt(), (second @ v.mT * values.sqrt()).mT])


def balanced(cores: Sequence[Tensor]) -> list[Tensor]:
    """Scale the cores to equal root mean square, keeping their product.

    None over- or underflows a short dtype, and an optimizer whose steps are alike for all entries, as Adam's are, changes all
    cores by the same share: with equal norms, the large entries of a small core make its steps too short and the small entries
    of a large core theirs too long.
    """
    sizes = [float(core.square().mean().sqrt()) for core in cores]
    if min(sizes) == 0.0:
        return list(cores)
    mean = math.exp(sum(map(math.log, sizes)) / len(sizes))
    return [core * (mean / size) for core, size in zip(cores, sizes, strict=True)]
