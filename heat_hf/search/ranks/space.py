"""The space of Level 2: for every tensor the settings it may get, and what each costs on the accelerator.

A network's cost is a sum over its tensors, looked up: no mapping is searched in a loop over networks (paper, section 2.2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heat_hf.encoders.between import between
from heat_hf.encoders.linears import runs
from heat_hf.formats import GONE, Rank, TensorShape, get_format
from heat_hf.formats.setting import Execution, Settings, TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.between import Between
from heat_hf.hardware.cost import Cost, MisfitError, NoGainError
from heat_hf.hardware.protocol import CostModel
from heat_hf.search.ranks.allocation import BudgetKind, Option
from heat_hf.search.shapes.ranks import choose_ranks

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Array = NDArray[np.float64]
Choice = NDArray[np.int64]
BUDGETS = 16  # sizes of a tensor, see `choose_ranks`


@dataclass(frozen=True)
class Matrix:
    """A tensor to choose for.

    Attributes:
        size: extents M and N.
        runs: how often a forward pass uses it.
        reads: what was done with what it reads; None where the model does nothing that could become less.
    """

    size: MatrixSize
    runs: int = 1
    reads: Between | None = None


def matrices_of(
    model: PreTrainedModel, linears: Mapping[str, nn.Linear], batch_size: int, sequence_length: int
) -> dict[str, Matrix]:
    """The tensors to choose for of a model.

    Args:
        model: dense.
        linears: its layers to choose for, by name.
        batch_size: sequences of a forward pass.
        sequence_length: tokens of each.
    """
    reads = between(model, linears, batch_size, sequence_length)
    return {name: Matrix(MatrixSize.of(linear), runs(model.config, name), reads.get(name)) for name, linear in linears.items()}


@dataclass(frozen=True)
class Footprint:
    """What one tensor, or a whole network, takes: sums over tensors.

    Attributes:
        parameters: stored elements.
        cost: of all runs; None without a cost model.
    """

    parameters: float
    cost: Cost | None = None

    def of(self, kind: BudgetKind) -> float:
        """What a budget of some kind limits.

        Raises:
            ValueError: if the cost model does not know it.
        """
        if kind == "parameters":
            return self.parameters
        if self.cost is None:
            raise ValueError(f"a budget of {kind} needs an accelerator, got accelerator=None")
        return self.cost.edp if kind == "edp" else self.cost.seconds

    @property
    def seconds(self) -> float | None:
        """Time; None without a cost model."""
        return None if self.cost is None else self.cost.seconds

    def objective_ratio(self, dense: Footprint) -> Any:  # noqa: ANN401 - a number, or an array of them
        """EDP as a fraction of another's; time where energies are not known; 1 without a cost model."""
        return 1.0 if self.cost is None or dense.cost is None else self.cost.objective / dense.cost.objective

    def __add__(self, other: Footprint) -> Footprint:
        cost = None if self.cost is None or other.cost is None else self.cost + other.cost
        return Footprint(self.parameters + other.parameters, cost)

    def map(self, function: Callable[[Any], Any]) -> Footprint:
        """The same with a function applied to every figure."""
        return Footprint(function(self.parameters), None if self.cost is None else self.cost.map(function))


class Costs:
    """What settings cost; every setting is costed once.

    Args:
        matrices: of the network.
        tokens: of a forward pass.
        model: the cost model; None where only parameters count.
    """

    def __init__(self, matrices: Mapping[str, Matrix], tokens: int, model: CostModel | None) -> None:
        self.matrices = dict(matrices)
        self.tokens = tokens
        self.model = model
        self._runs: dict[TensorSetting | MatrixSize, Cost] = {}
        self._between: dict[tuple[Between, int], Cost | None] = {}

    @property
    def model_name(self) -> str | None:
        """Name of the cost model; None without one."""
        return None if self.model is None else self.model.name

    def one_run(self, name: str, setting: TensorSetting | None) -> Cost | None:
        """One run of one tensor, with what was done with what it reads, where that counts.

        None as a setting is the dense matrix, as a result the lack of a cost model.

        Raises:
            MisfitError: if it has no mapping onto the accelerator.
        """
        if self.model is None:
            return None
        what = self.matrices[name].size if setting is None else setting
        if what not in self._runs:
            cost = self.model.linear if isinstance(what, MatrixSize) else self.model.setting
            self._runs[what] = cost(what, self.tokens)  # type: ignore[arg-type]
        before = self.between(name, setting)
        return self._runs[what] if before is None else self._runs[what] + before

    def between(self, name: str, setting: TensorSetting | None = None) -> Cost | None:
        """What was done with what one run of one tensor reads; None where that is nothing, or does not count."""
        work = self.matrices[name].reads
        if work is None or self.model is None or (setting is not None and setting.format in GONE):
            return None
        narrower = setting is not None and setting.format == "fewer_inputs"
        key = work, setting.rank[0] // work.size if narrower else work.units  # type: ignore[union-attr]
        if key not in self._between:
            self._between[key] = self.model.between(*key)
        return self._between[key]

    def or_dense(self, name: str, setting: TensorSetting) -> TensorSetting | None:
        """A setting, or None for the dense matrix where the cost model says that this is as fast."""
        try:
            self.one_run(name, setting)
        except NoGainError:
            return None
        except MisfitError:  # whoever sums the costs up says what does not fit
            pass
        return setting

    def of(self, name: str, setting: TensorSetting | None) -> Footprint:
        """All runs of one tensor; None is the dense matrix.

        Raises:
            MisfitError: if it has no mapping onto the accelerator.
        """
        matrix, cost = self.matrices[name], self.one_run(name, setting)
        parameters = matrix.size.elements if setting is None else setting.parameters
        return Footprint(parameters, None if cost is None else cost * matrix.runs)

    def total(self, settings: Settings) -> Footprint:
        """Of a whole network."""
        footprints = [self.of(name, setting) for name, setting in settings.items()]
        return sum(footprints[1:], start=footprints[0])

    @cached_property
    def dense(self) -> Footprint:
        """Of the network before."""
        return self.total(dict.fromkeys(self.matrices))


def priced_option(loss: float, footprint: Footprint) -> Option:
    """An option for `allocate`; energy in J."""
    cost = footprint.cost
    if cost is None:
        return Option(loss, None, None, footprint.parameters)
    return Option(loss, None if cost.energy_pJ is None else cost.energy_pJ * 1e-12, cost.seconds, footprint.parameters)


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
        return np.array([len(settings) for settings in self.options.values()])

    @cached_property
    def table(self) -> Footprint:
        """Footprints of every option, as arrays of tensors × options, filled up with infinity."""
        footprints = [[self.costs.of(name, setting) for setting in settings] for name, settings in self.options.items()]
        parameters = self._array([[float(option.parameters) for option in row] for row in footprints])
        costs = [[option.cost for option in row if option.cost is not None] for row in footprints]
        if not all(costs):
            return Footprint(parameters)
        energies = [[cost.energy_pJ for cost in row if cost.energy_pJ is not None] for row in costs]
        seconds = self._array([[cost.seconds for cost in row] for row in costs])
        return Footprint(parameters, Cost(seconds, self._array(energies) if all(energies) else None))

    def _array(self, rows: Sequence[Sequence[float]]) -> Any:  # noqa: ANN401 - a footprint of arrays reads like one of numbers
        array = np.full((len(self.sizes), int(self.sizes.max())), np.inf)
        for number, row in enumerate(rows):
            array[number, : len(row)] = row
        return array

    def totals(self, choices: Choice) -> Footprint:
        """Footprints of many networks at once, as arrays of as many elements.

        Args:
            choices: networks × tensors, numbers of options.
        """
        rows = np.arange(len(self.sizes))
        return self.table.map(lambda array: array[rows, choices].sum(-1))

    def least(self) -> Footprint:
        """The sums of every tensor's least parameters, time and energy: no network takes less of either."""
        return self.table.map(lambda array: float(array.min(axis=1).sum()))

    def footprint(self, row: int, number: int) -> Footprint:
        """Of a tensor's option."""
        return self.table.map(lambda array: float(array[row, number]))

    def settings(self, choice: Sequence[int] | Choice) -> dict[str, TensorSetting | None]:
        """What the tensors of one network get."""
        return {name: options[int(number)] for (name, options), number in zip(self.options.items(), choice, strict=True)}

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
        for name, settings in self.options.items():
            kept[name] = tuple(s for s in settings if s is not None and least <= s.ratio <= largest)
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
        units: widths of the hardware, see `CostModel`.
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
    candidates, figures = [], []
    for setting, error in options:
        try:
            footprint = costs.of(name, setting)
        except MisfitError:
            continue
        candidates.append((setting, error))
        figures.append((footprint.parameters, error, *(() if footprint.cost is None else footprint.cost.figures)))
    return [candidates[place] for place in least_places(figures)]


def least_places(figures: Sequence[tuple[float, ...]] | Array) -> list[int]:
    """Places of rows for which no other has all figures as small, from the least first figure on; of equal ones, the first."""
    if not len(figures):
        return []
    array, kept = np.asarray(figures, dtype=np.float64), list[int]()
    places = np.lexsort(array.T[::-1])
    left = array[places]
    while len(places):
        kept.append(int(places[0]))
        better = (left < left[0]).any(axis=1)  # than the least one in something; false for that one itself
        places, left = places[better], left[better]
    return kept
