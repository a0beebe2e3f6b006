"""Any cost model is obeyed by every search: choices follow its figures, with energies or without."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_model, token_ids

from heat_hf import HeatCompressor, HeatConfig, TensorSetting, TensorShape
from heat_hf.compression.job import Job
from heat_hf.formats.plan import ContractionPlan
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import Cost, CostModel, Gemm
from heat_hf.search.ranks.curves import Curves, allocate_ranks
from heat_hf.search.ranks.evolution import Evolution, evolve
from heat_hf.search.ranks.methods import RANK_SEARCHES
from heat_hf.search.ranks.problem import Training
from heat_hf.search.ranks.space import Costs, Matrix, RankSpace, undominated
from heat_hf.search.ranks.supernet import SuperNetArguments
from heat_hf.search.shapes.pareto import front, select
from heat_hf.search.shapes.search import ShapeSearch, search_shapes
from heat_hf.search.shapes.table import CostTable
from heat_hf.search.shapes.worker import Task, Worker

BATCHES = [{"input_ids": token_ids(24, 6)}]
ROWS = [{"input_ids": row.tolist(), "attention_mask": [1] * 6} for row in token_ids(64, 6)]
ARGUMENTS = SuperNetArguments(
    max_steps=2, per_device_train_batch_size=4, subnets=24, train_sampling_strategy="sequential", use_cpu=True,
    disable_tqdm=True, logging_strategy="no", warmup_steps=1, least_share=0.1, largest_share=0.95,
)  # fmt: skip
FEW = ShapeSearch(formats=("low_rank", "cp"), orders=(2,), budgets=4)


@dataclass
class Macs(CostModel):
    """Sublinear in multiply-accumulates, in seconds alone; one format, or one rank, of one size or of all, may be dear."""

    dear_format: str = ""
    dear_rank: int = 0
    dear_size: MatrixSize | None = None
    plans_take: float = 1.0
    units: tuple[int, ...] = ()

    name = "macs"

    @property
    def digest(self) -> str:
        return repr(self)

    def gemm(self, gemm: Gemm) -> Cost:
        return Cost(gemm.macs**0.9 * 1e-9)

    def plan(self, plan: ContractionPlan) -> Cost:
        return Cost(self.plans_take * sum(step.macs**0.9 for step in plan.steps) * 1e-9)

    def execution(self, setting: TensorSetting, tokens: int) -> tuple[ContractionPlan, Cost]:
        plan, cost = super().execution(setting, tokens)
        sized = self.dear_size in (None, size_of(setting))
        dear = setting.format == self.dear_format or (sized and self.dear_rank in setting.rank)
        return plan, cost * (1000 if dear else 1)


class Joules(Macs):
    """With energies, as many pJ as femtoseconds."""

    def gemm(self, gemm: Gemm) -> Cost:
        seconds = super().gemm(gemm).seconds
        return Cost(seconds, 1e15 * seconds)

    def plan(self, plan: ContractionPlan) -> Cost:
        seconds = super().plan(plan).seconds
        return Cost(seconds, 1e15 * seconds)


def size_of(setting: TensorSetting) -> MatrixSize:
    return MatrixSize(setting.shape.rows, setting.shape.columns)


class Size:
    """A quality that only depends on how large a network is, so that the predictor can be trusted."""

    def __call__(self, model: torch.nn.Module) -> float:
        shares = [module.active.ratio for module in model.modules() if hasattr(module, "active")]
        return 0.5 + 0.4 * sum(shares) / len(shares)


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def setting(rank: int) -> TensorSetting:
    return TensorSetting("low_rank", TensorShape.matrix(64, 96), (rank,))


def space_of(model: CostModel, ranks: tuple[int, ...] = (4, 8, 16, 24)) -> RankSpace:
    costs = Costs({name: Matrix(MatrixSize(64, 96)) for name in "ab"}, 32, model)
    return RankSpace(costs, dict.fromkeys("ab", tuple(map(setting, ranks))))


def ranks_of(settings: dict) -> set[int]:
    return {own.rank[0] for own in settings.values()}


def test_what_follows_from_two_methods() -> None:
    model, size = Macs(), MatrixSize(64, 96)
    plan = setting(4).plan(32)
    assert model.linear(size, 32) == model.gemm(Gemm(32, 64, 96))
    assert model.linears([size], 32) == [model.linear(size, 32)]
    assert model.plans([plan, plan]) == [model.plan(plan)] * 2
    assert model.setting(setting(4), 32).seconds <= model.plan(plan).seconds
    assert isinstance(model, CostModel)


def test_a_cost_without_energy_has_no_edp() -> None:
    cost = Cost(2.0)
    assert cost.objective == 2.0
    assert (cost + Cost(1.0, 5.0)) == Cost(3.0)
    assert cost * 3 == Cost(6.0)
    assert Cost(2.0, 3e12).edp == Cost(2.0, 3e12).objective == 6.0
    with pytest.raises(ValueError, match="there is no EDP: use target_latency_ratio"):
        _ = cost.edp


@pytest.mark.parametrize("kind", [Macs, Joules])
def test_level_1_has_its_figures(kind: type[Macs], tmp_path: Path) -> None:
    model = kind()
    table = search_shapes(small_model("bert", head=False), model, 32, FEW)
    for size, info in table.sizes.items():
        assert info.dense_cost == model.linear(MatrixSize.parse(size), 32)
    assert all(candidate.cost == model.setting(candidate.setting, 32) for candidate in table.candidates)
    assert (table.accelerator, table.accelerator_digest) == ("macs", model.digest)
    table.save(tmp_path / "t.parquet")
    assert CostTable.load(tmp_path / "t.parquet") == table
    for size in table.sizes:
        assert front(table.of(size))
        assert select(table.of(size), table.sizes[size], max_ratio=0.9).ratio <= 0.9


@pytest.mark.parametrize("kind", [Macs, Joules])
@pytest.mark.parametrize(("dear", "chosen"), [("low_rank", "cp"), ("cp", "low_rank")])
def test_level_1_leaves_what_is_dear(kind: type[Macs], dear: str, chosen: str) -> None:
    """CP of order 2 is low rank: the two differ in nothing but what the model says of them."""
    table = search_shapes(small_model("bert", head=False), kind(dear_format=dear), 32, FEW)
    for size, info in table.sizes.items():
        assert select(table.of(size), info).format == chosen
        assert select(table.of(size), info, max_ratio=0.9).format == chosen


def test_level_1_asks_for_ranks_in_its_units() -> None:
    """Widths of 7 come from the model, from nowhere else."""
    ranks = [
        {
            candidate.rank[0]
            for candidate in search_shapes(small_model("bert", head=False), Macs(units=units), 32, FEW).candidates
        }
        for units in ((), (7,))
    ]
    assert sum(rank % 7 == 0 for rank in ranks[1]) > sum(rank % 7 == 0 for rank in ranks[0])


def test_other_processes_need_a_model_that_can_be_pickled(tmp_path: Path) -> None:
    encoder, few = small_model("bert", head=False), ShapeSearch(formats=("low_rank",), budgets=2)

    class Here(Macs):
        """Not importable, so other processes cannot have it."""

    assert search_shapes(encoder, Here(), 32, few).candidates == search_shapes(encoder, Macs(), 32, few).candidates
    with pytest.raises(ValueError, match="the cost model macs cannot be pickled for other processes: use workers=1"):
        search_shapes(encoder, Here(), 32, few, output=tmp_path / "t.parquet", workers=2)
    assert not list(tmp_path.iterdir()), "refused before any work"
    task = Task(MatrixSize(24, 48), "low_rank", TensorShape.matrix(24, 48), 3)
    worker = Worker({task.size: [torch.ones(24, 48)]}, Macs(dear_rank=2), 32, seed=0)
    assert Worker(*pickle.loads(pickle.dumps(worker.arguments))).run(task) == worker.run(task)


def test_an_edp_budget_of_level_1_needs_energies() -> None:
    table = search_shapes(small_model("bert", head=False), Macs(), 32, FEW)
    (size, info), *_ = table.sizes.items()
    with pytest.raises(ValueError, match="there is no EDP"):
        select(table.of(size), info, max_edp=1.0)


@pytest.mark.parametrize("kind", [Macs, Joules])
def test_allocation_leaves_what_is_dear(kind: type[Macs]) -> None:
    """Of four ranks the largest loses least and the budget is ample: it is taken, unless the model makes it dear."""
    losses = tuple((0.9, 0.5, 0.2, 0.1) for _ in "ab")
    for dear, largest in ((0, 24), (24, 16), (16, 24)):
        space = space_of(kind(dear_rank=dear))
        budget = 1.2 * space.costs.dense.of("seconds")
        settings, lost = allocate_ranks(Curves(space, losses), "seconds", budget)
        assert ranks_of(settings) == {largest}
        assert lost == pytest.approx({24: 0.2, 16: 0.4}[largest])
        assert space.costs.total(settings).of("seconds") <= budget


@pytest.mark.parametrize("kind", [Macs, Joules])
def test_evolution_leaves_what_is_dear(kind: type[Macs]) -> None:
    """Within a budget, and by the paper's objective, which takes the time where there is no energy."""
    options = Evolution(population=16, generations=10)
    for dear in (0, 24):
        space = space_of(kind(dear_rank=dear))

        def accuracy(choices: np.ndarray) -> np.ndarray:
            return 0.5 + 0.1 * choices.mean(-1)

        within = evolve(space, accuracy, "seconds", 1.2 * space.costs.dense.of("seconds"), options)
        free = evolve(space, accuracy, options=options)
        for found in (within, free):
            assert (24 in ranks_of(space.settings(found.choice))) == (dear == 0)
        every = np.array(np.meshgrid(range(4), range(4))).reshape(2, -1).T
        ratios = (
            np.array([space.costs.total(space.settings(c)).cost.objective for c in every]) / space.costs.dense.cost.objective
        )
        assert free.objective == pytest.approx(((1 - accuracy(every)) * ratios**0.25).min())


def test_options_are_compared_by_its_figures() -> None:
    costs = Costs({"a": Matrix(MatrixSize(64, 96))}, 32, Macs(dear_rank=8))
    kept = undominated(costs, "a", [(setting(8), 0.5), (setting(9), 0.5), (setting(4), 0.7), (setting(5), 0.7)])
    assert [own.rank[0] for own, _ in kept] == [4, 8, 9], "rank 8 is smaller than 9, and slower: both stay"


def dense_seconds(model: CostModel) -> float:
    """Of the small BERT's two blocks, 16 tokens."""
    return 2 * sum(model.linear(MatrixSize(*size), 16).seconds for size in [(24, 24)] * 4 + [(48, 24), (24, 48)])


def job(method: str, model: CostModel, bert: torch.nn.Module | None = None, **target: float) -> Job:
    config = HeatConfig(rank_search=method, sequence_length=16, max_sweeps=5, **target)
    training = Training(ROWS, collate, Size(), ARGUMENTS, Evolution(population=32, generations=5))
    return Job(bert or small_model("bert"), config, BATCHES, given_cost_model=model, training=training)


@pytest.mark.parametrize("method", RANK_SEARCHES)
def test_every_method_keeps_its_budget(method: str) -> None:
    """The same time, by a model for which factorized layers take half as long again: fewer parameters are left."""
    kept = []
    for plans_take in (1.0, 1.5):
        model = Macs(plans_take=plans_take)
        limit = 0.95 * dense_seconds(model)
        task = job(method, model, target_latency=limit)
        (variant,) = task.search().variants
        spent = [
            model.linear(MatrixSize.of(task.linears[name]), 16) if own is None else model.setting(own, 16)
            for name, own in variant.settings.items()
        ]
        assert variant.seconds == pytest.approx(sum(cost.seconds for cost in spent))
        assert variant.seconds <= limit
        kept.append(variant.params_ratio)
    assert kept[1] < kept[0]


@pytest.mark.parametrize("method", RANK_SEARCHES)
def test_every_method_leaves_a_rank_that_is_dear(method: str) -> None:
    """The rank that a size gets is made a thousand times as slow for that size alone: it gets another."""
    limit = 0.95 * dense_seconds(Macs())
    (before,) = job(method, Macs(), target_latency=limit).search().variants
    chosen = next(setting for setting in before.settings.values() if setting is not None)
    dear = Macs(dear_rank=chosen.rank[0], dear_size=size_of(chosen))
    (after,) = job(method, dear, target_latency=limit).search().variants
    settings = [setting for setting in after.settings.values() if setting is not None]
    assert settings and not any(size_of(s) == dear.dear_size and dear.dear_rank in s.rank for s in settings)
    assert after.seconds <= limit


@pytest.mark.parametrize("method", RANK_SEARCHES)
def test_every_method_keeps_a_budget_of_parameters(method: str) -> None:
    (variant,) = job(method, Macs(), target_params_ratio=0.7).search().variants
    assert variant.params_ratio <= 0.7
    assert (variant.measure, variant.edp_ratio) == ("time", pytest.approx(variant.seconds / dense_seconds(Macs())))


@pytest.mark.parametrize("method", RANK_SEARCHES)
def test_an_edp_budget_is_refused_before_any_work(method: str) -> None:
    class NoPlans(Macs):
        def plan(self, plan: ContractionPlan) -> Cost:
            raise AssertionError("a setting is costed")

    def run(*_: object) -> None:
        raise AssertionError("the model is run")

    bert = small_model("bert")
    bert.register_forward_pre_hook(run)
    request = job(method, NoPlans(), bert, target_edp_ratio=0.5)
    for work in (request.search, request.chosen):
        with pytest.raises(ValueError, match="the cost model macs has none: use target_latency_ratio"):
            work()


@pytest.mark.parametrize("method", ["sensitivity", "uniform", "pareto"])
def test_an_edp_budget_needs_energies(method: str) -> None:
    compressor = HeatCompressor(small_model("bert"))
    config = HeatConfig(rank_search=method, target_edp_ratio=0.5, sequence_length=16)
    with pytest.raises(
        ValueError, match="target_edp_ratio needs energies, and the cost model macs has none: use target_latency_ratio"
    ):
        compressor.search_ranks(config, BATCHES, cost_model=Macs())
    record = compressor.search_ranks(config, BATCHES, cost_model=Joules())
    assert record.variants[0].edp_ratio <= 0.5


def test_plan_search_and_compression_agree(tmp_path: Path) -> None:
    model, compressor = Macs(plans_take=1.5), HeatCompressor(small_model("bert"))
    limit = 0.95 * dense_seconds(model)
    config = HeatConfig(rank_search="sensitivity", target_latency=limit, sequence_length=16)
    plan = compressor.plan(config, BATCHES, cost_model=model)
    (variant,) = compressor.search_ranks(config, BATCHES, cost_model=model).variants
    report = compressor.compress(config, BATCHES, cost_model=model)
    for planned in (plan, report):
        assert planned.hardware is not None and planned.hardware.dense.seconds == pytest.approx(dense_seconds(model))
        assert planned.hardware.now.seconds == pytest.approx(variant.seconds)
        assert {tensor.name: tensor.setting for tensor in planned.tensors} == variant.settings


def test_a_report_without_energies(tmp_path: Path) -> None:
    """A parameter budget works with times alone; the report then has times."""
    compressor = HeatCompressor(small_model("bert"))
    config = HeatConfig(target_params_ratio=0.5, sequence_length=16)
    report = compressor.compress(config, save_directory=tmp_path / "out", cost_model=Macs())
    assert report.hardware is not None
    assert report.accelerator == "macs"
    assert report.hardware.now.energy_pJ is None
    assert "time of the matrices on macs" in str(report)
    assert type(report).load(tmp_path / "out") == report
