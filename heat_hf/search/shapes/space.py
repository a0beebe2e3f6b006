"""Tensorization shapes to try for a matrix (paper, section 2.2.1, Fig. 7, top).

Rows and columns are written as products, uniform ones first, because those have the highest entropy; the axes are permuted;
what is degenerate, the same tensor again, or no smaller than the matrix is left out, and counted.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from heat_hf.formats import Format, TensorShape, get_format
from heat_hf.hardware.lattice import divisors, prime_factors

LARGEST_ORDER = 4  # of the default orders


@dataclass(frozen=True)
class ShapeSpace:
    """Candidate shapes of one matrix size in one format.

    Attributes:
        shapes: the candidates, in a fixed order.
        unpruned_shapes: shapes of the orders asked for, before anything is left out.
        unpruned_settings: the same with every rank within the bounds: what a search by enumeration would have to try.
        dropped: why shapes were left out → how many.
    """

    shapes: tuple[TensorShape, ...]
    unpruned_shapes: int
    unpruned_settings: int
    dropped: dict[str, int]


def possible_orders(rows: int, columns: int) -> range:
    """Orders a matrix can be folded to: 2 to its number of prime factors (a side of 1 or a prime extent stays whole)."""
    return range(2, sum(max(1, len(_primes(extent))) for extent in (rows, columns)) + 1)


def shape_space(format: str, rows: int, columns: int, orders: Sequence[int] | None = None, top_k: int = 3) -> ShapeSpace:
    """The candidate shapes of a `rows`×`columns` matrix.

    Args:
        format: name of the format.
        rows: M, output features.
        columns: N, input features.
        orders: numbers of modes longer than 1; default: those possible up to 4.
        top_k: how many factorizations of a side to keep for each number of factors, those of the highest entropy.

    Raises:
        ValueError: for an order the matrix cannot be folded to, or `top_k` below 1.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"top_k must be a positive integer, got {top_k!r}")
    codec = get_format(format)
    orders = check_orders(rows, columns, orders)
    dropped: Counter[str] = Counter()
    everything = [shape for shape in _all_shapes(codec, rows, columns, orders) if _takes(codec, shape)]
    proper = [shape for shape in everything if not _degenerate(codec, shape)]
    dropped["degenerate"] = len(everything) - len(proper)
    asked = [shape for shape in proper if long_modes(shape) in orders]
    dropped["of another order"] = len(proper) - len(asked)
    uniform = [shape for shape in asked if _among_most_uniform(shape, top_k)]
    dropped["not of the highest entropy"] = len(asked) - len(uniform)
    distinct = list({_tensor_key(codec, shape): shape for shape in reversed(uniform)}.values())[::-1]
    dropped["the same tensor as another"] = len(uniform) - len(distinct)
    small = [shape for shape in distinct if codec.parameters(shape, codec.uniform_rank(shape, 1)) < rows * columns]
    dropped["over-parameterized"] = len(distinct) - len(small)
    settings = sum(math.prod(codec.max_rank(shape)) for shape in everything)
    ordered = sorted(small, key=_place)
    return ShapeSpace(tuple(ordered), len(everything), settings, {reason: n for reason, n in dropped.items() if n})


def check_orders(rows: int, columns: int, orders: Sequence[int] | None) -> tuple[int, ...]:
    """The orders asked for, or the default ones.

    Raises:
        ValueError: if there is none, or the matrix cannot be folded to one.
    """
    possible = possible_orders(rows, columns)
    if orders is None:
        return tuple(order for order in possible if order <= LARGEST_ORDER)
    if not orders:
        raise ValueError("orders is empty: name at least one order")
    for order in orders:
        if isinstance(order, bool) or not isinstance(order, int) or order < 2:
            raise ValueError(f"orders must hold integers of at least 2, got {order!r}")
        if order not in possible:
            factors = (f"{extent} = {'·'.join(map(str, _primes(extent))) or 1}" for extent in (rows, columns))
            raise ValueError(
                f"a {rows}×{columns} matrix cannot be folded to order {order}: its extents have too few prime factors "
                f"({', '.join(factors)}); the largest order is {possible[-1]}"
            )
    return tuple(sorted(set(orders)))


def long_modes(shape: TensorShape) -> int:
    """Number of modes longer than 1: the order of a shape whose unit modes only fill gaps."""
    return sum(extent > 1 for extent in shape.modes)


def entropy(modes: Sequence[int]) -> float:
    """Entropy of the extents as shares of their sum, in nats: the larger, the more uniform the shape."""
    total = sum(modes)
    return -sum(extent / total * math.log(extent / total) for extent in modes)


def _place(shape: TensorShape) -> tuple[object, ...]:
    """Low orders first, then uniform sides."""
    return shape.order, -entropy(shape.out_modes) - entropy(shape.in_modes), shape.out_modes, shape.in_modes


def _primes(extent: int) -> list[int]:
    return [prime for prime, power in sorted(prime_factors(extent)) for _ in range(power)]


@cache
def ordered_factorizations(extent: int, count: int) -> tuple[tuple[int, ...], ...]:
    """All ways to write an extent as a product of `count` factors, 1 included, in every order."""
    if count == 1:
        return ((extent,),)
    return tuple((first, *rest) for first in divisors(extent) for rest in ordered_factorizations(extent // first, count - 1))


def _all_shapes(codec: Format, rows: int, columns: int, orders: Sequence[int]) -> Iterator[TensorShape]:
    """Every shape of the orders, unit modes included; where modes are paired, of as many pairs as an order needs."""
    if codec.paired_modes:
        sides = sorted({(cores, cores) for cores in (max(2, -(-order // 2)) for order in orders)})
    else:
        sides = [(order - columns_, columns_) for order in orders for columns_ in range(1, order)]
    for out_count, in_count in sides:
        for out_modes in ordered_factorizations(rows, out_count):
            for in_modes in ordered_factorizations(columns, in_count):
                yield TensorShape(out_modes, in_modes)


def _takes(codec: Format, shape: TensorShape) -> bool:
    try:
        codec.check_shape(shape)
    except ValueError:
        return False
    return True


def _degenerate(codec: Format, shape: TensorShape) -> bool:
    """Whether a mode of extent 1 adds nothing: always, but where modes are paired and it is the partner of a longer one."""
    if not codec.paired_modes:
        return 1 in shape.modes
    return any(m == n == 1 for m, n in zip(shape.out_modes, shape.in_modes, strict=True))


def _among_most_uniform(shape: TensorShape, top_k: int) -> bool:
    return all(
        tuple(sorted(m for m in modes if m > 1)) in _most_uniform(math.prod(modes), sum(m > 1 for m in modes), top_k)
        for modes in (shape.out_modes, shape.in_modes)
    )


@cache
def _most_uniform(extent: int, count: int, top_k: int) -> frozenset[tuple[int, ...]]:
    """The factorizations into `count` factors above 1 with the highest entropy; ties go to the smaller first factor."""
    splits = {tuple(sorted(factors)) for factors in ordered_factorizations(extent, max(1, count)) if 1 not in factors}
    splits |= {()} if count == 0 else set()
    return frozenset(sorted(splits, key=lambda split: (-entropy(split), split))[:top_k])


def _tensor_key(codec: Format, shape: TensorShape) -> object:
    """Equal for shapes that stand for the same tensor network.

    A chain of pairs read backwards is the same chain; where unit modes are moved, that may be another shape.
    """
    if not codec.paired_modes:
        return shape
    numbers = {"m": itertools.count(), "n": itertools.count()}
    chain = tuple(
        tuple((side, next(numbers[side]), extent) for side, extent in (("m", m), ("n", n)) if extent > 1)
        for m, n in zip(shape.out_modes, shape.in_modes, strict=True)
    )
    return min(chain, chain[::-1])
