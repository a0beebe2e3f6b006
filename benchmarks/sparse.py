"""2:4 structured sparsity: of every four weights in a row two stay, which GPUs multiply in half the time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

KEPT, OF = 2, 4


def two_of_four(weight: Tensor, second_moment: Tensor | None = None) -> Tensor:
    """1 for the weights that stay: the largest, or those that move the layer's outputs most, |w|·√C_jj.

    Args:
        weight: W, M×N, N a multiple of 4.
        second_moment: C of the layer's inputs, N×N; None for magnitude alone.

    Returns:
        M×N, with two of four in every row.
    """
    scores = weight.detach().abs()
    if second_moment is not None:
        scores = scores * second_moment.diagonal().sqrt().to(scores)
    groups = scores.unflatten(1, (-1, OF))
    return torch.zeros_like(groups).scatter_(2, groups.topk(KEPT, 2).indices, 1.0).flatten(1)


def make_sparse(linears: Mapping[str, nn.Linear], second_moments: Mapping[str, Tensor] | None = None) -> None:
    """Mask linears in their places; masks stay as they are while the weights are trained, until `make_plain`."""
    for name, linear in linears.items():
        mask = two_of_four(linear.weight, None if second_moments is None else second_moments[name])
        prune.custom_from_mask(linear, "weight", mask)


def make_plain(linears: Mapping[str, nn.Linear]) -> None:
    """Linears without masks, whose weights are zero where these were; others stay as they are."""
    for linear in linears.values():
        if prune.is_pruned(linear):
            prune.remove(linear, "weight")
