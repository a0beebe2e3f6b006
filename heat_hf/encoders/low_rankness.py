"""How close to low rank each of a model's matrices is (paper, Fig. 2c)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from heat_hf.formats.size import MatrixSize
from heat_hf.formats.spectra import matrix_losses


@dataclass(frozen=True)
class LowRankness:
    """Of one matrix.

    Attributes:
        size: its extents.
        errors: ‖W − W_r‖ / ‖W‖ of the best approximation of every rank r, from 0 on.
    """

    size: MatrixSize
    errors: tuple[float, ...]

    def share(self, rank: int) -> float:
        """Parameters of a rank, as a fraction of the matrix's."""
        return rank * sum(self.size) / self.size.elements

    def error_at(self, share: float) -> float:
        """Of the largest rank that takes no more than this fraction of the matrix's parameters."""
        return self.errors[min(int(share * self.size.elements / sum(self.size)), len(self.errors) - 1)]

    def rank_for(self, error: float) -> int:
        """The smallest rank with an error no larger."""
        return next(rank for rank, own in enumerate(self.errors) if own <= error or rank == len(self.errors) - 1)


@torch.no_grad()
def low_rankness(linears: Mapping[str, nn.Linear]) -> dict[str, LowRankness]:
    """Of every matrix, by name, from its singular values."""
    return {name: LowRankness(MatrixSize.of(linear), _errors(linear.weight)) for name, linear in linears.items()}


def _errors(weight: torch.Tensor) -> tuple[float, ...]:
    losses = matrix_losses(weight.double())
    return tuple((losses / losses[0].clamp_min(torch.finfo(losses.dtype).tiny)).clamp_min(0).sqrt().tolist())
