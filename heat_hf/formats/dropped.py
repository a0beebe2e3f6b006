"""Nothing: a matrix that went with its whole Transformer block. Nobody computes with it, and nothing of it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NoReturn

from heat_hf.formats.base import Format, Rank, Subscripts
from heat_hf.formats.shape import TensorShape
from heat_hf.formats.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor


class Dropped(Format):
    """No cores and no rank. What was read is handed on as it is, by the block: there is no W′."""

    name = "dropped"
    sliceable: ClassVar[bool] = False

    def check_shape(self, shape: TensorShape) -> None:
        """The matrix itself."""
        if shape.order != 2:
            raise ValueError(f"{self.name} takes the order-2 shape {shape.rows}:{shape.columns}, got {shape}")

    def default_shape(self, rows: int, columns: int) -> TensorShape:
        """The matrix itself."""
        return TensorShape.matrix(rows, columns)

    def max_rank(self, shape: TensorShape) -> Rank:
        """None."""
        return ()

    def core_shapes(self, shape: TensorShape, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """None."""
        return ()

    def subscripts(self, shape: TensorShape) -> Subscripts:
        """Of no core."""
        return Subscripts(rows="", columns="", cores=())

    def factorize(self, tensor: Tensor, shape: TensorShape, rank: Rank, solver: Solver) -> NoReturn:
        """Refused.

        Raises:
            ValueError: always: a matrix only goes with all others of its block.
        """
        raise ValueError(f"{self.name} is for all matrices of a block together, see heat_hf.encoders.dropping")

    def reconstruct(self, cores: Sequence[Tensor], shape: TensorShape) -> NoReturn:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"nothing is left of a {self.name} matrix")
