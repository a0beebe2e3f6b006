"""The workers of Level 1: errors and costs of all ranks of a shape, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heat_hf.formats import Rank, Solver, TensorShape, get_format
from heat_hf.formats.decomposition import rank_errors
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.cost import MisfitError
from heat_hf.hardware.protocol import CostModel
from heat_hf.search.shapes.ranks import choose_ranks

DECIMALS = 6  # of errors: what differs by rounding only is the same


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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Results of sums depend on how many threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_process_worker: Worker | None = None


def _start(*arguments: Any) -> None:
    """Make a pool process ready. It ends with its parent, also one that was killed."""
    global _process_worker
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _process_worker = Worker(*arguments)


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(task: Task) -> tuple[str, list[Row]]:
    assert _process_worker is not None
    return task.name, _process_worker.run(task)


def results(tasks: Sequence[Task], worker: Worker, workers: int) -> Iterator[tuple[str, list[Row]]]:
    """Results of tasks, as they come.

    Args:
        tasks: to do.
        worker: does them.
        workers: processes to start; 1 works in this one.
    """
    if workers == 1 or len(tasks) < 2:
        with _one_thread():
            for task in tasks:
                yield task.name, worker.run(task)
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _start, worker.arguments) as pool:
        try:
            with _deaf_to_interrupts():
                futures = [pool.submit(_work, task) for task in tasks]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise OSError("a process of the search was killed, as where memory runs out: go on with fewer workers") from error
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # else an interrupted search ends only when they have done what they are at
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started in the block never see Ctrl-C, which a terminal sends to all: the one that started them ends them."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
