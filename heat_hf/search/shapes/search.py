"""Level 1: fill the cost table, over processes and machines, resumable (paper, section 2.2.1)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn
from tqdm.auto import tqdm

from heat_hf.encoders.checkpoints.key import require_same_key
from heat_hf.encoders.checkpoints.names import checkpoint_name
from heat_hf.encoders.linears import encoder_linears, weights_digest
from heat_hf.formats import FORMATS, JOINT, OPERATORS, get_format
from heat_hf.formats.decomposition import require_finite
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.analytic import cost_model
from heat_hf.hardware.protocol import CostModel
from heat_hf.search.journal import Journal
from heat_hf.search.parallel import jobs
from heat_hf.search.shapes.space import ShapeSpace, check_orders, long_modes, shape_space
from heat_hf.search.shapes.table import Candidate, CostTable, SizeInfo
from heat_hf.search.shapes.worker import Row, Task, Worker, require_picklable, results

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PER_ORDER = 160  # parameter budgets of the shapes of one order and format, shared evenly
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
            if name in JOINT | OPERATORS:
                raise ValueError(f"{name} has no shapes to search; known are {', '.join(FORMATS)}")
            get_format(name)
        for option in ("top_k", "budgets", "layers"):
            value = getattr(self, option)
            if not (option == "layers" and value is None) and (type(value) is not int or value < 1):
                raise ValueError(f"{option} must be a positive integer, got {value!r}")


def search_shapes(
    model: PreTrainedModel,
    accelerator: str | os.PathLike[str] | CostModel = "simba-l",
    tokens: int = 128,
    search: ShapeSearch | None = None,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    modules: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> CostTable:
    """The cost table of a model's encoder linears: every candidate shape and rank, with its error and its cost.

    Under `accelerate launch` every process takes a part of the shapes; the table is the same for any number of processes and
    workers. What is done is kept in the folder OUTPUT.partial until the table is complete: a search that was interrupted goes
    on from there, also with another number of processes. joblib hands the shapes out, so its backends may be clusters.

    Args:
        model: a dense model.
        accelerator: a shipped name, a .yaml file, or any cost model; with several workers, one that can be pickled.
        tokens: tokens of a forward pass: batch size × sequence length.
        search: what to search.
        output: Parquet file to write. If it is there already, from the same search of the same weights, it is returned.
        overwrite: whether to replace another table there, and what is left of another search.
        workers: processes; None for what `joblib.parallel_config` says, 1 where it says nothing.
        cache: folder in which mappings are kept for other searches.
        modules: which linears, see `encoder_linears`.
        exclude: which not.

    Raises:
        ValueError: if no candidate is left, weights are not finite, `output` holds another search, or the cost model cannot be
            pickled for other processes.
    """
    search = search or ShapeSearch()
    if tokens < 1 or (workers is not None and workers < 1):
        raise ValueError(f"tokens and workers must be at least 1, got {tokens} and {workers}")
    costs = cost_model(accelerator, cache=cache)
    if jobs(workers) > 1:
        require_picklable(costs)
    sizes = _by_size(encoder_linears(model, modules, exclude))
    table, spaces = _empty_table(model, costs, tokens, search, sizes)
    journal = Journal(None if output is None else Path(output), table.key, overwrite)
    if output is not None and Path(output).exists() and not overwrite:
        existing = CostTable.load(output)
        require_same_key(existing.key, table.key, str(output))
        journal.clear()
        return existing
    tasks = [task for (size, format), space in spaces.items() for task in _tasks(size, format, space, search.budgets)]
    worker = Worker(_sampled(sizes, search), costs, tokens, search.seed)
    with journal:
        done = _complete(table, tasks, _run(tasks, worker, workers, journal))
        if output is not None and journal.main:
            done.save(output)
    return done


def _tasks(size: MatrixSize, format: str, space: ShapeSpace, least: int) -> list[Task]:
    of_order = Counter(long_modes(shape) for shape in space.shapes)
    return [Task(size, format, shape, max(least, PER_ORDER // of_order[long_modes(shape)])) for shape in space.shapes]


def _by_size(linears: Mapping[str, nn.Linear]) -> dict[MatrixSize, dict[str, nn.Linear]]:
    sizes: dict[MatrixSize, dict[str, nn.Linear]] = {}
    for name, linear in linears.items():
        require_finite(f"the weight of {name}", linear.weight)
        sizes.setdefault(MatrixSize.of(linear), {})[name] = linear
    return sizes


def _sample_names(linears: Mapping[str, nn.Linear], layers: int | None) -> tuple[str, ...]:
    """`layers` names, spread evenly: the middles of as many equal parts."""
    names = list(linears)
    count = len(names) if layers is None else min(layers, len(names))
    return tuple(names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count))


def _sampled(sizes: Mapping[MatrixSize, Mapping[str, nn.Linear]], search: ShapeSearch) -> dict[MatrixSize, list[Tensor]]:
    return {
        size: [linears[name].weight.detach().float().cpu() for name in _sample_names(linears, search.layers)]
        for size, linears in sizes.items()
    }


def _empty_table(
    model: PreTrainedModel,
    costs: CostModel,
    tokens: int,
    search: ShapeSearch,
    sizes: Mapping[MatrixSize, Mapping[str, nn.Linear]],
) -> tuple[CostTable, dict[tuple[MatrixSize, str], ShapeSpace]]:
    """The table without candidates, and the space of shapes of every size and format."""
    spaces: dict[tuple[MatrixSize, str], ShapeSpace] = {}
    infos: dict[str, SizeInfo] = {}
    for size, linears in sizes.items():
        check_orders(*size, search.orders)
        by_format = {format: shape_space(format, *size, search.orders, search.top_k) for format in search.formats}
        if not any(space.shapes for space in by_format.values()):
            raise ValueError(f"no candidate shape is left for {size}: ask for other formats or orders, or a larger top_k")
        spaces |= {(size, format): space for format, space in by_format.items() if space.shapes}
        dense = costs.linear(size, tokens)
        infos[str(size)] = SizeInfo(
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
                for format, space in by_format.items()
            },
        )
    options = {
        "formats": list(search.formats),
        "orders": None if search.orders is None else list(search.orders),
        **{name: getattr(search, name) for name in ("top_k", "budgets", "layers", "seed")},
    }
    return CostTable(checkpoint_name(model), costs.name, costs.digest, tokens, options, infos, ()), spaces


def require_fit(table: CostTable, path: str, linears: Mapping[str, nn.Linear], costs: CostModel, tokens: int) -> None:
    """Make sure that a table was made of these weights, by this cost model for as many tokens.

    Raises:
        ValueError: if it was not; the message names what differs.
    """
    wanted = {
        "accelerator_digest": costs.digest,
        "tokens": tokens,
        "digests": {str(size): weights_digest(layers) for size, layers in _by_size(linears).items()},
    }
    require_same_key(table.key, wanted, path)


def _run(tasks: Sequence[Task], worker: Worker, workers: int | None, journal: Journal) -> dict[str, list[Row]]:
    """Results of all tasks, by name: this process's share computed, the others' read from the journal."""
    rows = journal.read(Row)
    todo = sorted((task for task in tasks if task.name not in rows), key=_expected_work, reverse=True)
    journal.wait()  # until every process knows what is left
    # Shares are taken from a list in one piece each: dealt out like this, they are about equal.
    dealt = [task for first in range(journal.processes) for task in todo[first :: journal.processes]]
    with journal.share(dealt) as mine, tqdm(total=len(mine), desc="Searching", unit="shape", disable=not journal.main) as bar:
        for name, done in results(mine, worker, workers):
            journal.write(name, done)
            rows[name] = done
            bar.update()
    journal.wait()
    return rows | journal.read(Row)


def _expected_work(task: Task) -> tuple[float, str]:
    """Larger for what takes longer: the iterative format, large matrices, high orders."""
    return get_format(task.format).iterative * 10.0 + task.shape.order + task.shape.rows * task.shape.columns * 1e-6, task.name


def _complete(table: CostTable, tasks: Sequence[Task], rows_by_task: Mapping[str, list[Row]]) -> CostTable:
    """The table with its candidates, those without a mapping counted.

    Raises:
        ValueError: if a size has no candidate.
    """
    candidates, sizes = [], dict(table.sizes)
    for task in tasks:
        rows, size = rows_by_task[task.name], str(task.size)
        candidates += [_candidate(task, row) for row in rows if row.seconds is not None]
        unmapped = sum(row.seconds is None for row in rows)
        if unmapped:
            sizes[size] = _count_unmapped(sizes[size], task.format, unmapped)
    empty = set(sizes) - {candidate.size for candidate in candidates}
    if empty:
        raise ValueError(f"no candidate of size {min(empty)} has fewer parameters than the matrix and fits {table.accelerator}")
    return replace(table, sizes=sizes, candidates=tuple(candidates))


def _candidate(task: Task, row: Row) -> Candidate:
    assert row.macs is not None and row.seconds is not None
    figures = row.error, row.parameters, row.macs, row.energy_pJ, row.seconds
    return Candidate(str(task.size), task.format, str(task.shape), tuple(row.rank), *figures)


def _count_unmapped(info: SizeInfo, format: str, count: int) -> SizeInfo:
    space = info.spaces[format]
    dropped = {**space["dropped"], NO_MAPPING: space["dropped"].get(NO_MAPPING, 0) + count}
    return replace(info, spaces={**info.spaces, format: {**space, "dropped": dropped}})
