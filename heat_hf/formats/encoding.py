"""From a dense weight to the initial values of a Strassen-Tile layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from heat_hf.formats import bilinear
from heat_hf.formats.bilinear import Algorithm
from heat_hf.formats.decomposition import Factorization, require_finite
from heat_hf.formats.shape import TensorShape
from heat_hf.formats.solver import Solver
from heat_hf.formats.strassen_tile import StrassenTile


def encode(
    weight: Tensor,
    shape: TensorShape,
    rank: object,
    solver: Solver | None = None,
    tile_moment: Tensor | None = None,
    algorithm: Algorithm | None = None,
) -> Factorization:
    """The initial values of a layer: an algorithm of r products, and W encoded by it.

    Args:
        weight: W, M×N, finite.
        shape: see `tiled`.
        rank: r.
        solver: its `start` and `seed`.
        tile_moment: as for `fitted`, of this layer.
        algorithm: to encode by; None for one fitted to this matrix.

    Returns:
        The cores, and as `relative_error` that of a tile's outputs for inputs of independent elements: ‖P − I⊗W‖_F / ‖I⊗W‖_F
        with P of `StrassenTile.reconstruct`.

    Raises:
        ValueError: if the shape or rank do not fit, or W holds NaN or infinity.
    """
    shape.require(*weight.shape)
    (products,) = StrassenTile().parse_rank(shape, rank)
    tile = shape.out_modes[1]
    matrix = require_finite("weight", weight).detach().double()
    tiles = _tiles(matrix, shape)
    found = fitted([matrix], [shape], products, solver, [tile_moment]) if algorithm is None else algorithm
    forms = (found.encode_x.reshape(-1, tile, tile), found.encode_w, found.decode.reshape(tile, tile, -1))
    encode_x, encode_w, decode = (form.to(matrix) for form in forms)
    cores = [encode_x, torch.einsum("hx,dbx->hdb", encode_w, tiles), decode]
    lost = max(0.0, found.error(None, weight_moment(matrix, shape))) if matrix.any() else 0.0
    return Factorization(tuple(core.to(weight.dtype).contiguous() for core in cores), math.sqrt(lost))


def fitted(
    weights: Sequence[Tensor],
    shapes: Sequence[TensorShape],
    products: int,
    solver: Solver | None = None,
    tile_moments: Sequence[Tensor | None] = (),
) -> Algorithm:
    """An algorithm of r products for one matrix, or for several that share it.

    From `solver.start` "strassen" or "als", it is improved by alternating least squares for tiles of X and W of the moments
    that they have, taken as independent of each other; of several matrices, for the mean of their moments, each scaled to a
    trace of 1. An exact algorithm stays as it is.

    Args:
        weights: M×N each, finite.
        shapes: of each.
        products: r.
        solver: its `start` and `seed`.
        tile_moments: E[vec(X_K)vec(X_K)ᵀ] of the tiles of each layer's inputs, t²×t², a tile's first token first; None for
            independent elements.
    """
    solver = solver or Solver()
    found = bilinear.algorithm(shapes[0].out_modes[1], products, solver.start, solver.seed)
    if solver.start not in bilinear.LEARNED or found.error() <= bilinear.EXACT or not any(map(torch.any, weights)):
        return found
    moments = list(map(weight_moment, weights, shapes))
    inputs = [moment for moment in tile_moments if moment is not None]
    return bilinear.improved(found, bilinear.SWEEPS, _mean(inputs) if inputs else None, _mean(moments), bilinear.TRAINABLE)


def _tiles(matrix: Tensor, shape: TensorShape) -> Tensor:
    """Wᵀ in tiles, N/t × M/t × t²."""
    (rows, tile), (columns, _) = shape.out_modes, shape.in_modes
    return matrix.reshape(rows, tile, columns, tile).permute(2, 0, 3, 1).reshape(columns, rows, tile**2)


def weight_moment(weight: Tensor, shape: TensorShape) -> Tensor:
    """The sum of vec(W_KJ)vec(W_KJ)ᵀ over the tiles of Wᵀ, t²×t² in float64."""
    tiles = _tiles(weight.detach().double(), shape).flatten(0, 1)
    return tiles.T @ tiles


def _mean(moments: Sequence[Tensor]) -> Tensor:
    if len(moments) == 1:
        return moments[0]
    return torch.stack([moment / moment.trace() for moment in moments if moment.trace() > 0]).mean(0)
