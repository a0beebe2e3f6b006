"""Level 1: fill the cost table, over processes and machines, resumable (paper, section 2.2.1)."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from heat_hf.compression.config import HeatConfig
from heat_hf.encoders.cost import cost_linear, cost_setting
from heat_hf.encoders.linears import encoder_linears, matrix_size
from heat_hf.formats import FORMATS, Rank, Solver, TensorShape, get_format
from heat_hf.formats.base import require_finite
from heat_hf.formats.setting import TensorSetting
from heat_hf.hardware import load_accelerator
from heat_hf.hardware.mapper import Mapper, MisfitError
from heat_hf.hardware.spec import Accelerator
from heat_hf.search.journal import Journal, require_same_key
from heat_hf.search.shapes.ranks import choose_ranks, rank_units
from heat_hf.search.shapes.space import ShapeSpace, check_orders, long_modes, shape_space
from heat_hf.search.shapes.table import Candidate, CostTable, SizeInfo

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PER_ORDER = 160  # parameter budgets of the shapes of one order and format, shared evenly
DECIMALS = 6  # of errors: what differs by rounding only is the same
NO_MAPPING = "no mapping onto the accelerator"


@dataclass(frozen=True)
class ShapeSearch:
    """What to search.

    Attributes:
        formats: names of formats.
        orders: see `shape_space`.
        top_k: see `shape_space`.
        budgets: least number of parameter budgets of a shape, see `choose_ranks`; more where an order has few shapes.
        layers: how many matrices of one size errors are averaged over, spread evenly over the model; None for all.
        seed: of the random starts of CP.

    Raises:
        ValueError: for a value that cannot work.
    """

    formats: tuple[str, ...] = tuple(FORMATS)
    orders: tuple[int, ...] | None = None
    top_k: int = 3
    budgets: int = 9
    layers: int | None = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.formats or len(set(self.formats)) != len(self.formats):
            raise ValueError(f"formats must name at least one format, each once, got {list(self.formats)!r}")
        for name in self.formats:
            get_format(name)
        for option in ("top_k", "budgets", "layers"):
            value = getattr(self, option)
            if not (option == "layers" and value is None) and (type(value) is not int or value < 1):
                raise ValueError(f"{option} must be a positive integer, got {value!r}")


@dataclass(frozen=True)
class _Task:
    """All ranks of one shape."""

    size: str
    format: str
    shape: TensorShape
    budgets: int

    @property
    def name(self) -> str:
        return f"{self.size} {self.format} {self.shape}"


def search_shapes(
    model: PreTrainedModel,
    accelerator: str = "simba-l",
    tokens: int = 128,
    search: ShapeSearch | None = None,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    workers: int = 1,
    cache: str | os.PathLike[str] | None = None,
    modules: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> CostTable:
    """The cost table of a model's encoder linears: every candidate shape and rank, with its error and its cost.

    Under `accelerate launch` every process takes a part of the shapes; the table is the same for any number of processes and
    workers. What is done is kept in the folder OUTPUT.partial until the table is complete: a search that was interrupted goes
    on from there, also with another number of processes.

    Args:
        model: a dense model.
        accelerator: a shipped name or a .yaml file.
        tokens: tokens of a forward pass: batch size × sequence length.
        search: what to search.
        output: Parquet file to write. If it is there already, from the same search of the same weights, it is returned.
        overwrite: whether to replace another table there, and what is left of another search.
        workers: processes to start on this machine; more than 1 needs a main module that may be imported again.
        cache: folder in which mappings are kept for other searches.
        modules: which linears, see `encoder_linears`.
        exclude: which not.

    Raises:
        ValueError: if no candidate is left, weights are not finite, or `output` holds another search.
    """
    search = search or ShapeSearch()
    if tokens < 1 or workers < 1:
        raise ValueError(f"tokens and workers must be at least 1, got {tokens} and {workers}")
    hardware = load_accelerator(accelerator)
    sizes = _by_size(encoder_linears(model, modules, exclude))
    table, spaces = _empty_table(model, hardware, tokens, search, sizes)
    if output is not None and Path(output).exists() and not overwrite:
        found = CostTable.load(output)
        require_same_key(found.key, table.key, str(output))
        return found
    tasks = [task for (size, format), space in spaces.items() for task in _tasks(size, format, space, search.budgets)]
    worker = _Worker(_sampled(sizes, search), hardware, tokens, search.seed, cache)
    with Journal(None if output is None else Path(output), table.key, overwrite) as journal:
        done = _complete(table, tasks, _run(tasks, worker, workers, journal))
        if output is not None and journal.main:
            done.save(output)
    return done


def _tasks(size: str, format: str, space: ShapeSpace, least: int) -> list[_Task]:
    of_order = Counter(long_modes(shape) for shape in space.shapes)
    return [_Task(size, format, shape, max(least, PER_ORDER // of_order[long_modes(shape)])) for shape in space.shapes]


def _by_size(linears: Mapping[str, nn.Linear]) -> dict[str, dict[str, nn.Linear]]:
    found: dict[str, dict[str, nn.Linear]] = {}
    for name, linear in linears.items():
        require_finite(f"the weight of {name}", linear.weight)
        found.setdefault(matrix_size(linear), {})[name] = linear
    return found


def weights_digest(linears: Mapping[str, nn.Linear]) -> str:
    """Digest of the weights of several layers, in their order; names do not matter."""
    digest = hashlib.sha256()
    for linear in linears.values():
        weight = linear.weight.detach().cpu().contiguous()
        digest.update(f"{tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample_names(linears: Mapping[str, nn.Linear], layers: int | None) -> tuple[str, ...]:
    """`layers` names, spread evenly: the middles of as many equal parts."""
    names = list(linears)
    count = len(names) if layers is None else min(layers, len(names))
    return tuple(names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count))


def _sampled(sizes: Mapping[str, Mapping[str, nn.Linear]], search: ShapeSearch) -> dict[str, list[Tensor]]:
    return {
        size: [linears[name].weight.detach().float().cpu() for name in _sample_names(linears, search.layers)]
        for size, linears in sizes.items()
    }


def _empty_table(
    model: PreTrainedModel,
    hardware: Accelerator,
    tokens: int,
    search: ShapeSearch,
    sizes: Mapping[str, Mapping[str, nn.Linear]],
) -> tuple[CostTable, dict[tuple[str, str], ShapeSpace]]:
    """The table without candidates, and the space of shapes of every size and format."""
    mapper = Mapper(hardware)
    spaces: dict[tuple[str, str], ShapeSpace] = {}
    infos: dict[str, SizeInfo] = {}
    for size, linears in sizes.items():
        rows, columns = map(int, size.split("x"))
        check_orders(rows, columns, search.orders)
        own = {format: shape_space(format, rows, columns, search.orders, search.top_k) for format in search.formats}
        if not any(space.shapes for space in own.values()):
            raise ValueError(f"no candidate shape is left for {size}: ask for other formats or orders, or a larger top_k")
        spaces |= {(size, format): space for format, space in own.items() if space.shapes}
        dense = cost_linear(rows, columns, tokens, mapper)
        infos[size] = SizeInfo(
            matrices=len(linears),
            digest=weights_digest(linears),
            sampled=_sample_names(linears, search.layers),
            dense_energy_pJ=dense.energy_pJ,
            dense_seconds=dense.seconds,
            spaces={
                format: {
                    "shapes": len(space.shapes),
                    "unpruned_shapes": space.unpruned_shapes,
                    "unpruned_settings": space.unpruned_settings,
                    "dropped": space.dropped,
                }
                for format, space in own.items()
            },
        )
    options = {
        "formats": list(search.formats),
        "orders": None if search.orders is None else list(search.orders),
        **{name: getattr(search, name) for name in ("top_k", "budgets", "layers", "seed")},
    }
    name = str(model.config._name_or_path or type(model).__name__)
    return CostTable(name, hardware.name, hardware.digest, tokens, options, infos, ()), spaces


def require_fit(table: CostTable, path: str, model: PreTrainedModel, config: HeatConfig) -> None:
    """Make sure that a table was made of a model's weights, for the accelerator and tokens of a configuration.

    Raises:
        ValueError: if it was not; the message says in what they differ.
    """
    hardware = load_accelerator(str(config.accelerator))
    linears = _by_size(encoder_linears(model, config.modules, config.exclude))
    wanted = {
        "accelerator_digest": hardware.digest,
        "tokens": config.tokens,
        "digests": {size: weights_digest(own) for size, own in linears.items()},
    }
    require_same_key(table.key, wanted, path)


class _Worker:
    """Errors and costs of all ranks of a shape. The same numbers in every process: one thread computes them."""

    def __init__(
        self,
        weights: Mapping[str, Sequence[Tensor]],
        hardware: Accelerator,
        tokens: int,
        seed: int,
        cache: str | os.PathLike[str] | None,
    ) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.weights = {size: [weight.to(device) for weight in own] for size, own in weights.items()}
        self.arguments = (weights, hardware, tokens, seed, cache)
        self.mapper = Mapper(hardware, cache=cache)
        self.units = rank_units(hardware)
        self.tokens = tokens
        self.solver = Solver(seed=seed)

    def run(self, task: _Task) -> list[list[Any]]:
        """Rank, error, parameters, MACs, energy and seconds of each candidate; None for the cost of one without a mapping."""
        codec = get_format(task.format)
        known: dict[Rank, float] = {}

        def errors(ranks: Sequence[Rank]) -> list[float]:
            new = [rank for rank in ranks if rank not in known]
            every = [codec.rank_errors(weight, task.shape, new, self.solver) for weight in self.weights[task.size]]
            known.update(zip(new, (sum(values) / len(values) for values in zip(*every, strict=True)), strict=True))
            return [known[rank] for rank in ranks]

        ranks = choose_ranks(codec, task.shape, self.units, task.budgets, errors)
        return [
            [list(rank), round(error, DECIMALS), codec.parameters(task.shape, rank), *self._cost(task, rank)]
            for rank, error in zip(ranks, errors(ranks), strict=True)
        ]

    def _cost(self, task: _Task, rank: Rank) -> tuple[int | None, float | None, float | None]:
        try:
            cost = cost_setting(TensorSetting(task.format, task.shape, rank), self.tokens, self.mapper)
        except MisfitError:
            return None, None, None
        return sum(step.repeats * step.cost.gemm.macs for step in cost.steps), cost.energy_pJ, cost.seconds


@contextmanager
def _one_thread() -> Iterator[None]:
    """Results of sums depend on how many threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_own_worker: _Worker | None = None


def _start(*arguments: Any) -> None:
    """Make a pool process ready. It ends with its parent, also one that was killed."""
    global _own_worker
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _own_worker = _Worker(*arguments)


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(task: _Task) -> tuple[str, list[list[Any]]]:
    assert _own_worker is not None
    return task.name, _own_worker.run(task)


def _results(tasks: Sequence[_Task], worker: _Worker, workers: int) -> Iterator[tuple[str, list[list[Any]]]]:
    """Results of tasks, as they come."""
    if workers == 1 or len(tasks) < 2:
        with _one_thread():
            for task in tasks:
                yield task.name, worker.run(task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _start, worker.arguments) as pool:
        try:
            for future in as_completed([pool.submit(_work, task) for task in tasks]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _run(tasks: Sequence[_Task], worker: _Worker, workers: int, journal: Journal) -> dict[str, list[list[Any]]]:
    """Results of all tasks, by name: this process's share computed, the others' read from the journal."""
    known = journal.read()
    todo = sorted((task for task in tasks if task.name not in known), key=_expected_work, reverse=True)
    journal.wait()  # until every process knows what is left
    # Shares are taken from a list in one piece each: dealt out like this, they are about equal.
    dealt = [task for first in range(journal.processes) for task in todo[first :: journal.processes]]
    with journal.share(dealt) as own, tqdm(total=len(own), desc="Searching", unit="shape", disable=not journal.main) as bar:
        for name, rows in _results(own, worker, workers):
            journal.write(name, rows)
            known[name] = rows
            bar.update()
    journal.wait()
    return known | journal.read()


def _expected_work(task: _Task) -> tuple[float, str]:
    """Larger for what takes longer: the iterative format, large matrices, high orders."""
    return (task.format == "cp") * 10.0 + task.shape.order + task.shape.rows * task.shape.columns * 1e-6, task.name


def _complete(table: CostTable, tasks: Sequence[_Task], found: Mapping[str, list[list[Any]]]) -> CostTable:
    """The table with its candidates, those without a mapping counted.

    Raises:
        ValueError: if a size has no candidate.
    """
    candidates, sizes = [], dict(table.sizes)
    for task in tasks:
        rows = found[task.name]
        mapped = [row for row in rows if row[3] is not None]
        if len(mapped) < len(rows):
            sizes[task.size] = _count_unmapped(sizes[task.size], task.format, len(rows) - len(mapped))
        candidates += [Candidate(task.size, task.format, str(task.shape), tuple(rank), *rest) for rank, *rest in mapped]
    empty = set(sizes) - {candidate.size for candidate in candidates}
    if empty:
        raise ValueError(f"no candidate of size {min(empty)} has fewer parameters than the matrix and fits {table.accelerator}")
    return replace(table, sizes=sizes, candidates=tuple(candidates))


def _count_unmapped(info: SizeInfo, format: str, count: int) -> SizeInfo:
    space = info.spaces[format]
    dropped = {**space["dropped"], NO_MAPPING: space["dropped"].get(NO_MAPPING, 0) + count}
    return replace(info, spaces={**info.spaces, format: {**space, "dropped": dropped}})
