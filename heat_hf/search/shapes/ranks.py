"""Ranks to try for a shape: plain ones, and those that fill the accelerator (paper, Fig. 7)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from heat_hf.formats import Format, Rank, TensorShape

STEP = 1.25  # between plain ranks
MOST_VECTORS = 4096  # rank vectors of one shape whose errors are looked up
LEAST_SHARE, LARGEST_SHARE = 0.01, 0.95  # of the dense matrix's parameters


def is_sweet(rank: int, unit: int) -> bool:
    """Whether a rank fills copies of the hardware: a multiple of their number, or a divisor of it."""
    return rank % unit == 0 or unit % rank == 0


def rank_options(bound: int, units: Sequence[int], step: float = STEP) -> list[int]:
    """Ranks from 1 to a bound, `step` times apart, and the multiples of the units on both sides of each."""
    plain = {bound}
    rank = 1
    while rank < bound:
        plain.add(rank)
        rank = max(rank + 1, round(rank * step))
    sweet = {multiple * unit for rank in plain for unit in units for multiple in (rank // unit, -(-rank // unit))}
    return sorted(rank for rank in plain | sweet if 1 <= rank <= bound)


def rank_vectors(codec: Format, shape: TensorShape, units: Sequence[int]) -> list[Rank]:
    """Usable ranks with fewer parameters than the matrix, in lexical order.

    No rank is above M·N/(M+N): from there even plain low rank takes as many multiplications as the matrix, and what multiplies
    fewer, as pivots do, is slower than the matrix on CPUs. Where there would be more than a few thousand, the steps between
    ranks become longer.
    """
    size = shape.rows * shape.columns
    most = max(1, size // (shape.rows + shape.columns))
    step = STEP
    while True:
        options = [rank_options(min(bound, most), units, step) for bound in codec.max_rank(shape)]
        if math.prod(map(len, options)) <= MOST_VECTORS or step > size:
            break
        step *= STEP
    return [
        rank
        for rank in itertools.product(*options)
        if codec.parameters(shape, rank) <= LARGEST_SHARE * size and codec.clip_rank(shape, rank) == rank
    ]


def choose_ranks(
    codec: Format,
    shape: TensorShape,
    units: Sequence[int],
    budgets: int,
    errors: Callable[[Sequence[Rank]], Sequence[float]],
) -> list[Rank]:
    """The rank that loses least within each of a ladder of parameter budgets, of all ranks and of the multiples of each unit.

    Args:
        codec: the format.
        shape: the tensorization shape.
        units: see `CostModel`.
        budgets: how many budgets there are, evenly spaced in the logarithm.
        errors: the errors of many ranks; not asked where there is a single rank, whose error only falls.

    Returns:
        Ranks in the order of their parameters; empty if even the smallest is no smaller than the matrix.
    """
    vectors = rank_vectors(codec, shape, units)
    if not vectors:
        return []
    sizes = {rank: codec.parameters(shape, rank) for rank in vectors}
    single = len(vectors[0]) == 1
    lost = dict(zip(vectors, ([-rank[0] for rank in vectors] if single else errors(vectors)), strict=True))
    bounds = codec.max_rank(shape)
    groups = [vectors]
    groups += [
        [r for r in vectors if all(v == b or is_sweet(v, unit) for v, b in zip(r, bounds, strict=True))] for unit in units
    ]
    dense = shape.rows * shape.columns
    least, largest = max(LEAST_SHARE * dense, min(sizes.values())), LARGEST_SHARE * dense
    ladder = [least * (largest / least) ** (i / max(1, budgets - 1)) for i in range(budgets)]
    chosen = {
        min(within, key=lambda rank: (lost[rank], sizes[rank], rank))
        for budget in ladder
        for group in groups
        if (within := [rank for rank in group if sizes[rank] <= budget])
    }
    return sorted(chosen, key=lambda rank: (sizes[rank], rank))
