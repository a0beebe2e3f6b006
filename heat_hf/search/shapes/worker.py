"""The workers of Level 1: errors and costs of all ranks of a shape, in this process, in several, or on a cluster."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heat_hf.formats import Rank, Solver, TensorShape, get_format
from heat_hf.formats.decomposition import rank_errors
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.cost import MisfitError
from heat_hf.hardware.protocol import CostModel
from heat_hf.search.parallel import DECIMALS, handed_out, jobs, one_thread
from heat_hf.search.shapes.ranks import choose_ranks


@dataclass(frozen=True)
class Task:
    """All ranks of one shape.

    Attributes:
        size: of the matrix.
        format: name of the format.
        shape: tensorization shape.
        budgets: numbers of parameters to find the best rank for, see `choose_ranks`.
    """

    size: MatrixSize
    format: str
    shape: TensorShape
    budgets: int

    @property
    def name(self) -> str:
        """In the journal."""
        return f"{self.size} {self.format} {self.shape}"


class Row(NamedTuple):
    """A rank of a shape, as the journal keeps it; without macs and times where the hardware cannot run it."""

    rank: list[int]
    error: float
    parameters: int
    macs: int | None = None
    energy_pJ: float | None = None  # noqa: N815 - the unit's own spelling
    seconds: float | None = None


class Worker:
    """Errors and costs of all ranks of a shape. The same numbers in every process: one thread computes them.

    Args:
        weights: sampled matrices of every size.
        costs: the cost model; pickled for other processes.
        tokens: of a forward pass.
        seed: of the random starts of iterative formats.
    """

    def __init__(self, weights: Mapping[MatrixSize, Sequence[Tensor]], costs: CostModel, tokens: int, seed: int) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.weights = {size: [weight.to(device) for weight in matrices] for size, matrices in weights.items()}
        self.arguments = (weights, costs, tokens, seed)
        self.costs = costs
        self.tokens = tokens
        self.solver = Solver(seed=seed)

    def run(self, task: Task) -> list[Row]:
        """The best ranks of a ladder of budgets, with their errors and costs."""
        with one_thread():
            return self._rows(task)

    def _rows(self, task: Task) -> list[Row]:
        codec = get_format(task.format)
        errors_by_rank: dict[Rank, float] = {}

        def errors(ranks: Sequence[Rank]) -> list[float]:
            new = [rank for rank in ranks if rank not in errors_by_rank]
            of_each = [rank_errors(codec, weight, task.shape, new, self.solver) for weight in self.weights[task.size]]
            means = (sum(values) / len(values) for values in zip(*of_each, strict=True))
            errors_by_rank.update(zip(new, means, strict=True))
            return [errors_by_rank[rank] for rank in ranks]

        ranks = choose_ranks(codec, task.shape, self.costs.units, task.budgets, errors)
        return [self._row(task, rank, error) for rank, error in zip(ranks, errors(ranks), strict=True)]

    def _row(self, task: Task, rank: Rank, error: float) -> Row:
        setting = TensorSetting(task.format, task.shape, rank)
        row = Row(list(rank), round(error, DECIMALS), setting.parameters)
        try:
            plan, cost = self.costs.execution(setting, self.tokens)
        except MisfitError:
            return row
        return row._replace(macs=plan.macs, energy_pJ=cost.energy_pJ, seconds=cost.seconds)


def require_picklable(costs: CostModel) -> None:
    """Raise ValueError if a cost model cannot be handed to other processes."""
    try:
        pickle.dumps(costs)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        message = f"the cost model {costs.name} cannot be pickled for other processes: use workers=1 ({error})"
        raise ValueError(message) from error


_made: dict[str, Worker] = {}  # of this process: the worker of the search that it works for


def _work(key: str, arguments: NDArray[np.uint8], task: Task) -> tuple[str, list[Row]]:
    """A task, by the worker of a search, which a process makes once: what costs have been found stays known."""
    if key not in _made:
        _made.clear()
        _made[key] = Worker(*pickle.loads(arguments.tobytes()))
    return task.name, _made[key].run(task)


def results(tasks: Sequence[Task], worker: Worker, workers: int | None) -> Iterator[tuple[str, list[Row]]]:
    """Results of tasks, as they come.

    Args:
        tasks: to do.
        worker: does them.
        workers: see `heat_hf.search.parallel.jobs`.
    """
    if len(tasks) < 2 or jobs(workers) == 1:
        yield from ((task.name, worker.run(task)) for task in tasks)
        return
    # As an array, which joblib maps into processes of this machine and Dask sends to each of a cluster's once.
    pickled = pickle.dumps(worker.arguments)
    key, arguments = hashlib.sha256(pickled).hexdigest(), np.frombuffer(pickled, dtype=np.uint8)
    yield from handed_out(_work, [(key, arguments, task) for task in tasks], workers)
