"""What a network will diverge by, of what its losses sum to: a line through networks that are made and measured.

Losses are to second order. Where a classifier is sure of its answers, or errors are large, outputs move by much more than
that, or less. So a few networks are made by cutting the dense weights at random losses, small to large, and run; the logarithms
of divergences lie near a line over those of the losses, and what lies off it says how far an expectation may be off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from heat_hf.encoders.coherence import typical_error
from heat_hf.evaluation.quality import Quality

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from heat_hf.encoders.statistics import Statistics

NETWORKS = 6
AROUND = 2.0  # factor by which they lose less than the least loss asked for, and more than the largest
SPREAD = 0.7  # of the logarithm of a matrix's own share of its network's loss
MOST = 0.9  # of all that a matrix does
LEAST = 1.5  # factor that bounds allow for at least
DEVIATIONS = 2.0  # by which bounds are off the line


@dataclass(frozen=True)
class Expectation:
    """log(divergence) = intercept + slope · log(loss), off by a factor of `within` at most, as a rule."""

    slope: float
    intercept: float
    within: float

    @classmethod
    def fitted(cls, losses: Sequence[float], divergences: Sequence[float]) -> Expectation:
        """The line through measured networks.

        Args:
            losses: of at least three networks, positive.
            divergences: measured, positive.
        """
        x, y = np.log(losses), np.log(divergences)
        slope, intercept = np.polyfit(x, y, 1)
        off = math.sqrt(float(((y - intercept - slope * x) ** 2).sum()) / (len(x) - 2))
        return cls(float(slope), float(intercept), max(LEAST, math.exp(DEVIATIONS * off)))

    def of(self, loss: float) -> float:
        """The divergence to expect; 0 where nothing is lost."""
        return math.exp(self.intercept + self.slope * math.log(loss)) if loss > 0 else 0.0


def measured_expectation(
    model: PreTrainedModel,
    linears: Mapping[str, nn.Linear],
    statistics: Statistics,
    quality: Quality,
    losses: Sequence[float],
    seed: int = 0,
) -> Expectation | None:
    """The line for a model's matrices; the model is as it was afterwards. None if outputs do not move, or not by a number.

    Far from the losses asked for, divergences lie on other lines: outputs cannot move by more than so much.

    Args:
        model: dense.
        linears: that are to be factorized, by name.
        statistics: with gradients.
        quality: of the rows that networks are measured on.
        losses: of the networks to say something of, positive.
        seed: of the random losses.
    """
    generator, pairs = np.random.default_rng(seed), []
    wholes = (typical_error(linear.weight, *statistics.moments(name), 1.0)[1] for name, linear in linears.items())  # type: ignore[arg-type]
    shares = np.geomspace(min(losses) / AROUND, max(losses) * AROUND, NETWORKS) / sum(wholes)
    for share in tqdm(shares, desc="Expecting", unit="network"):
        weights, lost = {}, 0.0
        for name, linear in linears.items():
            own = min(MOST, share * math.exp(generator.normal(0, SPREAD)))
            error, loss = typical_error(linear.weight, *statistics.moments(name), own)  # type: ignore[arg-type]
            weights[name], lost = linear.weight.detach() - error, lost + loss
        with _replaced(linears, weights):
            pairs.append((lost, quality.both(model)[1]))
    known = [pair for pair in pairs if all(math.isfinite(value) and value > 0 for value in pair)]
    return Expectation.fitted(*zip(*known, strict=True)) if len(known) > 2 else None


@contextmanager
def _replaced(linears: Mapping[str, nn.Linear], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Other weights for a while; the parameters themselves come back."""
    before = {name: linear.weight for name, linear in linears.items()}
    try:
        with torch.no_grad():
            for name, linear in linears.items():
                linear.weight = nn.Parameter(weights[name], requires_grad=False)
        yield
    finally:
        for name, linear in linears.items():
            linear.weight = before[name]
