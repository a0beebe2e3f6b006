"""The space of Level 2: for every tensor the settings it may get, and what each costs on the accelerator.

A network's cost is a sum over its tensors, looked up: no mapping is searched in a loop over networks (paper, section 2.2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from heat_hf.encoders.cost import cost_linear, cost_setting
from heat_hf.formats import Rank, TensorShape, get_format
from heat_hf.formats.setting import Execution, TensorSetting
from heat_hf.hardware.mapper import Mapper, MisfitError
from heat_hf.search.ranks.allocation import BudgetKind
from heat_hf.search.shapes.ranks import choose_ranks

Array = NDArray[np.float64]
Choice = NDArray[np.int64]
Settings = Mapping[str, TensorSetting | None]
BUDGETS = 16  # sizes of a tensor, see `choose_ranks`


@dataclass(frozen=True)
class Matrix:
    """A tensor to choose for.

    Attributes:
        rows, columns: extents M and N.
        runs: how often a forward pass uses it.
    """

    rows: int
    columns: int
    runs: int = 1


@dataclass(frozen=True)
class Figures:
    """Energy in pJ, time in s and parameters of all runs of one tensor, or of a whole network: sums."""

    energy_pJ: float  # noqa: N815
    seconds: float
    parameters: float

    @property
    def edp(self) -> float:
        """Energy-delay product in J·s."""
        return self.energy_pJ * 1e-12 * self.seconds

    def of(self, kind: BudgetKind) -> float:
        """What a budget of some kind limits."""
        return {"edp": self.edp, "seconds": self.seconds, "parameters": self.parameters}[kind]

    def __add__(self, other: Figures) -> Figures:
        return Figures(self.energy_pJ + other.energy_pJ, self.seconds + other.seconds, self.parameters + other.parameters)


class Costs:
    """What settings cost; every setting is mapped once.

    Args:
        matrices: of the network.
        tokens: of a forward pass.
        mapper: the accelerator's; None where only parameters count.
    """

    def __init__(self, matrices: Mapping[str, Matrix], tokens: int, mapper: Mapper | None) -> None:
        self.matrices = dict(matrices)
        self.tokens = tokens
        self.mapper = mapper
        self._known: dict[object, tuple[float, float]] = {}

    def of(self, name: str, setting: TensorSetting | None) -> Figures:
        """All runs of one tensor; None is the dense matrix.

        Raises:
            MisfitError: if it has no mapping onto the accelerator.
        """
        matrix = self.matrices[name]
        key = (matrix.rows, matrix.columns) if setting is None else setting
        if key not in self._known:
            self._known[key] = self._map(matrix, setting)
        energy, seconds = self._known[key]
        parameters = matrix.rows * matrix.columns if setting is None else setting.parameters
        return Figures(matrix.runs * energy, matrix.runs * seconds, parameters)

    def _map(self, matrix: Matrix, setting: TensorSetting | None) -> tuple[float, float]:
        if self.mapper is None:
            return 1.0, 1.0
        if setting is None:
            cost = cost_linear(matrix.rows, matrix.columns, self.tokens, self.mapper)
        else:
            cost = cost_setting(setting, self.tokens, self.mapper)
        return cost.energy_pJ, cost.seconds

    def total(self, settings: Settings) -> Figures:
        """Of a whole network."""
        figures = [self.of(name, setting) for name, setting in settings.items()]
        return sum(figures[1:], start=figures[0])

    @cached_property
    def dense(self) -> Figures:
        """Of the network before."""
        return self.total(dict.fromkeys(self.matrices))


@dataclass(frozen=True)
class RankSpace:
    """What every tensor may get, from few parameters to many.

    Attributes:
        costs: of the network's settings.
        options: settings by tensor; None is the dense matrix.
    """

    costs: Costs
    options: Mapping[str, tuple[TensorSetting | None, ...]]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Tensors, in their order."""
        return tuple(self.options)

    @cached_property
    def sizes(self) -> Choice:
        """Number of options of each tensor."""
        return np.array([len(own) for own in self.options.values()])

    @cached_property
    def figures(self) -> tuple[Array, Array, Array]:
        """Energy, seconds and parameters of every option: tensors × options, filled up with infinity."""
        tables = [np.full((len(self.sizes), int(self.sizes.max())), np.inf) for _ in range(3)]
        for row, (name, own) in enumerate(self.options.items()):
            for place, setting in enumerate(own):
                found = self.costs.of(name, setting)
                for table, value in zip(tables, (found.energy_pJ, found.seconds, found.parameters), strict=True):
                    table[row, place] = value
        return tables[0], tables[1], tables[2]

    def totals(self, choices: Choice) -> tuple[Array, Array, Array]:
        """Energy in pJ, seconds and parameters of many networks at once.

        Args:
            choices: networks × tensors, places of options.
        """
        rows = np.arange(len(self.sizes))
        energy, seconds, parameters = (table[rows, choices].sum(-1) for table in self.figures)
        return energy, seconds, parameters

    def settings(self, choice: Sequence[int] | Choice) -> dict[str, TensorSetting | None]:
        """What the tensors of one network get."""
        return {name: own[int(place)] for (name, own), place in zip(self.options.items(), choice, strict=True)}

    def smallest(self) -> Choice:
        """The first option of every tensor."""
        return np.zeros_like(self.sizes)

    def largest(self) -> Choice:
        """The last option of every tensor."""
        return self.sizes - 1

    def within(self, least: float, largest: float) -> RankSpace:
        """Only factorized options whose parameters, as fractions of the matrix's, lie between two bounds.

        Raises:
            ValueError: if a tensor has none.
        """
        kept = {}
        for name, own in self.options.items():
            kept[name] = tuple(s for s in own if s is not None and least <= s.ratio <= largest)
            if not kept[name]:
                raise ValueError(f"{name} has no rank with {least:g} to {largest:g} of its parameters")
        return RankSpace(self.costs, kept)


def setting_options(
    format: str,
    shape: TensorShape,
    units: Sequence[int],
    errors: Callable[[Sequence[Rank]], Sequence[float]],
    budgets: int = BUDGETS,
    execution: Execution = "auto",
) -> list[tuple[TensorSetting, float]]:
    """Settings of one tensor in one shape, with their errors, from few parameters to many.

    Args:
        format: name of the format.
        shape: tensorization shape.
        units: widths of the accelerator, see `heat_hf.search.shapes.ranks.rank_units`.
        errors: of many ranks.
        budgets: see `choose_ranks`.
        execution: see `TensorSetting`.
    """
    ranks = choose_ranks(get_format(format), shape, units, budgets, errors)
    return [(TensorSetting(format, shape, rank, execution), error) for rank, error in zip(ranks, errors(ranks), strict=True)]


def undominated(
    costs: Costs, name: str, options: Sequence[tuple[TensorSetting | None, float]]
) -> list[tuple[TensorSetting | None, float]]:
    """Without options for which another has neither more energy, time and parameters nor more error, nor a mapping.

    Where a larger rank fills the accelerator better it costs less, but stores more: both stay.
    """
    rows = []
    for setting, error in options:
        try:
            found = costs.of(name, setting)
        except MisfitError:
            continue
        rows.append((found.parameters, error, found.energy_pJ, found.seconds, setting))
    kept: list[tuple[float, float, float, float, TensorSetting | None]] = []
    for row in sorted(rows, key=lambda row: row[:4]):
        if not any(all(a <= b for a, b in zip(other[:4], row[:4], strict=True)) for other in kept):
            kept.append(row)
    return [(row[4], row[1]) for row in kept]
