"""Which rows of the calibration data refinement learns from, and which it is judged by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heat_hf.encoders.batches import Batch

HELD_OUT = 8  # one batch of so many is learned from by no block, and tells whether a block came closer
MOST_TOKENS = 2**18  # whose hidden states are held, twice: 1.6 GB with 768 of them in float32
STEP_TOKENS = 1024  # about so many, padding included, are learned from in a step; more make steps longer, hardly better


def held_out(count: int) -> list[int]:
    """Of so many batches, the numbers of those that nothing is learned from: one of eight."""
    return [number for number in range(count) if number % HELD_OUT == min(HELD_OUT // 2, count - 1)]


def few_batches(batches: Sequence[Batch]) -> tuple[list[Batch], list[int]]:
    """So many of the batches, evenly spread, that their hidden states can be held: they are often sorted by length.

    Returns:
        The batches, and the places among them of those that are held out; these are held out of all batches, too.
    """
    # Padding is held, too.
    whole = sum(next(iter(batch.values())).shape[:2].numel() for batch in batches)
    share = min(1.0, MOST_TOKENS / max(1, whole))
    out = held_out(len(batches))
    learned = [number for number in range(len(batches)) if number not in out]
    chosen = sorted([*_spread(learned, share), *_spread(out, share)])
    return [batches[number] for number in chosen], [place for place, number in enumerate(chosen) if number in out]


def _spread(numbers: Sequence[int], share: float) -> list[int]:
    """A share of some numbers, at least one of them, evenly spread."""
    count = min(len(numbers), max(1, int(len(numbers) * share)))
    return [numbers[(2 * i + 1) * len(numbers) // (2 * count)] for i in range(count)]


def some_rows(batch: Batch, generator: torch.Generator) -> Tensor:
    """Places of rows of about `STEP_TOKENS` tokens together, padding included; at least one."""
    rows, length = next(iter(batch.values())).shape[:2]
    count = max(1, STEP_TOKENS // length)
    return torch.arange(rows) if count >= rows else torch.randperm(rows, generator=generator)[:count]
