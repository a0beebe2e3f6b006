"""Tiles of a matrix product whose extents divide the product's: a lattice, by the exponents of the primes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Tile = tuple[int, int, int]  # places of a tile's extents of M, N and K among the divisors
AXES = "MNK"


@lru_cache(maxsize=4096)
def prime_factors(number: int) -> tuple[tuple[int, int], ...]:
    """Prime factors with their exponents, the smallest exponents first: numpy is fastest when the last axis is the longest."""
    factors, divisor = [], 2
    while number > 1:
        exponent = 0
        while number % divisor == 0:
            number //= divisor
            exponent += 1
        if exponent:
            factors.append((divisor, exponent))
        divisor = divisor + 1 if divisor * divisor < number else max(divisor + 1, number)
    return tuple(sorted(factors, key=lambda factor: factor[1]))


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """Divisors in the order of their exponents: the last prime's grows fastest; the number itself comes last."""
    powers = [[prime**i for i in range(exponent + 1)] for prime, exponent in prime_factors(number)]
    return tuple(math.prod(combination) for combination in itertools.product(*powers))


@lru_cache(maxsize=4096)
def _exponents(number: int, divisor: int) -> tuple[int, ...]:
    """Exponents of a divisor, one for each prime of the number."""
    return tuple(dict(prime_factors(divisor)).get(prime, 0) for prime, _ in prime_factors(number))


@lru_cache(maxsize=65536)
def _inner(number: int, position: int) -> NDArray[np.intp]:
    """Places of the divisors of the divisor at a place."""
    extents = np.array(divisors(number))
    return np.flatnonzero(extents[position] % extents == 0)


class Lattice:
    """Arrays over it have shape (choices, divisors of M, divisors of N, divisors of K).

    Args:
        M, N, K: extents of the product.
    """

    def __init__(self, M: int, N: int, K: int) -> None:  # noqa: N803 - the field's own names
        self.full = {"M": M, "N": N, "K": K}
        self.extents = {dimension: np.array(divisors(extent), float) for dimension, extent in self.full.items()}
        self.shape = tuple(len(self.extents[dimension]) for dimension in AXES)
        self.end: Tile = (self.shape[0] - 1, self.shape[1] - 1, self.shape[2] - 1)
        self._axes: dict[str, range] = {}
        lengths: list[int] = []
        for dimension, extent in self.full.items():
            axes = [exponent + 1 for _, exponent in prime_factors(extent)]
            self._axes[dimension] = range(1 + len(lengths), 1 + len(lengths) + len(axes))
            lengths += axes
        self._lengths = tuple(lengths)

    def along(self, dimension: str, values: Array) -> Array:
        """Values of shape (choices, divisors of the dimension), shaped to broadcast over the lattice."""
        axis = AXES.index(dimension)
        return values.reshape(len(values), *(-1 if i == axis else 1 for i in range(3)))

    def grow(self, values: Array, dimensions: str) -> None:
        """In place: at every tile, the least value of the tiles from which loops over the given dimensions lead to it."""
        view = values.reshape(len(values), *self._lengths)
        for axis in (axis for dimension in dimensions for axis in self._axes[dimension]):
            lead: tuple[Any, ...] = (slice(None),) * axis
            for i in range(1, view.shape[axis]):
                np.minimum(view[(*lead, i)], view[(*lead, i - 1)], out=view[(*lead, i)])

    def shift(self, values: Array, factors: Sequence[tuple[int, int, int]]) -> Array:
        """Multiply the extents of the tiles by factors of M, N and K, for each choice its own."""
        result = np.full(values.shape, np.inf)
        source, target = (array.reshape(len(values), *self._lengths) for array in (values, result))
        groups: dict[tuple[int, int, int], list[int]] = {}
        for choice, triple in enumerate(factors):
            groups.setdefault(triple, []).append(choice)
        for triple, choices in groups.items():
            steps = [step for extent, f in zip(self.full.values(), triple, strict=True) for step in _exponents(extent, f)]
            moved: tuple[Any, ...] = tuple(slice(step, None) for step in steps)
            kept: tuple[Any, ...] = tuple(slice(0, length - step) for length, step in zip(self._lengths, steps, strict=True))
            chosen: Any = slice(None) if len(groups) == 1 else choices[0] if len(choices) == 1 else choices
            target[(chosen, *moved)] = source[(chosen, *kept)]
        return result

    def keep_complete(self, values: Array, open_dimensions: str) -> Array:
        """Only the tiles that cover all dimensions but the given ones."""
        for axis, dimension in enumerate(AXES):
            if dimension not in open_dimensions:
                cut = np.full(values.shape, np.inf)
                last: tuple[Any, ...] = (*(slice(None),) * (axis + 1), -1)
                cut[last] = values[last]
                values = cut
        return values

    def least_below(self, values: Array, tile: Tile, dimensions: str) -> Tile:
        """The tile with the least value from which loops over the given dimensions lead to `tile`; values without choices."""
        box = [
            _inner(self.full[dimension], position) if dimension in dimensions else np.array([position])
            for dimension, position in zip(AXES, tile, strict=True)
        ]
        part = values[np.ix_(*box)]
        m, n, k = (int(axis[i]) for axis, i in zip(box, np.unravel_index(int(part.argmin()), part.shape), strict=True))
        return m, n, k

    def inside(self, tile: Tile, factors: Sequence[int]) -> Tile:
        """The tile whose extents are smaller by the given factors."""
        m, n, k = (
            divisors(extent).index(int(self.extents[dimension][i]) // factor)
            for (dimension, extent), i, factor in zip(self.full.items(), tile, factors, strict=True)
        )
        return m, n, k

    def factors(self, inner: Tile, outer: Tile) -> dict[str, int]:
        """Extents of the loops between two tiles."""
        return {
            dimension: int(self.extents[dimension][outer[i]] // self.extents[dimension][inner[i]])
            for i, dimension in enumerate(AXES)
        }
