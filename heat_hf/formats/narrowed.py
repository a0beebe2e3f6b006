"""Narrower layers: two matrices with element-wise work between them lose the same inner neurons.

The first keeps k of its rows, the second the columns that read them, fitted again so that they make up for what is gone. Both
are ordinary linears, just smaller: nothing runs as fast for its number of parameters.
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
    """One of the two; the rank is the number k of neurons that are kept, and the core is the linear's weight."""

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
        raise ValueError(f"{self.name} is for two matrices together, see heat_hf.formats.narrowed.Neurons")

    def reconstruct(self, cores: Sequence[Tensor], shape: TensorShape) -> Tensor:
        """The M×N matrix with zeros in the place of the neurons that went; those that are kept come first."""
        import torch

        (core,) = cores
        rows, columns = shape.rows - core.shape[0], shape.columns - core.shape[1]
        return torch.nn.functional.pad(core, (0, columns, 0, rows))


class FewerOutputs(_Narrowed):
    """The first matrix: k of M rows. Its layer has k outputs."""

    name = "fewer_outputs"

    def max_rank(self, shape: TensorShape) -> Rank:
        """M."""
        return (shape.rows,)

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """(k, N)."""
        return ((rank[0], shape.columns),)


class FewerInputs(_Narrowed):
    """The second matrix: k of N columns. Its layer has k inputs."""

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
        order: of all N, the first to go first.
        losses: element j is what is lost when j of them are gone and the others fitted again, half the squared norm of
            `heat_hf.formats.projection.weighted_square`; nondecreasing, N − least + 1 elements.
    """

    order: tuple[int, ...]
    losses: tuple[float, ...]

    @classmethod
    def ranked(cls, weight: Tensor, second_moment: Tensor, output_moment: Tensor | None = None, least: int = 1) -> Neurons:
        """Take out the neurons that are missed least, one chunk after the other.

        Without neuron j, the best fit of the others loses w_jᵀGw_j / [C⁻¹]_jj more, w_j being its column of what they have
        been fitted to so far: the optimal brain surgeon, with a matrix's columns in the place of weights.

        Args:
            weight: W of the second matrix, M×N.
            second_moment: C of its inputs, N×N, positive semi-definite.
            output_moment: G, M×M; None for the identity.
            least: how many are never taken out.
        """
        import torch

        from heat_hf.formats.projection import OUTPUT_DAMPING, damped, triangular_root

        moment = damped(second_moment.double(), RIDGE)
        inverse = torch.linalg.inv(moment)
        matrix = weight.detach().to(moment)
        if output_moment is not None:
            matrix = triangular_root(output_moment.to(moment), OUTPUT_DAMPING).T @ matrix
        alive = torch.arange(matrix.shape[1], device=matrix.device)
        chunk, order = max(1, len(alive) // CHUNKS), list[int]()
        losses = [0.0]
        while len(alive) > least:
            scores = matrix.square().sum(0) / inverse.diagonal()
            gone = scores.argsort(stable=True)[: min(chunk, len(alive) - least)]
            kept = torch.ones(len(alive), dtype=torch.bool, device=alive.device)
            kept[gone] = False
            # One after the other within the chunk, by the elimination of its small block.
            block, columns = inverse[gone][:, gone], matrix[:, gone]
            lost = _eliminated(block, columns)
            losses += [losses[-1] + float(part) / 2 for part in lost.cumsum(0)]
            order += alive[gone].tolist()
            across = torch.linalg.solve(block, inverse[gone][:, kept])
            matrix = matrix[:, kept] - columns @ across
            inverse = inverse[kept][:, kept] - inverse[kept][:, gone] @ across
            alive = alive[kept]
        return cls((*order, *alive.tolist()), tuple(losses))

    def kept(self, count: int) -> list[int]:
        """Places of the `count` neurons that stay, ascending."""
        return sorted(self.order[len(self.order) - count :])

    def lost(self, count: int) -> float:
        """What is lost with `count` neurons left."""
        return self.losses[len(self.order) - count]


def _eliminated(block: Tensor, columns: Tensor) -> Tensor:
    """What each of some neurons costs, taken out in turn: their part of C⁻¹, and their columns."""
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
