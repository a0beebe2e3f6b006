"""Level 2: a rank for every tensor, by any method, within a budget of the whole network (paper, section 2.2.2)."""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from heat_hf.compression.config import TARGETS, HeatConfig
from heat_hf.encoders.batches import Batch, data_digest
from heat_hf.encoders.checkpoints.storage import atomic_file
from heat_hf.encoders.linears import encoder_linears, matrix_size, swap_module
from heat_hf.encoders.statistics import collect_output_moments, collect_second_moments
from heat_hf.formats import FORMATS, get_format
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.hardware import load_accelerator
from heat_hf.reports.ranks import RankRecord, Variant
from heat_hf.search.journal import Journal, require_same_key
from heat_hf.search.ranks.budgets import Budget, budgets, network_costs, rule_settings
from heat_hf.search.ranks.evolution import Evolution, evolve, require_reachable
from heat_hf.search.ranks.names import MIXED
from heat_hf.search.ranks.predictor import AccuracyPredictor, Fidelity
from heat_hf.search.ranks.sensitivity import Shapes, allocate_ranks, sensitivity_curves
from heat_hf.search.ranks.settings import choose_shape
from heat_hf.search.ranks.space import Choice, Costs, RankSpace, Settings, setting_options, undominated
from heat_hf.search.ranks.supernet import RankSuperNet, SuperNetArguments, SuperNetTrainer, sample_subnets
from heat_hf.search.shapes.ranks import rank_units
from heat_hf.search.shapes.search import weights_digest
from heat_hf.search.shapes.table import CostTable

Quality = Callable[[PreTrainedModel], float]
WEIGHTS = "supernet.safetensors"


@dataclass(frozen=True)
class Search:
    """All a search needs.

    Attributes:
        model: the dense model.
        config: what is asked for.
        costs: of the model's tensors.
        units: widths of the accelerator.
        shapes: (format, matrix size) → shape.
        moments: C and G of every tensor on calibration data; None without it.
    """

    model: PreTrainedModel
    config: HeatConfig
    costs: Costs
    units: tuple[int, ...]
    shapes: Shapes
    moments: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None

    @classmethod
    def prepare(
        cls,
        model: PreTrainedModel,
        config: HeatConfig,
        calibration: Sequence[Batch] | None,
        table: CostTable | None = None,
        costs: Costs | None = None,
    ) -> Search:
        """Look at the model and the calibration data."""
        linears = encoder_linears(model, config.modules, config.exclude)
        sizes = dict.fromkeys(map(matrix_size, linears.values()))
        formats = tuple(FORMATS) if config.decomposition == MIXED else (config.decomposition,)
        shapes = {(format, size): choose_shape(config, format, size, table) for format in formats for size in sizes}
        units = () if config.accelerator is None else rank_units(load_accelerator(config.accelerator))
        moments = None
        if calibration is not None:
            batches = list(calibration)
            moments = (
                collect_second_moments(model, linears, batches),
                collect_output_moments(model, linears, batches, config.seed),
            )
        return cls(model, config, costs or network_costs(model, config), units, shapes, moments)

    @property
    def linears(self) -> Mapping[str, Any]:
        """The tensors' dense layers."""
        return encoder_linears(self.model, self.config.modules, self.config.exclude)

    def sensitivity(self) -> tuple[RankSpace, list[list[float]]]:
        """See `sensitivity_curves`."""
        if self.moments is None:
            raise ValueError("rank_search='sensitivity' needs a calibration_dataset")
        solver, execution = self.config.solver, self.config.execution
        return sensitivity_curves(self.linears, *self.moments, self.costs, self.shapes, self.units, solver, execution)

    def supernet_space(self, arguments: SuperNetArguments) -> RankSpace:
        """Options of the SuperNet's tensors: one format, no dense matrix."""
        options: dict[str, Any] = {}
        for name, linear in self.linears.items():
            shape = self.shapes[self.config.decomposition, matrix_size(linear)]

            def errors(ranks: Any, linear: Any = linear, shape: Any = shape) -> list[float]:  # noqa: ANN401
                codec = get_format(self.config.decomposition)
                return codec.rank_errors(linear.weight, shape, ranks, self.config.solver)

            found = setting_options(self.config.decomposition, shape, self.units, errors, execution=self.config.execution)
            options[name] = tuple(setting for setting, _ in undominated(self.costs, name, found))
        return RankSpace(self.costs, options).within(arguments.least_share, arguments.largest_share)

    def supernet_model(self, space: RankSpace) -> PreTrainedModel:
        """A copy of the model whose tensors have, for each rank index, the largest rank of the space."""
        model = copy.deepcopy(self.model)
        for name, linear in encoder_linears(model, self.config.modules, self.config.exclude).items():
            settings = [setting for setting in space.options[name] if setting is not None]
            largest = tuple(map(max, zip(*(setting.rank for setting in settings), strict=True)))
            codec, shape = settings[-1].codec, settings[-1].shape
            setting = replace(settings[-1], rank=codec.clip_rank(shape, largest))
            used = self.moments[: 1 + self.config.uses_gradients] if self.moments is not None else ()
            moments = [own[name] for own in used]
            found = codec.decompose(linear.weight, shape, setting.rank, self.config.solver, *moments)
            swap_module(model, linear, FactorizedLinear.from_linear(linear, setting, found, self.config.tokens))
        return model


def train_supernet(
    supernet: RankSuperNet,
    teacher: PreTrainedModel,
    arguments: SuperNetArguments,
    rows: Any,  # noqa: ANN401
    collator: Any,  # noqa: ANN401
    folder: Path,
) -> None:
    """Train a SuperNet, or go on where an interrupted training stopped, or load it if it is done.

    Args:
        supernet: trained in place.
        teacher: the dense model.
        arguments: of Trainer; checkpoints go to `folder`.
        rows: tokenized training rows.
        collator: of Trainer.
        folder: keeps checkpoints while it trains, then `supernet.safetensors`.
    """
    from safetensors.torch import load_file, save_file
    from transformers.trainer_utils import get_last_checkpoint

    done = folder / WEIGHTS
    cores = dict(supernet.model.named_parameters())
    if not done.exists():
        checkpoints = str(folder / "checkpoints")
        own = replace(arguments, output_dir=checkpoints)
        trainer = SuperNetTrainer(supernet, teacher, args=own, train_dataset=rows, data_collator=collator)
        last = get_last_checkpoint(checkpoints) if Path(checkpoints).is_dir() else None
        trainer.train(resume_from_checkpoint=last)
        if trainer.is_world_process_zero():
            with atomic_file(done) as file:
                save_file({name: parameter.detach().contiguous() for name, parameter in cores.items()}, file)
            shutil.rmtree(checkpoints, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
    for name, tensor in load_file(done).items():
        cores[name].data.copy_(tensor)


def evaluate_subnets(supernet: RankSuperNet, choices: Sequence[Choice], quality: Quality, journal: Journal) -> list[float]:
    """Quality of SubNets with the SuperNet's cores, those a journal has not got yet; each process takes a share."""
    names = [",".join(map(str, choice)) for choice in choices]
    known = journal.read()
    todo = [place for place, name in enumerate(names) if name not in known]
    journal.wait()  # until every process knows what is left
    with journal.share(todo) as own:
        for place in tqdm(own, desc="Evaluating SubNets", unit="SubNet", disable=not journal.main):
            supernet.set(choices[place])
            known[names[place]] = [[quality(supernet.model)]]
            journal.write(names[place], known[names[place]])
    journal.wait()
    known |= journal.read()
    return [known[name][0][0] for name in names]


def search_ranks(
    model: PreTrainedModel,
    config: HeatConfig,
    calibration: Sequence[Batch] | None = None,
    table: CostTable | None = None,
    training: tuple[Any, Any] | None = None,
    quality: Quality | None = None,
    arguments: SuperNetArguments | None = None,
    evolution: Evolution | None = None,
    output: Path | None = None,
    overwrite: bool = False,
) -> RankRecord:
    """Ranks of every tensor, for every budget of the configuration, by its `rank_search`.

    Args:
        model: a dense model; not changed.
        config: method, formats, budgets, seed.
        calibration: batches, for "sensitivity" and the SuperNet's start.
        table: cost table of Level 1, for shapes.
        training: tokenized rows and a collator, for "supernet".
        quality: score of a network between 0 and 1, for "supernet".
        arguments: for "supernet".
        evolution: for "supernet".
        output: JSON file to write; an interrupted search goes on from OUTPUT.partial. If it is there already, from the same
            search, it is returned.
        overwrite: whether to replace another record there.

    Raises:
        ValueError: if a budget cannot be reached, data is missing, or `output` holds another search.
    """
    costs = network_costs(model, config)
    limits = budgets(config, costs)
    arguments = arguments or SuperNetArguments(seed=config.seed)
    evolution = evolution or Evolution(seed=config.seed)
    _require_data(config, calibration, training, quality)
    job = _Job(model, config, calibration, table, costs, limits, training, quality, arguments, evolution)
    key = _key(job)
    if output is not None and output.exists() and not overwrite:
        found = RankRecord.load(output)
        require_same_key(found.key, key, str(output))
        return found
    started = time.perf_counter()
    find = {"sensitivity": _by_sensitivity, "supernet": _by_supernet}.get(config.rank_search, _by_rule)
    solve = find(job)
    # Only the SuperNet takes long enough to be resumed. What cannot work has been refused by now, with nothing written.
    resumable = Journal(output, key, overwrite) if config.rank_search == "supernet" else nullcontext()
    with resumable as journal:
        variants, fidelity = solve(journal)
        record = RankRecord(
            str(model.config._name_or_path or type(model).__name__),
            config.rank_search,
            key,
            tuple(variants),
            None if fidelity is None else asdict(fidelity),
            round(time.perf_counter() - started, 1),
        )
        if output is not None and (journal is None or journal.main):
            record.save(output)
    return record


Solve = Callable[[Journal | None], tuple[list[Variant], Fidelity | None]]


@dataclass(frozen=True)
class _Job:
    """The arguments of `search_ranks`, and what follows from them."""

    model: PreTrainedModel
    config: HeatConfig
    calibration: Sequence[Batch] | None
    table: CostTable | None
    costs: Costs
    limits: Sequence[Budget]
    training: tuple[Any, Any] | None
    quality: Quality | None
    arguments: SuperNetArguments
    evolution: Evolution

    def search(self) -> Search:
        return Search.prepare(self.model, self.config, self.calibration, self.table, self.costs)

    def variants(self, find: Callable[[Budget], tuple[Settings, dict[str, Any]]]) -> list[Variant]:
        """One for each budget, named from the smallest."""
        variants, dense = [], self.costs.dense
        for place, budget in enumerate(self.limits, start=1):
            settings, quality = find(budget)
            total = self.costs.total(settings)
            edp_ratio = 1.0 if self.costs.mapper is None else total.edp / dense.edp
            params_ratio = total.parameters / dense.parameters
            by = (f"HEAT-a{place}", self.config.rank_search, self.config.decomposition, budget.kind, budget.asked)
            variants.append(Variant(*by, dict(settings), edp_ratio, params_ratio, total.seconds, **quality))
        return variants

    def require_reachable(self, space: RankSpace) -> None:
        """Raise ValueError if a budget is below what the smallest options need."""
        for budget in self.limits:
            if budget.kind is not None and budget.limit is not None:
                require_reachable(space, budget.kind, budget.limit)


def _by_rule(job: _Job) -> Solve:
    def find(budget: Budget) -> tuple[Settings, dict[str, Any]]:
        assert budget.kind is not None and budget.limit is not None
        return rule_settings(job.model, job.config, job.costs, job.table, budget.kind, budget.limit), {}

    variants = job.variants(find)
    return lambda _: (variants, None)


def _by_sensitivity(job: _Job) -> Solve:
    space, losses = job.search().sensitivity()
    job.require_reachable(space)

    def find(budget: Budget) -> tuple[Settings, dict[str, Any]]:
        assert budget.kind is not None and budget.limit is not None
        choice, lost = allocate_ranks(space, losses, budget.kind, budget.limit)
        return space.settings(choice), {"expected_divergence": lost}

    return lambda _: (job.variants(find), None)


def _by_supernet(job: _Job) -> Solve:
    assert job.training is not None and job.quality is not None
    training, quality = job.training, job.quality
    search, seed = job.search(), job.config.seed
    space = search.supernet_space(job.arguments)
    job.require_reachable(space)

    def solve(journal: Journal | None) -> tuple[list[Variant], Fidelity]:
        assert journal is not None
        supernet = RankSuperNet(search.supernet_model(space), space, seed=seed)
        with _folder(journal) as folder:
            train_supernet(supernet, job.model, job.arguments, *training, folder)
            choices = sample_subnets(supernet, job.arguments.subnets, seed)
            accuracies = evaluate_subnets(supernet, choices, quality, journal)
        predictor = AccuracyPredictor(space, seed)
        fidelity = predictor.fit(choices, accuracies)

        def find(budget: Budget) -> tuple[Settings, dict[str, Any]]:
            best = evolve(space, predictor.predict, budget.kind, budget.limit, job.evolution)
            return space.settings(best.choice), {"predicted_accuracy": best.accuracy}

        return job.variants(find), fidelity

    return solve


@contextmanager
def _folder(journal: Journal) -> Iterator[Path]:
    """Where a SuperNet is kept while it trains: beside the journal, or for this run only."""
    if journal.folder is not None:
        yield journal.folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _require_data(config: HeatConfig, calibration: object, training: object, quality: object) -> None:
    if config.rank_search == "sensitivity" and calibration is None:
        raise ValueError("rank_search='sensitivity' needs a calibration_dataset: sentences like those the model will see")
    if config.rank_search == "supernet" and (training is None or quality is None):
        raise ValueError("rank_search='supernet' needs a train_dataset to distil on and an eval_dataset to score SubNets")


def _key(job: _Job) -> dict[str, Any]:
    """What the result of a search depends on."""
    config = job.config
    own = ("decomposition", "rank_search", *TARGETS, "tokens", "shape", "cost_table", "seed")
    key: dict[str, Any] = {
        "weights": weights_digest(encoder_linears(job.model, config.modules, config.exclude)),
        "accelerator_digest": None if config.accelerator is None else load_accelerator(config.accelerator).digest,
        "calibration": None if job.calibration is None else data_digest(job.calibration),
        **{name: getattr(config, name) for name in own},
    }
    if config.rank_search == "supernet" and job.training is not None:
        names = ["max_steps", "num_train_epochs", "learning_rate", "per_device_train_batch_size", "subnets"]
        names += ["gradient_accumulation_steps", "hidden_weight", "least_share", "largest_share"]
        key["supernet"] = {name: getattr(job.arguments, name) for name in names}
        key["evolution"] = asdict(job.evolution)
        key["training"] = data_digest(job.training[0])
        key["evaluation"] = data_digest(getattr(job.quality, "batches", ()))
    return key
