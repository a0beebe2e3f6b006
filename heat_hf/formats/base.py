"""What a factorization format is: a few questions, from whose answers everything else in the package is derived.

A format says which (shape, rank) pairs are valid, how many slices its ranks have at most, which extents its cores have,
which einsum indices each core carries, and how a tensor is factorized. Parameter counts, the contraction of
y = x·Wᵀ, the reconstruction of W, and truncation to smaller ranks follow from these in one place, here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from opt_einsum import get_symbol

from heat_hf.formats.shape import TensorShape, folded
from heat_hf.formats.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor

    from heat_hf.formats.plan import ContractionPlan, Path

Rank = tuple[int, ...]
TOKENS = get_symbol(0)
MAX_INDICES = 52  # torch.einsum takes the letters a–z and A–Z


@dataclass(frozen=True)
class Subscripts:
    """Einsum indices of a factorized matrix: of the row modes, of the column modes, and of every core."""

    rows: str
    columns: str
    cores: tuple[str, ...]


class Format(ABC):
    """A way to write a tensor as a product of cores. Subclass it and add one line to `heat_hf.formats.FORMATS`.

    The contract: W′ is the einsum of its cores. An index may lie in any number of cores, at most once in each: rank indices
    link cores, and mode indices may be shared, too (the blocks of a block-diagonal core, the elements of a Hadamard product).
    Every mode index lies in some core. What is derived from a shared index follows from `subscripts` alone: see `whitens`.
    Where a format is not `tokenwise`, the cores stand for what happens to a group of tokens: it has its own `equation`,
    `groups`, `apply`, `target` and `reconstruct`, is an entry of `OPERATORS`, and never meets a search.
    Importing a format loads neither torch nor TensorLy: what computes is imported inside `factorize` and `losses`.
    """

    name: ClassVar[str]
    paired_modes: ClassVar[bool] = False
    """Whether the k-th row mode and the k-th column mode share a core, in a chain; modes of extent 1 then fill gaps."""
    iterative: ClassVar[bool] = False
    """Whether the errors of many ranks take sweeps, rather than one factorization."""
    path: ClassVar[Path | None] = None
    """The only order in which x and the cores can be multiplied; None where any will do."""
    sliceable: ClassVar[bool] = True
    """Whether the first slices of the cores are those of a smaller rank."""
    scalable: ClassVar[int] = 0
    """A core in which W′ is linear."""
    tokenwise: ClassVar[bool] = True
    """Whether a token's output depends on that token alone, so that there is a W′."""
    shrinks: ClassVar[str] = "parameters"
    """What `work` counts."""

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
    def factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> tuple[list[Tensor], int, bool]:
        """Decompose a float64 tensor of extents `shape.modes`: the cores, the sweeps done, whether they converged."""

    @property
    def solved_as(self) -> Format:
        """The format whose cores are searched, sliced and refined, before `stored` makes them this one's: by default itself."""
        return self

    def stored(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """The cores that are kept, of those of `solved_as`; by default of equal root mean square."""
        from heat_hf.formats.spectra import balanced

        return balanced(cores)

    def solved(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """Cores of `solved_as` with the same product as those that are kept: the way back from `stored`."""
        return list(cores)

    def losses(self, matrix: Tensor, shape: TensorShape, ranks: Sequence[Rank], solver: Solver) -> list[float]:
        """‖W − W′‖_F² of a float64 matrix for each rank. Overridden where one factorization gives all of them."""
        tensor, lost = matrix.reshape(shape.modes), []
        for rank in ranks:
            cores, _, _ = self.factorize(tensor, shape, rank, solver)
            lost.append(float((matrix - self.reconstruct(cores, shape)).square().sum()))
        return lost

    def manual_shape(self, rows: int, columns: int) -> TensorShape:
        """What people choose by hand, to compare with (paper, section 3.2); by default the format's own shape."""
        return self.default_shape(rows, columns)

    def check_shape(self, shape: TensorShape) -> None:  # noqa: B027
        """Raise ValueError if this format cannot use the shape. By default any shape is fine."""

    def optimal(self, shape: TensorShape) -> bool:
        """Whether `factorize` finds the global optimum of ‖X − X′‖_F for this shape; by default it does not promise that."""
        return False

    def whitens(self, shape: TensorShape) -> tuple[bool, bool]:
        """Whether rows, and whether columns, may be multiplied with a root before factorizing, and with its inverse after.

        The inverse can be taken into a core only where the side is one mode, and its index lies in that core alone. Elsewhere
        the calibrated projection descends from the plain solution.
        """
        subscripts = self.subscripts(shape)
        sides = ((subscripts.rows, shape.out_modes), (subscripts.columns, shape.in_modes))
        rows, columns = (
            not folded(modes) and sum(self.long_index(side, modes) in core for core in subscripts.cores) == 1
            for side, modes in sides
        )
        return rows, columns

    @staticmethod
    def long_index(side: str, modes: Sequence[int]) -> str:
        """The einsum index of a side's longest mode."""
        return max(zip(side, modes, strict=True), key=lambda pair: pair[1])[0]

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

    def work(self, shape: TensorShape, rank: Rank) -> float:
        """What must be less than the dense matrix's M·N for a setting to be of use: by default the parameters."""
        return self.parameters(shape, rank)

    def groups(self, shape: TensorShape, tokens: int) -> int:
        """Extent of x's first index, for so many tokens: each is its own by default."""
        return tokens

    def equation(self, shape: TensorShape) -> str:
        """Einsum equation of y = x·Wᵀ: operands x (tokens × column modes) and the cores; result tokens × row modes."""
        s = self.subscripts(shape)
        return f"{','.join([TOKENS + s.columns, *s.cores])}->{TOKENS + s.rows}"

    def reconstruction_equation(self, shape: TensorShape) -> str:
        """Einsum equation of the folded W: operands the cores; result row modes × column modes."""
        s = self.subscripts(shape)
        return f"{','.join(s.cores)}->{s.rows + s.columns}"

    def reconstruct(self, cores: Sequence[Tensor], shape: TensorShape) -> Tensor:
        """The matrix that the cores stand for: W′, M×N; if tokens depend on each other, what they do to a group of tokens."""
        import torch

        return torch.einsum(self.reconstruction_equation(shape), *cores).reshape(shape.rows, shape.columns)

    def target(self, weight: Tensor, shape: TensorShape) -> Tensor:
        """What `reconstruct` gives for a perfect factorization of W: W itself."""
        return weight

    def apply(
        self, plan: ContractionPlan, x: Tensor, cores: Sequence[Tensor], shape: TensorShape, bias: Tensor | None
    ) -> Tensor:
        """A layer's outputs, of extents (…, M), for inputs of extents (…, N).

        Args:
            plan: of `TensorSetting.plan`, for any number of tokens.
            x: inputs.
            cores: of the rank that the plan is for.
            shape: tensorization shape.
            bias: of M elements.
        """
        y = plan.contract({0: x.reshape(-1, *shape.in_modes)}, plan.precompute(cores), bias)
        return y.reshape(*x.shape[:-1], shape.rows)

    def truncate(self, cores: Sequence[Tensor], shape: TensorShape, rank: Rank) -> tuple[Tensor, ...]:
        """Views of the cores' first r slices along every rank axis (paper, section 2.2.2)."""
        extents = self.core_shapes(shape, rank)
        return tuple(core[tuple(map(slice, size))] for core, size in zip(cores, extents, strict=True))

    def largest_rank(self, shape: TensorShape, most: float) -> Rank:
        """The largest uniform rank whose `work` is at most so much.

        Raises:
            ValueError: if even the smallest rank's is more.
        """
        self.check_shape(shape)
        low, high = 1, max(self.max_rank(shape), default=1)
        smallest = self.work(shape, self.uniform_rank(shape, low))
        if smallest > most:
            raise ValueError(
                f"{self.name} of shape {shape} cannot be as small as {int(most)} {self.shrinks}: "
                f"its smallest rank has {smallest:.0f}"
            )
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.work(shape, self.uniform_rank(shape, middle)) <= most
            low, high = (middle, high) if fits else (low, middle - 1)
        return self.uniform_rank(shape, low)


def letters(count: int, start: int = 1) -> str:
    """`count` fresh einsum indices, from the `start`-th on (index 0 is the token index).

    Raises:
        ValueError: if an equation would need more than 52 indices.
    """
    if start + count > MAX_INDICES:
        raise ValueError(f"the tensor has too many modes: its einsum needs {start + count} indices, at most {MAX_INDICES}")
    return "".join(get_symbol(i) for i in range(start, start + count))
