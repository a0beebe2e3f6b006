"""Narrower layers: two matrices with element-wise work between them lose the same inner neurons, or four whole attention heads.

Those in front keep k of their rows, the last one the columns that read them, fitted again so that they make up for what is
gone. All are ordinary linears, just smaller: nothing runs as fast for its number of parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from heat_hf.formats.base import Format, Rank, Subscripts
from heat_hf.formats.shape import TensorShape
from heat_hf.formats.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor

CHUNKS = 96  # in which neurons go, those of a chunk by the scores of the same moment
RIDGE = 1e-4  # of C's mean: neurons that always say the same make it singular


class _Narrowed(Format):
    """One of them; the rank is the number k of neurons that are kept, and the core is the linear's weight."""

    sliceable: ClassVar[bool] = False

    def check_shape(self, shape: TensorShape) -> None:
        """The matrix itself."""
        if shape.order != 2:
            raise ValueError(f"{self.name} takes the order-2 shape {shape.rows}:{shape.columns}, got {shape}")

    def default_shape(self, rows: int, columns: int) -> TensorShape:
        """The matrix itself."""
        return TensorShape.matrix(rows, columns)

    def subscripts(self, shape: TensorShape) -> Subscripts:
        """W_cb, with the extents of the core."""
        return Subscripts(rows="c", columns="b", cores=("cb",))

    def factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> NoReturn:
        """Refused.

        Raises:
            ValueError: always: which neurons go depends on the matrix on their other side.
        """
        raise ValueError(f"{self.name} is for several matrices together, see heat_hf.formats.narrowed.Neurons")

    def reconstruct(self, cores: Sequence[Tensor], shape: TensorShape) -> Tensor:
        """The M×N matrix with zeros in the place of the neurons that went; those that are kept come first."""
        import torch

        (core,) = cores
        rows, columns = shape.rows - core.shape[0], shape.columns - core.shape[1]
        return torch.nn.functional.pad(core, (0, columns, 0, rows))


class FewerOutputs(_Narrowed):
    """A matrix in front: k of M rows. Its layer has k outputs."""

    name = "fewer_outputs"

    def max_rank(self, shape: TensorShape) -> Rank:
        """M."""
        return (shape.rows,)

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """(k, N)."""
        return ((rank[0], shape.columns),)


class FewerInputs(_Narrowed):
    """The last matrix: k of N columns. Its layer has k inputs."""

    name = "fewer_inputs"

    def max_rank(self, shape: TensorShape) -> Rank:
        """N."""
        return (shape.columns,)

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """(M, k)."""
        return ((shape.rows, rank[0]),)


@dataclass(frozen=True)
class Neurons:
    """The order in which a matrix does best without its columns.

    Attributes:
        order: of all N, the first to go first; those of a head stand together.
        losses: element j is what is lost when j of them, or j heads, are gone and the others fitted again, half the squared
            norm of `heat_hf.formats.projection.weighted_square`; nondecreasing.
        size: columns of a head, which only go together; 1 for neurons.
    """

    order: tuple[int, ...]
    losses: tuple[float, ...]
    size: int = 1

    @classmethod
    def ranked(
        cls, weight: Tensor, second_moment: Tensor, output_moment: Tensor | None = None, least: int = 1, size: int = 1
    ) -> Neurons:
        """Take out the neurons that are missed least, one chunk after the other, or the heads, one after the other.

        Without neuron j, the best fit of the others loses w_jᵀGw_j / [C⁻¹]_jj more, w_j being its column of what they have
        been fitted to so far: the optimal brain surgeon, with a matrix's columns in the place of weights. Without a head h, it
        is tr(W_hᵀGW_h [C⁻¹]_hh⁻¹): the same with blocks.

        Args:
            weight: W of the last matrix, M×N.
            second_moment: C of its inputs, N×N, positive semi-definite.
            output_moment: G, M×M; None for the identity.
            least: how many columns are never taken out; one head at least.
            size: columns of a head; N and `least` are multiples of it.
        """
        import torch

        from heat_hf.formats.projection import OUTPUT_DAMPING, triangular_root

        inverse = _damped_inverse(second_moment.double())
        matrix = weight.detach().to(inverse, copy=True)
        if output_moment is not None:
            matrix = triangular_root(output_moment.to(inverse), OUTPUT_DAMPING).T @ matrix
        count = matrix.shape[1]
        alive = torch.ones(count, dtype=torch.bool, device=matrix.device)
        chunk, order, losses = max(1, count // CHUNKS), list[int](), [0.0]
        while (left := count - len(order)) > max(least, size):
            gone = _missed_least(matrix, inverse, alive, min(chunk, left - least), size)
            # One after the other within the chunk, by the elimination of its small block.
            block, columns = inverse[gone][:, gone], matrix[:, gone]
            lost = _eliminated(block, columns).cumsum(0)[size - 1 :: size]
            losses += [losses[-1] + float(part) / 2 for part in lost]
            order += gone.tolist()
            alive[gone] = False
            # In place, and those that are gone with the others: copies of what is left would take longer than the products.
            across = torch.linalg.solve(block, inverse[gone])
            matrix.addmm_(columns, across, alpha=-1)
            inverse.addmm_(inverse[:, gone], across, alpha=-1)
        return cls((*order, *alive.nonzero()[:, 0].tolist()), tuple(losses), size)

    def kept(self, count: int) -> list[int]:
        """Places of the `count` columns that stay, ascending; a multiple of `size`."""
        return sorted(self.order[len(self.order) - count :])

    def lost(self, count: int) -> float:
        """What is lost with `count` columns left, a multiple of `size`."""
        return self.losses[(len(self.order) - count) // self.size]


def _damped_inverse(moment: Tensor) -> Tensor:
    """C⁻¹, of a C with a little more on its diagonal."""
    import torch

    from heat_hf.formats.projection import damped

    more = damped(moment, RIDGE)
    root, failed = torch.linalg.cholesky_ex(more)
    return torch.linalg.inv(more) if failed else torch.cholesky_inverse(root)  # summed in float32 it may fail


def _missed_least(matrix: Tensor, inverse: Tensor, alive: Tensor, count: int, size: int) -> Tensor:
    """Places of the columns that go next: some single ones, or those of one head.

    Args:
        matrix: all columns, in the root of G.
        inverse: C⁻¹ of those that are left.
        alive: which these are.
        count: of single ones.
        size: columns of a head, or 1.
    """
    import torch

    if size == 1:
        scores = matrix.square().sum(0) / inverse.diagonal()
        return scores.masked_fill(~alive, torch.inf).argsort(stable=True)[:count]
    places = alive.nonzero().reshape(-1, size)
    scores = torch.stack([_eliminated(inverse[head][:, head], matrix[:, head]).sum() for head in places])
    return places[scores.argmin()]


def _eliminated(block: Tensor, columns: Tensor) -> Tensor:
    """What each of some columns costs, taken out in turn: their part of C⁻¹, and their columns."""
    import torch

    # With LLᵀ = C⁻¹ of the chunk, the columns times L⁻ᵀ are orthogonal shares of the loss, in the order of elimination.
    root = torch.linalg.cholesky(block)
    shares: Tensor = torch.linalg.solve_triangular(root, columns.T, upper=False).square().sum(1)
    return shares


def refitted(weight: Tensor, second_moment: Tensor, kept: Collection[int]) -> Tensor:
    """The columns of W that stay, M×k in float64, fitted so that W′x_kept is as near to Wx as it can be: W C_·k C_kk⁻¹."""
    import torch

    from heat_hf.formats.projection import damped

    places = torch.tensor(sorted(kept), device=second_moment.device)
    moment = damped(second_moment.double(), RIDGE)
    across = second_moment.double()[:, places]
    within = moment[places][:, places]
    fitted: Tensor = torch.linalg.solve(within, across.T @ weight.detach().to(across).T).T
    return fitted
