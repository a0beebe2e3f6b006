"""What a factorization format is: a few questions, from whose answers everything else in the package is derived.

A format says which (shape, rank) pairs are valid, how many slices its ranks have at most, which extents its cores have,
which einsum indices each core carries, and how a tensor is decomposed. Parameter counts, the contraction of
y = x·Wᵀ, the reconstruction of W, and truncation to smaller ranks follow from these in one place, here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from opt_einsum import get_symbol
from torch import Tensor

from heat_hf.formats.projection import OUTPUT_DAMPING, refine, relative_error, square_roots
from heat_hf.formats.shape import TensorShape
from heat_hf.formats.solver import Solver

Rank = tuple[int, ...]
TOKENS = get_symbol(0)
MAX_INDICES = 52  # torch.einsum takes the letters a–z and A–Z


@dataclass(frozen=True)
class Subscripts:
    """Einsum indices of a factorized matrix: of the row modes, of the column modes, and of every core."""

    rows: str
    columns: str
    cores: tuple[str, ...]


@dataclass(frozen=True)
class Factorization:
    """Result of a decomposition.

    Attributes:
        cores: the core tensors, in the order and with the extents of `Format.core_shapes`, in the matrix's dtype.
        relative_error: ‖W − W′‖_F / ‖W‖_F.
        output_error: ‖(W − W′)C^{1/2}‖_F / ‖W C^{1/2}‖_F, the relative error of the layer's outputs on the calibration
            inputs; None without them.
        sweeps: iterations done; 0 for a closed form.
        converged: False if an iterative method stopped at its limit of sweeps.
    """

    cores: tuple[Tensor, ...]
    relative_error: float
    output_error: float | None = None
    sweeps: int = 0
    converged: bool = True


class Format(ABC):
    """A way to write a tensor as a product of cores. Subclass it and add one line to `heat_hf.formats.FORMATS`."""

    name: ClassVar[str]
    paired_modes: ClassVar[bool] = False
    """Whether the k-th row mode and the k-th column mode share a core, in a chain; modes of extent 1 then fill gaps."""
    iterative: ClassVar[bool] = False
    """Whether the errors of many ranks take sweeps, rather than one factorization."""

    @abstractmethod
    def max_rank(self, shape: TensorShape) -> Rank:
        """Upper bound of every rank: above it, parameters are added but nothing more can be represented."""

    @abstractmethod
    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """Extents of the cores."""

    @abstractmethod
    def subscripts(self, shape: TensorShape) -> Subscripts:
        """Einsum indices of the matrix modes and of the cores."""

    @abstractmethod
    def default_shape(self, rows: int, columns: int) -> TensorShape:
        """The tensorization used when the user names none."""

    @abstractmethod
    def _factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> tuple[list[Tensor], int, bool]:
        """Decompose a float64 tensor of extents `shape.modes`: the cores, the sweeps done, whether they converged."""

    def check_shape(self, shape: TensorShape) -> None:  # noqa: B027
        """Raise ValueError if this format cannot use the shape. By default any shape is fine."""

    def parse_rank(self, shape: TensorShape, rank: object) -> Rank:
        """Read a rank and check it against the bounds of `shape`.

        Args:
            shape: the tensorization shape.
            rank: a sequence with one integer for each rank of the format, or a single integer, read as `uniform_rank`.

        Raises:
            ValueError: for a wrong number of ranks, or a rank below 1 or above its bound; the message has the bounds.
        """
        self.check_shape(shape)
        bounds = self.max_rank(shape)
        if isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank <= max(bounds, default=rank):
            return self.uniform_rank(shape, rank)
        ranks = (rank,) * len(bounds) if isinstance(rank, int) else rank
        if not isinstance(ranks, Sequence) or isinstance(ranks, str):
            raise ValueError(f"rank of {self.name} must be an integer or a list of {len(bounds)}, got {rank!r}")
        if len(ranks) != len(bounds):
            raise ValueError(f"{self.name} of shape {shape} has {len(bounds)} ranks, got {len(ranks)}: {list(ranks)!r}")
        for position, (value, bound) in enumerate(zip(ranks, bounds, strict=True)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= bound:
                raise ValueError(
                    f"rank[{position}] of {self.name} of shape {shape} must be an integer from 1 to {bound}, got {value!r}"
                )
        usable = self.clip_rank(shape, tuple(ranks))
        if usable != tuple(ranks):
            raise ValueError(
                f"rank {list(ranks)} of {self.name} of shape {shape} has slices that its other ranks leave unused: "
                f"the largest usable rank within it is {list(usable)}"
            )
        return usable

    def clip_rank(self, shape: TensorShape, rank: Rank) -> Rank:
        """The largest usable rank that is nowhere above `rank`."""
        return tuple(map(min, rank, self.max_rank(shape)))

    def uniform_rank(self, shape: TensorShape, level: int) -> Rank:
        """`level` for every rank, capped at the bounds: modes smaller than `level` stay whole."""
        return self.clip_rank(shape, (level,) * len(self.max_rank(shape)))

    def parameters(self, shape: TensorShape, rank: Rank) -> int:
        """Number of stored core elements (the paper's c·M·N)."""
        return sum(math.prod(extents) for extents in self.core_shapes(shape, rank))

    def equation(self, shape: TensorShape) -> str:
        """Einsum equation of y = x·Wᵀ: operands x (tokens × column modes) and the cores; result tokens × row modes."""
        s = self.subscripts(shape)
        return f"{','.join([TOKENS + s.columns, *s.cores])}->{TOKENS + s.rows}"

    def reconstruction_equation(self, shape: TensorShape) -> str:
        """Einsum equation of the folded W: operands the cores; result row modes × column modes."""
        s = self.subscripts(shape)
        return f"{','.join(s.cores)}->{s.rows + s.columns}"

    def reconstruct(self, cores: Sequence[Tensor], shape: TensorShape) -> Tensor:
        """The M×N matrix W′ that the cores stand for."""
        return torch.einsum(self.reconstruction_equation(shape), *cores).reshape(shape.rows, shape.columns)

    def truncate(self, cores: Sequence[Tensor], shape: TensorShape, rank: Rank) -> tuple[Tensor, ...]:
        """Views of the cores' first r slices along every rank axis (paper, section 2.2.2)."""
        extents = self.core_shapes(shape, rank)
        return tuple(core[tuple(map(slice, size))] for core, size in zip(cores, extents, strict=True))

    def largest_rank(self, shape: TensorShape, max_parameters: float) -> Rank:
        """The largest uniform rank with at most `max_parameters` parameters.

        Raises:
            ValueError: if even the smallest rank has more.
        """
        self.check_shape(shape)
        low, high = 1, max(self.max_rank(shape), default=1)
        smallest = self.parameters(shape, self.uniform_rank(shape, low))
        if smallest > max_parameters:
            raise ValueError(
                f"{self.name} of shape {shape} cannot be as small as {int(max_parameters)} parameters: "
                f"its smallest rank has {smallest}"
            )
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.parameters(shape, self.uniform_rank(shape, middle)) <= max_parameters
            low, high = (middle, high) if fits else (low, middle - 1)
        return self.uniform_rank(shape, low)

    def decompose(
        self,
        weight: Tensor,
        shape: TensorShape,
        rank: object,
        solver: Solver | None = None,
        second_moment: Tensor | None = None,
        output_moment: Tensor | None = None,
    ) -> Factorization:
        """Find cores that minimise ‖W − W′‖_F, or ‖G^{1/2}(W − W′)C^{1/2}‖_F where C or G are known.

        This is the layer-wise projection of the paper's section 2.2.3; with C it projects the layer's outputs instead of its
        weights, with G as well the model's outputs, to second order.

        Args:
            weight: W, M×N, finite.
            shape: tensorization shape of W.
            rank: a valid rank, see `parse_rank`.
            solver: limits of the iterative methods.
            second_moment: C = E[xxᵀ] of the layer's inputs x, N×N, symmetric positive semi-definite.
            output_moment: G, second moment of the model's outputs' gradients at the layer's outputs, M×M, likewise.

        Returns:
            The cores in W's dtype and on its device, of equal root mean square, and the errors reached.

        Raises:
            ValueError: if the shape or rank do not fit, or W, C or G hold NaN or infinity.
        """
        solver = solver or Solver()
        shape.require(*weight.shape)
        rank = self.parse_rank(shape, rank)
        require_finite("weight", weight)
        matrix = weight.detach().double()
        if not matrix.any():
            return Factorization(tuple(weight.new_zeros(extents) for extents in self.core_shapes(shape, rank)), 0.0)
        second_moment, output_moment = (
            None if moment is None else require_finite(name, moment).to(matrix)
            for name, moment in (("second_moment", second_moment), ("output_moment", output_moment))
        )
        cores, sweeps, converged = self._project(matrix, second_moment, output_moment, shape, rank, solver)
        stored = tuple(core.to(weight.dtype).contiguous() for core in balanced(cores))
        return Factorization(stored, *self.errors(matrix, stored, shape, second_moment), sweeps, converged)

    def rank_errors(
        self, weight: Tensor, shape: TensorShape, ranks: Sequence[Rank], solver: Solver | None = None
    ) -> list[float]:
        """‖W − W′‖_F / ‖W‖_F of many ranks, much faster than one decomposition for each (paper, Fig. 7).

        Exact where `decompose` has a closed form. Where it iterates, this is a little above what that reaches: Tucker has the
        error of the truncated HOSVD, CP that after a few sweeps.

        Args:
            weight: W, M×N, finite, on the device to compute on.
            shape: tensorization shape of W.
            ranks: valid ranks.
            solver: limits of the iterative methods.

        Raises:
            ValueError: if the shape or a rank do not fit, or W holds NaN or infinity.
        """
        shape.require(*weight.shape)
        checked = [self.parse_rank(shape, rank) for rank in ranks]
        require_finite("weight", weight)
        matrix = weight.detach().double()
        whole = float(matrix.square().sum())
        if not ranks or whole == 0.0:
            return [0.0] * len(ranks)
        lost = self._lost(matrix, shape, checked, solver or Solver())
        return [math.sqrt(max(0.0, value) / whole) for value in lost]

    def _lost(self, matrix: Tensor, shape: TensorShape, ranks: Sequence[Rank], solver: Solver) -> list[float]:
        """‖W − W′‖_F² for each rank. Overridden where one factorization gives all of them."""
        whole = float(matrix.square().sum())
        return [self.decompose(matrix, shape, rank, solver).relative_error ** 2 * whole for rank in ranks]

    def errors(
        self, weight: Tensor, cores: Sequence[Tensor], shape: TensorShape, second_moment: Tensor | None = None
    ) -> tuple[float, float | None]:
        """Relative error of W′ and, with C, of the layer's outputs; see `Factorization`."""
        restored = self.reconstruct(cores, shape)
        output = None if second_moment is None else relative_error(weight, restored, second_moment)
        return relative_error(weight, restored), output

    def _project(
        self,
        matrix: Tensor,
        second_moment: Tensor | None,
        output_moment: Tensor | None,
        shape: TensorShape,
        rank: Rank,
        solver: Solver,
    ) -> tuple[list[Tensor], int, bool]:
        """Minimise ‖G^{1/2}(W − W′)C^{1/2}‖_F.

        Where a side of the matrix is one mode, whitening that mode makes this the plain problem, with its exact methods:
        decompose G^{1/2} W C^{1/2} and take the inverse roots out of the cores that carry the modes. For low rank this is the
        closed form. Folded sides mix under their root; there the solution without it is refined by descent.
        """
        whitened, inverses = whiten(matrix, second_moment, output_moment, shape)
        cores, sweeps, converged = self._factorize(whitened.reshape(shape.modes), shape, rank, solver)
        subscripts = self.subscripts(shape)
        for index, inverse in zip((subscripts.rows, subscripts.columns), inverses, strict=True):
            if inverse is not None:
                cores = self._apply(cores, shape, index, inverse)
        moments = (output_moment, second_moment)
        if any(moment is not None and inverse is None for moment, inverse in zip(moments, inverses, strict=True)):
            rebuild = lambda candidate: self.reconstruct(candidate, shape)  # noqa: E731
            cores = refine(rebuild, cores, matrix, second_moment, solver, output_moment)
        return cores, sweeps, converged

    def _apply(self, cores: list[Tensor], shape: TensorShape, side: str, factor: Tensor) -> list[Tensor]:
        """Cores of the matrix multiplied with a symmetric factor at a side that has a single mode longer than 1.

        Args:
            cores: of the matrix.
            shape: its tensorization shape.
            side: einsum indices of the side's modes.
            factor: as many rows and columns as the side is long.
        """
        subscripts = self.subscripts(shape)
        extents = dict(zip(subscripts.rows + subscripts.columns, shape.modes, strict=True))
        index = max(side, key=extents.__getitem__)
        position, axis = next((k, s.index(index)) for k, s in enumerate(subscripts.cores) if index in s)
        moved = torch.tensordot(cores[position], factor, dims=([axis], [0])).movedim(-1, axis)
        return [*cores[:position], moved, *cores[position + 1 :]]


def whiten(
    matrix: Tensor, second_moment: Tensor | None, output_moment: Tensor | None, shape: TensorShape
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    """G^{1/2} W C^{1/2}, less the roots of sides that are folded, and the inverses of the roots taken (rows, columns)."""
    rows_inverse = columns_inverse = None
    if output_moment is not None and sum(extent > 1 for extent in shape.out_modes) <= 1:
        root, rows_inverse = square_roots(output_moment, OUTPUT_DAMPING)
        matrix = root @ matrix
    if second_moment is not None and sum(extent > 1 for extent in shape.in_modes) <= 1:
        root, columns_inverse = square_roots(second_moment)
        matrix = matrix @ root
    return matrix, (rows_inverse, columns_inverse)


def require_finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor; raises ValueError if it holds NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or infinite values; it cannot be decomposed")
    return tensor


def balanced(cores: Sequence[Tensor]) -> list[Tensor]:
    """Scale the cores to equal root mean square, keeping their product.

    None over- or underflows a short dtype, and an optimizer whose steps are alike for all entries, as Adam's are, changes all
    cores by the same share: with equal norms, the large entries of a small core make its steps too short and the small entries
    of a large core theirs too long.
    """
    sizes = [float(core.square().mean().sqrt()) for core in cores]
    if min(sizes) == 0.0:
        return list(cores)
    mean = math.exp(sum(map(math.log, sizes)) / len(sizes))
    return [core * (mean / size) for core, size in zip(cores, sizes, strict=True)]


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-r approximation of M×N as (M, r) and (r, N), the singular values shared evenly, descending."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]


def match_variance(weight: Tensor, cores: Sequence[Tensor], format: Format, shape: TensorShape) -> tuple[Tensor, ...]:
    """Scale the cores so that W′ has the variance of W: a factor √(Var W / Var W′) (paper, section 2.2.2).

    The product is linear in each core, so the factor goes into the first one.
    """
    variance = format.reconstruct(cores, shape).double().var()
    scale = torch.sqrt(weight.detach().double().var() / variance) if variance > 0 else torch.ones(())
    return (cores[0] * scale.to(cores[0]), *cores[1:])


def letters(count: int, start: int = 1) -> str:
    """`count` fresh einsum indices, from the `start`-th on (index 0 is the token index).

    Raises:
        ValueError: if an equation would need more than 52 indices.
    """
    if start + count > MAX_INDICES:
        raise ValueError(f"the tensor has too many modes: its einsum needs {start + count} indices, at most {MAX_INDICES}")
    return "".join(get_symbol(i) for i in range(start, start + count))
