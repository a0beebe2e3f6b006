"""Word embeddings of low rank: every token has r numbers, and one matrix, the same for all, makes an embedding of them.

A table of embeddings is a linear layer whose inputs are tokens, one at a time. Their second moment is diagonal, how often each
token comes; so the projection of `heat_hf.formats.projection` has a closed form however many tokens there are, by
eigenvectors of a matrix as wide as an embedding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heat_hf.formats.projection import OUTPUT_DAMPING, square_roots


class FactorizedEmbedding(nn.Module):
    """In the place of an `nn.Embedding`: E = A·Bᵀ, with A of tokens × r and B of width × r.

    Attributes:
        low: A, an `nn.Embedding`.
        up: B, an `nn.Linear` without a bias.
    """

    def __init__(self, dense: nn.Embedding, rank: int, device: torch.device | str | None = None) -> None:
        """Of the extents and dtype of a dense one; what it holds is up to the caller.

        Args:
            dense: the embeddings before.
            rank: r.
            device: default: that of `dense`.
        """
        super().__init__()
        how: dict[str, Any] = {"device": device or dense.weight.device, "dtype": dense.weight.dtype}
        self.low = nn.Embedding(dense.num_embeddings, rank, dense.padding_idx, **how)
        self.up = nn.Linear(rank, dense.embedding_dim, bias=False, **how)

    @property
    def rank(self) -> int:
        """R."""
        return self.low.embedding_dim

    @property
    def num_embeddings(self) -> int:
        """Tokens."""
        return self.low.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Width of an embedding."""
        return self.up.out_features

    @property
    def padding_idx(self) -> int | None:
        """The token of padding, whose numbers are not trained."""
        return self.low.padding_idx

    @property
    def weight(self) -> Tensor:
        """E, computed at every call; to read, not to write to."""
        table: Tensor = self.up(self.low.weight)
        return table

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of tokens."""
        embeddings: Tensor = self.up(self.low(ids))
        return embeddings

    def to_dense(self) -> nn.Embedding:
        """The `nn.Embedding` that answers the same."""
        with torch.no_grad():
            table = self.weight
        return nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, _weight=table)


class Projected(NamedTuple):
    """Embeddings of low rank.

    Attributes:
        low: A.
        up: B.
        error: ‖D^{1/2}(E − ABᵀ)G^{1/2}‖_F / ‖D^{1/2}E G^{1/2}‖_F.
    """

    low: Tensor
    up: Tensor
    error: float


def project_embeddings(weight: Tensor, counts: Tensor, output_moment: Tensor | None, rank: int) -> Projected:
    """A and B that minimise ‖D^{1/2}(E − ABᵀ)G^{1/2}‖_F.

    Args:
        weight: E, tokens × width.
        counts: the diagonal of D, how often each token comes; none of them 0, else nothing would be known of its A.
        output_moment: G, width × width; None for the identity.
        rank: r, at most the width.
    """
    table, often = weight.detach().double(), counts.double()
    width = table.shape[1]
    root, inverse = (torch.eye(width, dtype=torch.float64),) * 2
    if output_moment is not None:
        root, inverse = square_roots(output_moment.double(), OUTPUT_DAMPING)
    weighted = table.T @ (often[:, None] * table)
    values, vectors = torch.linalg.eigh(root @ weighted @ root)
    kept = vectors[:, -rank:]
    # E·root·kept has columns of very different length, and B rows: both get half of it, for what trains them.
    scale = values[-rank:].clamp_min(values.amax() * torch.finfo(torch.float64).eps).pow(0.25) / often.sum().pow(0.25)
    low, up = table @ (root @ kept / scale), inverse @ (kept * scale)
    lost, whole = values[:-rank].clamp_min(0).sum(), values.clamp_min(0).sum()
    return Projected(low.to(weight.dtype), up.to(weight.dtype), float((lost / whole.clamp_min(1e-300)).sqrt()))
