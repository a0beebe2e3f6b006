"""What a rank-search method is: what it needs, how it solves a problem within a budget, what its result depends on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from heat_hf.formats import Rank, TensorShape
    from heat_hf.formats.setting import Settings, TensorSetting
    from heat_hf.formats.size import MatrixSize
    from heat_hf.search.ranks.budgets import Budget
    from heat_hf.search.ranks.problem import Problem


@dataclass(frozen=True)
class Solution:
    """What a method found for a network.

    Attributes:
        settings: of every tensor; None where it stays dense.
        loss: divergence of the model's outputs from the dense model's to second order, if the method knows it: it tells
            networks apart, and is no forecast.
        predicted_accuracy: likewise.
    """

    settings: Settings
    loss: float | None = None
    predicted_accuracy: float | None = None


class RankSearch(ABC):
    """A way to find ranks. Subclass it and add one line to `heat_hf.search.ranks.methods.RANK_SEARCHES`.

    Methods are stateless; what several budgets share is kept by `Problem.once`. Importing one loads nothing heavy: what it
    computes with is imported inside `solve`.

    Attributes:
        name: by which users ask for it.
        takes_rank: whether the user may fix ranks.
        takes_shape: whether the user may fix shapes.
        mixes_formats: whether tensors may get different formats.
        budget_optional: whether it also works without a budget, and without fixed ranks.
        needs_calibration: whether it reads `Problem.statistics`, with gradients.
        needs_table: whether it reads `Problem.table`.
        needs_training: whether it reads `Problem.training`.
        resumable: whether it takes long enough to be kept in a journal.
    """

    name: ClassVar[str]
    takes_rank: ClassVar[bool] = False
    takes_shape: ClassVar[bool] = True
    mixes_formats: ClassVar[bool] = False
    budget_optional: ClassVar[bool] = False
    needs_calibration: ClassVar[bool] = False
    needs_table: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    resumable: ClassVar[bool] = False

    @abstractmethod
    def solve(self, problem: Problem, budget: Budget) -> Solution:
        """Settings of every tensor within a budget.

        Raises:
            ValueError: if the budget cannot be kept; the message has the least that is reachable.
        """

    def check(self, problem: Problem, budgets: Sequence[Budget]) -> None:
        """Refuse what cannot work, before anything is written.

        Raises:
            ValueError: if something that the method needs is missing, or a budget cannot be reached.
        """
        problem.check()
        self.require(problem.statistics is not None, problem.training is not None)
        if self.needs_table and problem.table is None:
            raise ValueError(f"rank_search={self.name!r} needs a cost table")

    def require(self, calibration: bool, training: bool) -> None:
        """Raise ValueError if the method needs data that is not there.

        Args:
            calibration: whether there is calibration data.
            training: whether there are rows to train on and to score with.
        """
        if self.needs_calibration and not calibration:
            raise ValueError(f"rank_search={self.name!r} needs a calibration_dataset: sentences like those the model will see")
        if self.needs_training and not training:
            raise ValueError(
                f"rank_search={self.name!r} needs a train_dataset to distil on and an eval_dataset to score SubNets"
            )

    def key(self, problem: Problem) -> dict[str, Any]:
        """What the result depends on beside the network, its costs and `Problem.key`, as JSON."""
        return {}

    def fidelity(self, problem: Problem) -> Mapping[str, Any] | None:
        """How far the method's own predictions are to be trusted, as JSON; None where it predicts nothing."""
        return None

    def shape(self, problem: Problem, format: str, size: MatrixSize) -> TensorShape:
        """The user's tensorization shape; else the cost table's choice; else the format's own.

        Raises:
            ValueError: if the user's shape does not fit.
        """
        from heat_hf.formats import get_format
        from heat_hf.search.shapes.pareto import select

        fixed = problem.fixed_shape(size)
        if fixed is not None:
            return fixed
        codec = get_format(format)
        if problem.table is not None and codec.solved_as is codec:  # others have the matrix's own shape only
            return select(problem.table.of(str(size), format), problem.table.sizes[str(size)]).setting.shape
        return codec.default_shape(*size)


def checked_setting(problem: Problem, format: str, shape: TensorShape, rank: object) -> TensorSetting:
    """A tensor's setting.

    Raises:
        ValueError: if the rank is not valid, or the matrix would not shrink.
    """
    from heat_hf.formats import get_format
    from heat_hf.formats.setting import TensorSetting

    parsed: Rank = get_format(format).parse_rank(shape, rank)
    setting = TensorSetting(format, shape, parsed, problem.execution)
    work = setting.codec.work(shape, parsed)
    if work >= setting.dense_parameters:
        raise ValueError(
            f"rank {setting.rank} of shape {shape} has {work:,.0f} {setting.codec.shrinks}, the dense matrix only "
            f"{setting.dense_parameters:,}: choose a smaller rank"
        )
    return setting
