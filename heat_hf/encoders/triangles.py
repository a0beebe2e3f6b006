"""Symmetric matrices, of which what is on and above the diagonal is held: in memory, or in files without a name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

STRIP = 384  # rows of a triangle that are held, and computed, together


def room(*extents: int, dtype: torch.dtype, device: torch.device | None = None, disk: bool = False) -> Tensor:
    """A tensor of zeros: on a device; or in a file, whose pages the system writes back and drops where memory is short.

    The file has no name any more when it is handed out: whatever ends this process, nothing is left of it.

    Args:
        extents: of the tensor.
        dtype: of its elements.
        device: where it is; on a disk it is on the CPU.
        disk: whether it is in a file, in the folder that `TMPDIR` names.

    Raises:
        OSError: if there is no room on the disk.
    """
    if not disk:
        return torch.zeros(extents, dtype=dtype, device=device)
    count = torch.Size(extents).numel()
    with tempfile.NamedTemporaryFile(prefix="heat-hf-") as file:
        if count and hasattr(os, "posix_fallocate"):  # a page without room would end the process when it is first written
            try:
                os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
            except OSError as error:
                where = tempfile.gettempdir()
                more = f"of {count * dtype.itemsize:,} bytes in {where}; set TMPDIR to a folder with more room"
                raise OSError(error.errno, f"{error.strerror} for a file {more}") from error
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(extents)


def in_file(tensor: Tensor) -> Tensor:
    """A tensor in a file, see `room`."""
    return room(*tensor.shape, dtype=tensor.dtype, disk=True).copy_(tensor)


@dataclass(frozen=True)
class Triangle:
    """A symmetric N×N matrix as strips of `STRIP` rows, each without the columns left of its diagonal block.

    Attributes:
        width: N.
        elements: of the strips, one after the other; what is below the diagonal within a diagonal block counts for nothing.
    """

    width: int
    elements: Tensor

    def __post_init__(self) -> None:
        if self.elements.shape != (self.count(self.width),):
            raise ValueError(f"a triangle of width {self.width} cannot have elements of extents {tuple(self.elements.shape)}")

    @staticmethod
    def count(width: int) -> int:
        """Elements of all strips."""
        return sum((stop - start) * (width - start) for start, stop in _cuts(width))

    @classmethod
    def zeros(cls, width: int, device: torch.device | None = None, disk: bool = False) -> Triangle:
        """Of zeros in float64, see `room`."""
        return cls(width, room(cls.count(width), dtype=torch.float64, device=device, disk=disk))

    @classmethod
    def of(cls, matrix: Tensor) -> Triangle:
        """Of a symmetric matrix."""
        triangle = cls(len(matrix), matrix.new_empty(cls.count(len(matrix))))
        for rows, strip in triangle.strips():
            strip.copy_(matrix[rows, rows.start :])
        return triangle

    def strips(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows of every strip, and its elements in place: those rows × the columns from the first of them on."""
        at = 0
        for start, stop in _cuts(self.width):
            extents = stop - start, self.width - start
            size = extents[0] * extents[1]
            yield slice(start, stop), self.elements[at : at + size].view(extents)
            at += size

    def add(self, rows: Tensor) -> None:
        """Add Σ x xᵀ of rows, computed in float32.

        Args:
            rows: a number × N.
        """
        for place, strip in self.strips():
            strip += (rows[:, place].T @ rows[:, place.start :]).to(strip.device)

    def whole(self) -> Tensor:
        """The matrix, N×N, bit by bit symmetric."""
        matrix = self.elements.new_empty(self.width, self.width)
        for rows, strip in self.strips():
            matrix[rows, rows.start :] = strip
            matrix[rows.stop :, rows] = strip[:, len(strip) :].T
            block = matrix[rows, rows]
            block.copy_(block.triu() + block.triu(1).T)
        return matrix


class Moments(Mapping[str, Tensor]):
    """Moments by layer, of which one at a time is made whole; layers that share one get the same tensor, one after the other.

    Args:
        triangles: of moments, each by the name of one layer.
        leaders: name of every layer → that by which its moment goes; None if each has its own.

    Raises:
        ValueError: if a moment is missing.
    """

    def __init__(self, triangles: Mapping[str, Triangle], leaders: Mapping[str, str] | None = None) -> None:
        self.triangles = dict(triangles)
        self.leaders = {name: name for name in triangles} if leaders is None else dict(leaders)
        self._last: tuple[str, Tensor] | None = None
        missing = sorted(set(self.leaders.values()) - set(self.triangles))
        if missing:
            raise ValueError(f"the moment of {missing[0]!r} is missing")

    @classmethod
    def of(cls, matrices: Mapping[str, Tensor]) -> Moments:
        """Of symmetric matrices."""
        return cls({name: Triangle.of(matrix) for name, matrix in matrices.items()})

    def __getitem__(self, name: str) -> Tensor:
        leader = self.leaders[name]
        if self._last is None or self._last[0] != leader:
            self._last = None  # before the next is made
            self._last = leader, self.triangles[leader].whole()
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.leaders)

    def __len__(self) -> int:
        return len(self.leaders)

    def width(self, name: str) -> int:
        """Of a layer's moment."""
        return self.triangles[self.leaders[name]].width


def _cuts(width: int) -> Iterator[tuple[int, int]]:
    """First row of every strip, and the one behind its last."""
    return pairwise([*range(0, width, STRIP), width])
