"""Second moments for tests, and what a matrix loses with some of its columns."""

from __future__ import annotations

import torch
from torch import Tensor

from heat_hf.formats.projection import weighted_square


def moment(size: int, seed: int) -> Tensor:
    x = torch.randn(5 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.T @ x / len(x)


def lost(weight: Tensor, c: Tensor, g: Tensor | None, kept: list[int]) -> float:
    """What is lost with the best fit of some neurons, computed from scratch."""
    restored = torch.zeros_like(weight)
    restored[:, kept] = weight @ c[:, kept] @ torch.linalg.inv(c[kept][:, kept])
    return float(weighted_square(weight - restored, c, g)) / 2
