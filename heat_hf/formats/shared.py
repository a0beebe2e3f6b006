"""One basis for several matrices that read the same input: W′_i = L_i·R with a single R, in r·(N + ΣM_i) elements.

The input is multiplied with R once, and every matrix takes the r products from there. The best R for a rank follows from one
eigendecomposition, that of all matrices on top of each other, each weighted by its own G, and by the C that they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NoReturn

from heat_hf.formats.base import Format, Rank, Subscripts
from heat_hf.formats.plan import Path
from heat_hf.formats.shape import TensorShape
from heat_hf.formats.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor

MEMBERS = ("shared_basis", "on_basis", "on_basis")  # what query, key and value get
SPREAD = 1e-8  # of the largest singular value: below, directions carry nothing, and their scale stays as it is


class _Shared(Format):
    """One of the matrices; the rank is the number r of rows of R."""

    sliceable: ClassVar[bool] = False

    def check_shape(self, shape: TensorShape) -> None:
        """The matrix itself, of two columns or more: fewer directions than inputs tell inputs from products with R."""
        if shape.order != 2 or shape.columns < 2:
            raise ValueError(
                f"{self.name} takes the order-2 shape {shape.rows}:{shape.columns} with two columns or more, got {shape}"
            )

    def max_rank(self, shape: TensorShape) -> Rank:
        """What three matrices can span, below N."""
        return (max(1, min(len(MEMBERS) * shape.rows, shape.columns - 1)),)

    def default_shape(self, rows: int, columns: int) -> TensorShape:
        """The matrix itself."""
        return TensorShape.matrix(rows, columns)

    def factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> NoReturn:
        """Refused.

        Raises:
            ValueError: always: the basis depends on all matrices that share it.
        """
        raise ValueError(f"{self.name} is for several matrices together, see heat_hf.formats.decomposition.share")

    def reconstruct(self, cores: Sequence[Tensor], shape: TensorShape) -> Tensor:
        """L·R of cores L, M×r, and R, r×N.

        Raises:
            ValueError: if R is not among them: a layer `on_basis` holds none of its own.
        """
        if len(cores) != 2:
            raise ValueError(f"{self.name} has no basis of its own: hand over the right core of its group's shared_basis layer")
        left, right = cores
        return left @ right


class SharedBasis(_Shared):
    """The first of the matrices: L·R, with R for all of them."""

    name = "shared_basis"
    path: ClassVar[Path] = "left-to-right"
    """x·Rᵀ is what the other matrices read: no other order gives it."""

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """(M, r) and (r, N)."""
        return (shape.rows, rank[0]), (rank[0], shape.columns)

    def subscripts(self, shape: TensorShape) -> Subscripts:
        """L_mr, R_rn."""
        return Subscripts(rows="c", columns="b", cores=("cd", "db"))

    def equation(self, shape: TensorShape) -> str:
        """x·Rᵀ first, then that times Lᵀ."""
        return "ab,db,cd->ac"


class OnBasis(_Shared):
    """The others: L alone, whose layer reads the r products with R."""

    name = "on_basis"

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """(M, r)."""
        return ((shape.rows, rank[0]),)

    def subscripts(self, shape: TensorShape) -> Subscripts:
        """L_cb, with the extents of the core."""
        return Subscripts(rows="c", columns="b", cores=("cb",))


def shared_losses(weights: Sequence[Tensor], second_moment: Tensor, output_moments: Sequence[Tensor | None]) -> Tensor:
    """Element r is what all matrices together lose on the best basis of rank r: Σ ½‖G_i^{1/2}(W_i − W′_i)C^{1/2}‖_F².

    Args:
        weights: W_i, M_i×N each.
        second_moment: C of the input that they share, N×N.
        output_moments: G_i, M_i×M_i each; None for the identity.

    Returns:
        N + 1 elements in float64, nonincreasing.
    """
    import torch

    from heat_hf.formats.projection import triangular_root
    from heat_hf.formats.spectra import tails

    root = triangular_root(second_moment.double())
    values = torch.linalg.eigvalsh(root.T @ _weighted(weights, output_moments).to(root) @ root)
    return tails(values.clamp_min(0).flip(0)) / 2


def shared_cores(
    weights: Sequence[Tensor], rank: int, second_moment: Tensor, output_moments: Sequence[Tensor | None]
) -> tuple[list[Tensor], Tensor]:
    """L_i and R of the least loss, in float64, of equal root mean square.

    Args:
        weights: as for `shared_losses`.
        rank: r.
        second_moment: likewise.
        output_moments: likewise.

    Returns:
        L_i, M_i×r each, and R, r×N.
    """
    import torch

    from heat_hf.formats.projection import square_roots
    from heat_hf.formats.spectra import balanced

    root, inverse = square_roots(second_moment.double())
    values, vectors = torch.linalg.eigh(root @ _weighted(weights, output_moments).to(root) @ root)
    directions = vectors.flip(1)[:, :rank]
    spread = values.flip(0)[:rank].clamp_min(0).sqrt()
    share = spread.clamp_min(SPREAD * float(spread[0]) or 1.0).sqrt()  # of singular values, evenly, as by an SVD
    right = share[:, None] * (directions.T @ inverse)
    # With R given, the best L is W C Rᵀ(R C Rᵀ)⁻¹, whatever G is.
    lefts = [weight.detach().to(root) @ root @ directions / share for weight in weights]
    left, right = balanced([torch.cat(lefts), right])
    return list(left.split([len(one) for one in lefts])), right


def _weighted(weights: Sequence[Tensor], output_moments: Sequence[Tensor | None]) -> Tensor:
    """Σ W_iᵀ G_i W_i, N×N in float64."""
    from heat_hf.formats.projection import OUTPUT_DAMPING, damped

    total: Tensor | None = None
    for weight, moment in zip(weights, output_moments, strict=True):
        matrix = weight.detach().double()
        part = matrix.T @ (matrix if moment is None else damped(moment.to(matrix), OUTPUT_DAMPING) @ matrix)
        total = part if total is None else total + part
    assert total is not None
    return total
