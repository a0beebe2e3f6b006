"""Tensorization shapes: how an M×N matrix is folded into a higher-order tensor (paper, section 2.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def _modes(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ValueError(f"{name} must be a non-empty list of positive integers, got {value!r}")
    for extent in value:
        if isinstance(extent, bool) or not isinstance(extent, int) or extent < 1:
            raise ValueError(f"{name} must hold positive integers, got {extent!r} in {list(value)!r}")
    return tuple(value)


@dataclass(frozen=True)
class TensorShape:
    """Tensorization shape s = (m₁, …, m_a, n₁, …, n_b) of a matrix W of M = ∏mᵢ rows and N = ∏nⱼ columns.

    The rows are a linear layer's output features, the columns its input features. The two mode lists may differ in
    length, so the order-3 folding of a 768×768 matrix as 768 × 12 × 64 is `TensorShape((768,), (12, 64))`, and the
    one of the paper's Fig. 6, whose output is folded, is `TensorShape((12, 64), (768,))`.

    Args:
        out_modes: extents m₁, …, m_a of the row modes; 1 is allowed.
        in_modes: extents n₁, …, n_b of the column modes; 1 is allowed.

    Raises:
        ValueError: if a list is empty or holds anything but positive integers.
    """

    out_modes: tuple[int, ...]
    in_modes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "out_modes", _modes("out_modes", self.out_modes))
        object.__setattr__(self, "in_modes", _modes("in_modes", self.in_modes))

    @property
    def rows(self) -> int:
        """M, the number of output features."""
        return math.prod(self.out_modes)

    @property
    def columns(self) -> int:
        """N, the number of input features."""
        return math.prod(self.in_modes)

    @property
    def modes(self) -> tuple[int, ...]:
        """All extents, row modes first."""
        return self.out_modes + self.in_modes

    @property
    def order(self) -> int:
        """Number of modes of the tensor."""
        return len(self.modes)

    def __str__(self) -> str:
        return ":".join("x".join(map(str, modes)) for modes in (self.out_modes, self.in_modes))

    def require(self, rows: int, columns: int) -> None:
        """Check that this shape folds a `rows`×`columns` matrix.

        Raises:
            ValueError: if a product of extents is wrong; the message has both numbers.
        """
        for name, modes, extent in (("out_modes", self.out_modes, rows), ("in_modes", self.in_modes, columns)):
            if math.prod(modes) != extent:
                raise ValueError(
                    f"shape {self} does not fit a {rows}×{columns} matrix: the product of {name} "
                    f"{list(modes)} is {math.prod(modes)}, expected {extent}"
                )

    @classmethod
    def matrix(cls, rows: int, columns: int) -> TensorShape:
        """The order-2 shape that leaves a matrix as it is."""
        return cls((rows,), (columns,))

    @classmethod
    def parse(cls, value: object, rows: int, columns: int) -> TensorShape:
        """Read a shape of a `rows`×`columns` matrix from what a person or a JSON file says.

        Args:
            value: a `TensorShape`; `[[768], [12, 64]]`; `"768:12x64"`; or a flat `"768x12x64"` / `[768, 12, 64]`, whose
                row modes are the shortest prefix with product `rows`.
            rows: M, output features.
            columns: N, input features.

        Raises:
            ValueError: if the value has none of these forms or its products are not M and N.
        """
        shape = value if isinstance(value, cls) else cls._read(value, rows, columns)
        shape.require(rows, columns)
        return shape

    @classmethod
    def _read(cls, value: object, rows: int, columns: int) -> TensorShape:
        wrong = ValueError(
            f"shape {value!r} of a {rows}×{columns} matrix is not understood: write '{rows}:{columns}', "
            f"'{rows}x{columns}' or [[{rows}], [{columns}]] with the extents of your choice"
        )
        try:
            if isinstance(value, str):
                parts = [[int(extent) for extent in part.split("x")] for part in value.split(":")]
                value = parts if len(parts) == 2 else parts[0]
            if not isinstance(value, Sequence) or not value:
                raise wrong
            if all(isinstance(part, Sequence) for part in value):
                out_modes, in_modes = value
                return cls(tuple(out_modes), tuple(in_modes))
            flat = _modes("shape", value)
        except (TypeError, ValueError) as error:
            raise wrong from error
        products = [math.prod(flat[: i + 1]) for i in range(len(flat) - 1)]
        if rows not in products:
            raise ValueError(
                f"shape {value!r} does not fit a {rows}×{columns} matrix: no prefix of the extents has product {rows}"
            )
        split = products.index(rows) + 1
        return cls(flat[:split], flat[split:])


def folded(modes: Sequence[int]) -> bool:
    """Whether a side of a matrix is folded: into several modes longer than 1."""
    return sum(extent > 1 for extent in modes) > 1


def balanced_factors(extent: int, count: int) -> tuple[int, ...]:
    """Write `extent` as a product of `count` factors, as close to each other as its divisors allow, ascending.

    Prime extents give (1, …, 1, extent): the caller sees a degenerate split, not an error.
    """
    if count == 1:
        return (extent,)
    candidates = (
        (divisor, *balanced_factors(extent // divisor, count - 1)) for divisor in range(1, extent + 1) if extent % divisor == 0
    )
    # The smallest sum of a fixed product is the most uniform split (highest entropy of the extents).
    return tuple(sorted(min(candidates, key=lambda split: (sum(split), split))))


def fold_shorter_side(rows: int, columns: int) -> TensorShape:
    """Order 3: the longer side whole, the shorter in two even modes; the paper's 768 × 12 × 64 is of this kind."""
    if rows > columns:
        return TensorShape((rows,), balanced_factors(columns, 2))
    return TensorShape(balanced_factors(rows, 2), (columns,))
