"""Strassen-Tile: a bilinear operator on tiles in the place of the matrix product (Ailon et al., arXiv 2503.12211).

X and Wᵀ are cut into tiles of t×t. A tile of X is encoded to r numbers, multiplied element by element with the r numbers of a
tile of Wᵀ, summed over the tiles of the input features, and decoded once to a tile of Y. That is r independent products of
matrices t² times smaller: r/t³ of the multiply-accumulates, and r/t² of the parameters. A tile spans t tokens of a sequence,
which then depend on each other: `heat_hf.formats.tiles` keeps sequences and padding apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NoReturn

from heat_hf.formats.base import Format, Rank, Subscripts
from heat_hf.formats.plan import ContractionPlan, Path
from heat_hf.formats.shape import TensorShape
from heat_hf.formats.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor

TILES = (2, 3, 4)
TILE = 4
STARTS = ("strassen", "als", "hadamard", "random")
SCOPES = ("size", "model")  # of matrices that share what encodes and decodes tiles
ENCODERS = (0, 2)  # of the cores, those that do
PART = 256  # tiles of tokens that a CPU takes at once, so that what is between steps stays in its caches


class StrassenTile(Format):
    """y = D·Σ_K (E_X·x_K ⊙ w_KJ) for tiles of t tokens and t features; the rank is r, the number of products.

    Rows are M/t tiles of t, columns N/t of t. The cores are E_X, r×t×t (products, tokens, features), the encoded weights,
    r × N/t × M/t, and D, t×t×r (tokens, features, products).
    """

    name = "strassen_tile"
    tokenwise: ClassVar[bool] = False
    sliceable: ClassVar[bool] = False
    shrinks: ClassVar[str] = "multiply-accumulates a token"
    path: ClassVar[Path] = "left-to-right"
    """Encode, multiply, decode: any other order gives up what the operator saves."""
    scalable: ClassVar[int] = 1

    def check_shape(self, shape: TensorShape) -> None:
        """Tiles of the same extent on both sides."""
        rows, columns = shape.out_modes, shape.in_modes
        if (len(rows), len(columns)) != (2, 2) or rows[1] != columns[1] or rows[1] not in TILES:
            raise ValueError(
                f"{self.name} takes tiles × extent of a tile on both sides, with tiles of {', '.join(map(str, TILES))}, as "
                f"96x4:96x4, got {shape}"
            )

    def max_rank(self, shape: TensorShape) -> Rank:
        """t³, the products of the definition."""
        return (shape.out_modes[1] ** 3,)

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """(r, t, t), (r, N/t, M/t) and (t, t, r)."""
        (rows, tile), (columns, _) = shape.out_modes, shape.in_modes
        return (rank[0], tile, tile), (rank[0], columns, rows), (tile, tile, rank[0])

    def subscripts(self, shape: TensorShape) -> Subscripts:
        """Tiles b and places c of rows, d and e of columns; products h; tokens f of an input's tile, g of an output's."""
        return Subscripts(rows="bc", columns="de", cores=("hfe", "hdb", "gch"))

    def equation(self, shape: TensorShape) -> str:
        """Of the input's tiles (tiles of tokens × tokens × tiles of features × features) to the output's, places in front."""
        return "afde,hfe,hdb,gch->gcab"

    def default_shape(self, rows: int, columns: int) -> TensorShape:
        """Tiles of 4."""
        return tiled(rows, columns, TILE)

    def work(self, shape: TensorShape, rank: Rank) -> float:
        """MN·(r/t³ + r/M + r/N): products, decoding and encoding."""
        encode, multiply, decode = (rank[0] * n for n in (shape.columns, shape.rows * shape.columns, shape.rows))
        return encode + multiply / shape.out_modes[1] ** 3 + decode

    def groups(self, shape: TensorShape, tokens: int) -> int:
        """Tiles of tokens."""
        return -(-tokens // shape.out_modes[1])

    def factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> NoReturn:
        """Refused.

        Raises:
            ValueError: always: there is no W′.
        """
        raise ValueError(f"{self.name} is no factorization of a matrix, see heat_hf.formats.encoding.encode")

    def target(self, weight: Tensor, shape: TensorShape) -> Tensor:
        """W for each token of a tile, t·M × t·N."""
        import torch

        return torch.kron(torch.eye(shape.out_modes[1], dtype=weight.dtype, device=weight.device), weight.detach())

    def reconstruct(self, cores: Sequence[Tensor], shape: TensorShape) -> Tensor:
        """The matrix that takes a tile of tokens to its outputs, t·M × t·N; token by token."""
        import torch

        tile = shape.out_modes[1]
        operator = torch.einsum("hfe,hdb,gch->gbcfde", *cores)
        return operator.reshape(tile * shape.rows, tile * shape.columns)

    def apply(
        self, plan: ContractionPlan, x: Tensor, cores: Sequence[Tensor], shape: TensorShape, bias: Tensor | None
    ) -> Tensor:
        """Outputs of extents (sequences, tokens, M), for inputs of extents (sequences, tokens, N).

        Raises:
            ValueError: if the inputs are no sequences of tokens, or others than the attention mask is for.
        """
        import torch

        from heat_hf.formats.tiles import cut_up, put_together

        tiles = cut_up(x, shape.out_modes[1])
        plain = not torch.is_grad_enabled() and not torch.compiler.is_compiling() and tiles.device.type == "cpu"
        multiplied = _by_parts if plain and len(tiles) > PART else _multiplied
        y = put_together(multiplied(tiles, cores, shape).flatten(-2), x)
        return y if bias is None else y + bias


def _multiplied(x: Tensor, cores: Sequence[Tensor], shape: TensorShape) -> Tensor:
    """The plan's three steps, of extents (tiles, t, M/t, t) for inputs of extents (tiles, t, N).

    Places of tiles come first, so that each step is one product of matrices as they lie in memory.
    """
    encode, weights, decode = cores
    (rows, tile), (columns, _) = shape.out_modes, shape.in_modes
    forms = x.unflatten(-1, (columns, tile)).permute(1, 3, 0, 2).reshape(tile**2, -1)
    encoded = (encode.flatten(1) @ forms).reshape(len(encode), -1, columns)
    decoded = decode.flatten(0, 1) @ (encoded @ weights).flatten(1)
    y: Tensor = decoded.reshape(tile, tile, -1, rows).permute(2, 0, 3, 1)
    return y


def _by_parts(x: Tensor, cores: Sequence[Tensor], shape: TensorShape) -> Tensor:
    """The same, for some of the tiles after the other."""
    first = _multiplied(x[:PART], cores, shape)
    y = first.new_empty((len(x), *first.shape[1:]))
    y[:PART] = first
    for start in range(PART, len(x), PART):
        y[start : start + PART] = _multiplied(x[start : start + PART], cores, shape)
    return y


def tiled(rows: int, columns: int, tile: int) -> TensorShape:
    """The shape of a matrix in tiles.

    Raises:
        ValueError: if it does not divide into them.
    """
    if rows % tile or columns % tile:
        raise ValueError(f"a {rows}×{columns} matrix does not divide into tiles of {tile}: leave it dense with exclude=[…]")
    return TensorShape((rows // tile, tile), (columns // tile, tile))


def sharing(shape: TensorShape, rank: Rank, scope: str) -> tuple[int, ...]:
    """What layers have in common that share encoders: tile and products, and of scope "size" the matrix size."""
    common = shape.out_modes[1], *rank
    return common if scope == "model" else (*common, shape.rows, shape.columns)
