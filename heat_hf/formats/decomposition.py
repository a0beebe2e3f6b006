"""From a matrix to cores: any format's factorization, with regard to calibration data where there is some."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from heat_hf.formats.base import Format, Rank
from heat_hf.formats.narrowed import Neurons, refitted
from heat_hf.formats.projection import OUTPUT_DAMPING, refine, relative_error, square_roots, triangular_roots, weighted_square
from heat_hf.formats.shape import TensorShape
from heat_hf.formats.shared import shared_cores
from heat_hf.formats.solver import Solver

Moments = tuple[Tensor | None, Tensor | None]  # C of the columns, G of the rows


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
        kept: neurons that stay, ascending, of a matrix that loses some of its rows or columns; None for all.
    """

    cores: tuple[Tensor, ...]
    relative_error: float
    output_error: float | None = None
    sweeps: int = 0
    converged: bool = True
    kept: tuple[int, ...] | None = None


def decompose(
    codec: Format,
    weight: Tensor,
    shape: TensorShape,
    rank: object,
    solver: Solver | None = None,
    second_moment: Tensor | None = None,
    output_moment: Tensor | None = None,
) -> Factorization:
    """Find cores that minimise ‖W − W′‖_F, or ‖G^{1/2}(W − W′)C^{1/2}‖_F where C or G are known.

    This is the layer-wise projection of the paper's section 2.2.3; with C it projects the layer's outputs instead of its
    weights, with G as well the model's outputs, to second order. With moments, the result is never worse in their norm than
    without; G is damped where it is whitened.

    Args:
        codec: the format.
        weight: W, M×N, finite.
        shape: tensorization shape of W.
        rank: a valid rank, see `Format.parse_rank`.
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
    rank = codec.parse_rank(shape, rank)
    require_finite("weight", weight)
    matrix = weight.detach().double()
    if not matrix.any():
        zeros = [matrix.new_zeros(extents) for extents in codec.solved_as.core_shapes(shape, rank)]
        return Factorization(_kept(codec, zeros, weight.dtype), 0.0)
    second_moment, output_moment = (
        None if moment is None else require_finite(name, moment).to(matrix)
        for name, moment in (("second_moment", second_moment), ("output_moment", output_moment))
    )
    cores, sweeps, converged = _project(codec.solved_as, matrix, (second_moment, output_moment), shape, rank, solver)
    stored = _kept(codec, cores, weight.dtype)
    return Factorization(stored, *approximation_errors(codec, matrix, stored, shape, second_moment), sweeps, converged)


def narrow(
    firsts: Sequence[Tensor],
    second: Tensor,
    count: int,
    second_moment: Tensor,
    output_moment: Tensor | None = None,
    size: int = 1,
) -> tuple[Factorization, ...]:
    """Fewer neurons, or heads, between matrices: what is missed least goes, and the last matrix is fitted to the others.

    Args:
        firsts: W₁, N×any, one for neurons, several for heads: their rows are the neurons.
        second: W₂, M×N: its columns read them.
        count: k, how many stay.
        second_moment: C of the second layer's inputs, N×N.
        output_moment: G of its outputs, M×M; None for the identity.
        size: neurons of a head, which go together; k and N are multiples of it.

    Returns:
        Of each of the first matrices, and of the second.

    Raises:
        ValueError: if a matrix holds NaN or infinity.
    """
    for name, tensor in (*(("weight", first) for first in firsts), ("weight", second), ("second_moment", second_moment)):
        require_finite(name, tensor)
    matrix = second.detach().double()
    moment = second_moment.to(matrix)
    kept = Neurons.ranked(matrix, moment, output_moment, count, size).kept(count)
    fitted = refitted(matrix, moment, kept).to(second.dtype).contiguous()
    errors = narrowed_errors(second, fitted, kept, False, moment)
    stays = tuple(kept)
    rows = (first.detach()[kept].contiguous() for first in firsts)
    return (*(Factorization((core,), 0.0, 0.0, kept=stays) for core in rows), Factorization((fitted,), *errors, kept=stays))


def share(
    weights: Sequence[Tensor], rank: int, second_moment: Tensor, output_moments: Sequence[Tensor | None]
) -> tuple[Factorization, ...]:
    """One basis of rank r for matrices that read the same input, so that all of them together lose least.

    Args:
        weights: W_i, M_i×N each.
        rank: r, below N.
        second_moment: C of the input, N×N.
        output_moments: G_i, M_i×M_i each; None for the identity.

    Returns:
        Of each matrix; the cores are L and R of the first, and L of the others.

    Raises:
        ValueError: if a matrix holds NaN or infinity.
    """
    for tensor in (*weights, *(moment for moment in output_moments if moment is not None)):
        require_finite("a matrix of the group", tensor)
    moment = require_finite("second_moment", second_moment).to(weights[0].device, torch.float64)
    lefts, right = shared_cores(weights, rank, moment, output_moments)
    found = list[Factorization]()
    basis = right.to(weights[0].dtype).contiguous()
    for weight, left in zip(weights, lefts, strict=True):
        core = left.to(basis).contiguous()
        restored = core.double() @ basis.double()
        errors = relative_error(weight, restored), relative_error(weight, restored, moment)
        found.append(Factorization((core,) if found else (core, basis), *errors))
    return tuple(found)


def narrowed_errors(
    weight: Tensor, core: Tensor, kept: Sequence[int], rows: bool, second_moment: Tensor | None = None
) -> tuple[float, float | None]:
    """The errors of `Factorization` for a matrix that keeps only some rows or columns; rows that are gone count for nothing.

    Args:
        weight: W, M×N.
        core: what is in the place of its rows, k×N, or of its columns, M×k.
        kept: which these are.
        rows: whether they are rows.
        second_moment: C, N×N.
    """
    places = list(kept)
    if rows:
        matrix, restored = weight.detach()[places], core
    else:
        matrix, restored = weight.detach(), torch.zeros_like(weight)
        restored[:, places] = core.to(weight.dtype)
    output = None if second_moment is None else relative_error(matrix, restored, second_moment)
    return relative_error(matrix, restored), output


def rank_errors(
    codec: Format, weight: Tensor, shape: TensorShape, ranks: Sequence[Rank], solver: Solver | None = None
) -> list[float]:
    """‖W − W′‖_F / ‖W‖_F of many ranks, much faster than one decomposition for each (paper, Fig. 7).

    Exact where `decompose` has a closed form. Where it iterates, this is a little above what that reaches: Tucker has the
    error of the truncated HOSVD, CP that after a few sweeps.

    Args:
        codec: the format.
        weight: W, M×N, finite, on the device to compute on.
        shape: tensorization shape of W.
        ranks: valid ranks.
        solver: limits of the iterative methods.

    Raises:
        ValueError: if the shape or a rank do not fit, or W holds NaN or infinity.
    """
    shape.require(*weight.shape)
    checked = [codec.parse_rank(shape, rank) for rank in ranks]
    require_finite("weight", weight)
    matrix = weight.detach().double()
    whole = float(matrix.square().sum())
    if not ranks or whole == 0.0:
        return [0.0] * len(ranks)
    lost = codec.losses(matrix, shape, checked, solver or Solver())
    return [math.sqrt(max(0.0, value) / whole) for value in lost]


def approximation_errors(
    codec: Format, weight: Tensor, cores: Sequence[Tensor], shape: TensorShape, second_moment: Tensor | None = None
) -> tuple[float, float | None]:
    """Relative error of W′ and, with C, of the layer's outputs; see `Factorization`."""
    restored = codec.reconstruct(cores, shape)
    output = None if second_moment is None else relative_error(weight, restored, second_moment)
    return relative_error(weight, restored), output


def _kept(codec: Format, cores: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The cores as they are stored; indices keep their own dtype."""
    kept = (core.to(dtype) if core.is_floating_point() else core for core in codec.stored(cores))
    return tuple(core.contiguous() for core in kept)


def _project(
    codec: Format, matrix: Tensor, moments: Moments, shape: TensorShape, rank: Rank, solver: Solver
) -> tuple[list[Tensor], int, bool]:
    """Minimise ‖G^{1/2}(W − W′)C^{1/2}‖_F.

    Where a side can be whitened, that makes this the plain problem, with its exact methods: factorize G^{1/2} W C^{1/2} and
    take the inverse roots out of the cores that carry the modes. For low rank this is the closed form. From the sides that
    cannot, the solution without them is refined by descent.
    """
    roots = _roots(codec, moments, shape)
    whitened = _multiply(matrix, [None if pair is None else pair[0] for pair in roots])
    cores, sweeps, converged = codec.factorize(whitened.reshape(shape.modes), shape, rank, solver)
    for side, pair in zip(("rows", "columns"), roots, strict=True):
        if pair is not None:
            cores = _apply(codec, cores, shape, side, pair[1])
    second_moment, output_moment = moments
    refined = any(
        moment is not None and pair is None for moment, pair in zip((output_moment, second_moment), roots, strict=True)
    )
    if any(roots) and (refined or not codec.optimal(shape)):
        plain = codec.factorize(matrix.reshape(shape.modes), shape, rank, solver)
        if _loss(codec, matrix, plain[0], shape, moments) < _loss(codec, matrix, cores, shape, moments):
            cores, sweeps, converged = plain
    if refined:
        rebuild = partial(codec.reconstruct, shape=shape)
        cores = refine(rebuild, cores, matrix, second_moment, solver, output_moment)
    return cores, sweeps, converged


def _loss(codec: Format, matrix: Tensor, cores: Sequence[Tensor], shape: TensorShape, moments: Moments) -> float:
    return float(weighted_square(matrix - codec.reconstruct(cores, shape), *moments))


def _roots(codec: Format, moments: Moments, shape: TensorShape) -> list[tuple[Tensor, Tensor] | None]:
    """Roots of G and of C, R with R Rᵀ = G or C, and their inverses, of the sides that are whitened: rows, columns.

    Any root gives the same where the solution is a truncated SVD; elsewhere the symmetric one mixes modes least.
    """
    second_moment, output_moment = moments
    rows, columns = codec.whitens(shape)
    take = triangular_roots if shape.order == 2 and codec.optimal(shape) else square_roots
    return [
        take(output_moment, OUTPUT_DAMPING) if rows and output_moment is not None else None,
        take(second_moment) if columns and second_moment is not None else None,
    ]


def _multiply(matrix: Tensor, roots: Sequence[Tensor | None]) -> Tensor:
    """Rows and columns times their roots: Rᵀ W R′."""
    rows, columns = roots
    matrix = matrix if rows is None else rows.T @ matrix
    return matrix if columns is None else matrix @ columns


def _apply(codec: Format, cores: list[Tensor], shape: TensorShape, side: str, factor: Tensor) -> list[Tensor]:
    """Cores of the matrix W with a factor A at a side that `Format.whitens`: AᵀW for rows, WA for columns.

    Args:
        codec: the format.
        cores: of the matrix.
        shape: its tensorization shape.
        side: "rows" or "columns".
        factor: as many rows and columns as the side is long.
    """
    subscripts = codec.subscripts(shape)
    modes = shape.out_modes if side == "rows" else shape.in_modes
    index = codec.long_index(getattr(subscripts, side), modes)
    number, axis = next((k, indices.index(index)) for k, indices in enumerate(subscripts.cores) if index in indices)
    moved = torch.tensordot(cores[number], factor, dims=([axis], [0])).movedim(-1, axis)
    return [*cores[:number], moved, *cores[number + 1 :]]


def require_finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor; raises ValueError if it holds NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or infinite values; it cannot be decomposed")
    return tensor


def match_variance(weight: Tensor, cores: Sequence[Tensor], format: Format, shape: TensorShape) -> tuple[Tensor, ...]:
    """Scale the cores so that W′ has the variance of W: a factor √(Var W / Var W′) (paper, section 2.2.2).

    W′ is linear in `Format.scalable`, so the factor goes there.
    """
    variance = format.reconstruct(cores, shape).double().var()
    scale = torch.sqrt(weight.detach().double().var() / variance) if variance > 0 else torch.ones(())
    place = format.scalable
    return (*cores[:place], cores[place] * scale.to(cores[place]), *cores[place + 1 :])
