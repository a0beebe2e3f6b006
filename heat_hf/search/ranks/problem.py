"""What a rank search is given: the network, what its settings cost, what calibration data says, and what the user fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from heat_hf.encoders.batches import Batch
from heat_hf.encoders.statistics import Statistics
from heat_hf.formats import Solver, TensorShape
from heat_hf.formats.setting import Execution, Settings
from heat_hf.formats.size import MatrixSize
from heat_hf.formats.strassen_tile import tiled
from heat_hf.search.journal import Journal
from heat_hf.search.ranks.evolution import Evolution
from heat_hf.search.ranks.space import Costs
from heat_hf.search.shapes.table import CostTable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from heat_hf.search.ranks.supernet import SuperNetArguments


@dataclass(frozen=True)
class Training:
    """What a SuperNet is trained on, and how its SubNets are scored.

    Attributes:
        rows: tokenized training rows.
        collator: makes batches of them.
        quality: score of a network between 0 and 1.
        arguments: of the training; None for the defaults.
        evolution: of the search; None for the defaults.
    """

    rows: Any
    collator: Any
    quality: Callable[[PreTrainedModel], float]
    arguments: SuperNetArguments | None = None
    evolution: Evolution | None = None


@dataclass(frozen=True)
class Problem:
    """A network to find settings for.

    Attributes:
        model: the dense model; not changed by a search.
        linears: its layers to choose for, by name.
        costs: of their settings.
        formats: names of the formats a tensor may get.
        shape: tensorization shape that the user fixed: of all matrices, or by matrix size; None where it is open.
        tile: extent of the tiles that the user wants; None where it is open.
        rank: rank that the user fixed, likewise.
        execution: of the settings, see `TensorSetting`.
        solver: limits of iterative decompositions.
        seed: of whatever is drawn at random.
        loss_aware: whether projections weight errors by the model's gradients.
        widths: whether feed-forward networks may lose inner neurons instead, and attentions heads.
        groups: whether query, key and value may share a basis instead.
        blocks: whether whole blocks may go.
        table: Level 1's cost table; None without one.
        calibration: batches of model inputs; None without.
        diverges: what a copy of the model with some settings, projected, diverges by on calibration rows.
        statistics: C and G on calibration data; None without it.
        training: for the SuperNet; None without it.
        journal: keeps what a resumable search has done; None for others.
        key: the calibration data's digest and what the user asked for, as JSON: part of what results depend on.
    """

    model: PreTrainedModel
    linears: Mapping[str, nn.Linear]
    costs: Costs
    formats: tuple[str, ...]
    shape: Any = None
    tile: int | None = None
    rank: Any = None
    execution: Execution = "auto"
    solver: Solver = field(default_factory=Solver)
    seed: int = 0
    loss_aware: bool = True
    widths: bool = False
    groups: bool = False
    blocks: bool = False
    table: CostTable | None = None
    calibration: Sequence[Batch] | None = None
    diverges: Callable[[Settings], float | None] | None = None
    statistics: Statistics | None = None
    training: Training | None = None
    journal: Journal | None = None
    key: Mapping[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def units(self) -> tuple[int, ...]:
        """Widths that ranks should be multiples of, see `CostModel`."""
        return () if self.costs.model is None else self.costs.model.units

    @property
    def sizes(self) -> list[MatrixSize]:
        """Sizes of the matrices, each once."""
        return list(dict.fromkeys(map(MatrixSize.of, self.linears.values())))

    def once(self, what: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401
        """A thing that all budgets of a search share: made when first asked for, then kept."""
        if what not in self.made:
            self.made[what] = make()
        return self.made[what]

    def fixed(self, option: str, size: MatrixSize) -> Any:  # noqa: ANN401
        """The user's "shape" or "rank" for a matrix size; None where there is none."""
        value = getattr(self, option)
        return value.get(str(size)) if isinstance(value, Mapping) else value

    def fixed_shape(self, size: MatrixSize) -> TensorShape | None:
        """The user's shape for a matrix size.

        Raises:
            ValueError: if it does not fit.
        """
        if self.tile is not None:
            return tiled(*size, self.tile)
        value = self.fixed("shape", size)
        return None if value is None else TensorShape.parse(value, *size)

    def check(self) -> None:
        """Raise ValueError if the user fixed something for a matrix size that the network does not have."""
        sizes = set(map(str, self.sizes))
        for option in ("shape", "rank"):
            value = getattr(self, option)
            unknown = set(value) - sizes if isinstance(value, Mapping) else set()
            if unknown:
                raise ValueError(f"{option} names the matrix sizes {sorted(unknown)}; the model has {sorted(sizes)}")
