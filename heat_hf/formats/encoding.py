"""From a dense weight to the initial values of a Strassen-Tile layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from heat_hf.formats import bilinear
from heat_hf.formats.decomposition import Factorization, require_finite
from heat_hf.formats.shape import TensorShape
from heat_hf.formats.solver import Solver
from heat_hf.formats.strassen_tile import StrassenTile


def encode(
    weight: Tensor, shape: TensorShape, rank: object, solver: Solver | None = None, tile_moment: Tensor | None = None
) -> Factorization:
    """The initial values of a layer: an algorithm of r products, and W encoded by it.

    From `solver.start` "strassen" or "als", the algorithm is improved for this matrix: by alternating least squares for tiles
    of X and W of the moments that they have, taken as independent of each other. An exact algorithm stays as it is.

    Args:
        weight: W, M×N, finite.
        shape: see `tiled`.
        rank: r.
        solver: its `start` and `seed`.
        tile_moment: E[vec(X_K)vec(X_K)ᵀ] of the tiles of the layer's inputs, t²×t², a tile's first token first; None for
            independent elements.

    Returns:
        The cores, and as `relative_error` that of a tile's outputs for inputs of independent elements: ‖P − I⊗W‖_F / ‖I⊗W‖_F
        with P of `StrassenTile.reconstruct`.

    Raises:
        ValueError: if the shape or rank do not fit, or W holds NaN or infinity.
    """
    codec, solver = StrassenTile(), solver or Solver()
    shape.require(*weight.shape)
    (products,) = codec.parse_rank(shape, rank)
    (rows, tile), (columns, _) = shape.out_modes, shape.in_modes
    matrix = require_finite("weight", weight).detach().double()
    tiles = matrix.reshape(rows, tile, columns, tile).permute(2, 0, 3, 1).reshape(columns, rows, tile**2)
    moment = tiles.flatten(0, 1).T @ tiles.flatten(0, 1)
    found = bilinear.algorithm(tile, products, solver.start, solver.seed)
    if solver.start in bilinear.LEARNED and found.error() > bilinear.EXACT and matrix.any():
        found = bilinear.improved(found, bilinear.SWEEPS, tile_moment, moment, bilinear.TRAINABLE)
    forms = (found.encode_x.reshape(-1, tile, tile), found.encode_w, found.decode.reshape(tile, tile, -1))
    encode_x, encode_w, decode = (form.to(matrix) for form in forms)
    cores = [encode_x, torch.einsum("hx,dbx->hdb", encode_w, tiles), decode]
    lost = max(0.0, found.error(None, moment)) if matrix.any() else 0.0
    return Factorization(tuple(core.to(weight.dtype).contiguous() for core in cores), math.sqrt(lost))
