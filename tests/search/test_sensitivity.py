"""Training-free ranks: the loss-aware projection is the optimum of its problem, curves agree with it, choices are exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import small_model, token_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from heat_hf import FORMATS, HeatConfig, TensorShape
from heat_hf.compression.job import Job
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.statistics import Statistics
from heat_hf.encoders.triangles import Moments
from heat_hf.formats import get_format
from heat_hf.formats.decomposition import decompose
from heat_hf.formats.projection import DAMPING, OUTPUT_DAMPING, triangular_root, weighted_square
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import Cost, cost_model
from heat_hf.search.ranks.curves import Curves, allocate_ranks, sensitivity_curves
from heat_hf.search.ranks.problem import Problem
from heat_hf.search.ranks.space import Costs, Footprint, Matrix, RankSpace

BATCHES = [{"input_ids": token_ids(24, 6)}]


def moment(size: int, seed: int, rows: int = 300) -> torch.Tensor:
    torch.manual_seed(seed)
    x = torch.randn(rows, size, dtype=torch.float64) * torch.logspace(0, -1.5, size, dtype=torch.float64)
    return x.T @ x / rows


def lost(weight: torch.Tensor, cores: tuple, name: str, shape: TensorShape, c: torch.Tensor, g: torch.Tensor) -> float:
    return float(weighted_square(weight - get_format(name).reconstruct(cores, shape), c, g))


def test_loss_aware_low_rank_is_the_optimum() -> None:
    torch.manual_seed(0)
    weight, c, g, shape = torch.randn(16, 24, dtype=torch.float64), moment(24, 1), moment(16, 2), TensorShape.matrix(16, 24)
    found = decompose(get_format("low_rank"), weight, shape, 5, None, c, g)
    roots = [torch.linalg.cholesky(m) for m in (g, c)]
    singular = torch.linalg.svdvals(roots[0].T @ weight @ roots[1])
    assert lost(weight, found.cores, "low_rank", shape, c, g) == pytest.approx(float(singular[5:].square().sum()), rel=0.05)
    for other in (
        decompose(get_format("low_rank"), weight, shape, 5),
        decompose(get_format("low_rank"), weight, shape, 5, None, c),
        decompose(get_format("low_rank"), weight, shape, 5, None, None, g),
    ):
        assert lost(weight, found.cores, "low_rank", shape, c, g) < lost(weight, other.cores, "low_rank", shape, c, g)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [((16,), (24,)), ((4, 4), (24,)), ((16,), (4, 6)), ((4, 4), (4, 6))])
def test_loss_aware_is_never_worse_than_plain(name: str, shape: tuple) -> None:
    torch.manual_seed(1)
    shape, codec = TensorShape(*shape), get_format(name)
    try:
        rank = codec.largest_rank(shape, 200)
    except ValueError:
        pytest.skip(f"{name} does not take {shape}, or has a single core for it")
    weight, c, g = torch.randn(16, 24, dtype=torch.float64), moment(24, 1), moment(16, 2)
    plain, aware = decompose(codec, weight, shape, rank), decompose(codec, weight, shape, rank, None, c, g)
    assert lost(weight, aware.cores, name, shape, c, g) < lost(weight, plain.cores, name, shape, c, g)


def test_roots_of_moments_that_rounding_made_indefinite() -> None:
    vectors = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    exact = (vectors * torch.tensor([1.0, 0.5, 0.1, 0, 0, 0])) @ vectors.T
    rounded = (vectors * torch.tensor([1.0, 0.5, 0.1, -1e-4, 0, 0])) @ vectors.T
    for moment_ in (exact, rounded):
        root = triangular_root(moment_)
        torch.testing.assert_close(root @ root.T, exact, rtol=0, atol=2e-4)


def space_of(tensors: int, options: int, seed: int) -> tuple[RankSpace, list[list[float]]]:
    """Made-up figures behind real settings."""
    rng = np.random.default_rng(seed)
    names = [f"t{i}" for i in range(tensors)]
    costs = Costs({name: Matrix(MatrixSize(16, 16)) for name in names}, 8, None)
    own = {
        name: tuple(TensorSetting("low_rank", TensorShape.matrix(16, 16), (r,)) for r in range(1, options + 1))
        for name in names
    }
    space = RankSpace(costs, own)
    table = [rng.integers(1, 9, (tensors, options)).astype(float) for _ in range(2)]
    space.__dict__["table"] = Footprint(space.table.parameters, Cost(table[1], table[0] * 1e12))
    return space, rng.integers(0, 9, (tensors, options)).astype(float).tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 10_000),
    st.sampled_from(["edp", "seconds", "parameters"]),
    st.floats(0.2, 0.9),
)
def test_allocation_over_a_space_equals_brute_force(tensors: int, options: int, seed: int, kind: str, share: float) -> None:
    space, losses = space_of(tensors, options, seed)
    every = np.array(list(itertools.product(range(options), repeat=tensors)))
    spent = space.totals(every).of(kind)
    budget = float(share * spent.max() + (1 - share) * spent.min())
    total = np.array([sum(own[place] for own, place in zip(losses, choice, strict=True)) for choice in every])
    settings, found = allocate_ranks(Curves(space, losses), kind, budget)
    choice = [space.options[name].index(setting) for name, setting in settings.items()]
    assert found == pytest.approx(total[spent <= budget * (1 + 1e-12)].min())
    place = int(np.flatnonzero((every == choice).all(axis=1))[0])
    assert spent[place] <= budget * (1 + 1e-9)


@pytest.mark.parametrize("decomposition", [*FORMATS, "mixed"])
def test_curves_fall_and_dense_loses_nothing(decomposition: str) -> None:
    model = small_model("bert")
    config = HeatConfig(decomposition=decomposition, rank_search="sensitivity", target_edp_ratio=0.5, sequence_length=16)
    job = Job(model, config, BATCHES)
    method, problem = config.method, job.problem
    shapes = {(format, size): method.shape(problem, format, size) for format in problem.formats for size in problem.sizes}
    curves = sensitivity_curves(problem, shapes)
    space, losses = curves.space, curves.losses
    assert list(space.names) == list(encoder_linears(model))
    for own, curve in zip(space.options.values(), losses, strict=True):
        by_format: dict[str | None, list[float]] = {}
        for setting, loss in zip(own, curve, strict=True):
            by_format.setdefault(setting and setting.format, []).append(loss)
        assert by_format.pop(None) == [0]
        for falling in by_format.values():
            assert falling[0] >= falling[-1] and min(falling) > 0
    if decomposition == "mixed":
        assert len({s.format for own in space.options.values() for s in own if s is not None}) > 1


@pytest.mark.parametrize(("name", "shape"), [("low_rank", ((24,), (36,))), ("cp", ((24,), (36,))), ("ttm", ((24, 1), (1, 36)))])
def test_curves_are_what_the_projection_loses(name: str, shape: tuple) -> None:
    torch.manual_seed(0)
    shape = TensorShape(*shape)
    linear, c, g = torch.nn.Linear(36, 24), moment(36, 1), moment(24, 2)
    costs = Costs({"a": Matrix(MatrixSize(24, 36))}, 16, None)
    statistics = Statistics(Moments.of({"a": c}), Moments.of({"a": g}), 1, "", "")
    problem = Problem(torch.nn.Sequential(linear), {"a": linear}, costs, (name,), statistics=statistics)
    curves = sensitivity_curves(problem, {(name, MatrixSize(24, 36)): shape})
    space, (curve,) = curves.space, curves.losses
    assert len(curve) > 5
    for setting, loss in zip(space.options["a"], curve, strict=True):
        if setting is not None:
            found = decompose(setting.codec, linear.weight, setting.shape, setting.rank, None, c, g)
            damped = c + DAMPING * c.diagonal().mean() * torch.eye(36), g + OUTPUT_DAMPING * g.diagonal().mean() * torch.eye(24)
            cores = [core.double() for core in found.cores]
            assert loss == pytest.approx(lost(linear.weight.double(), cores, name, shape, *damped) / 2, rel=0.01)


def test_costs_are_those_of_the_report() -> None:
    costs = Costs({"a": Matrix(MatrixSize(24, 48), runs=2)}, 16, cost_model("simba-l"))
    setting = TensorSetting("low_rank", TensorShape.matrix(24, 48), (4,))
    found, dense = costs.of("a", setting), costs.dense
    assert found.parameters == 4 * 72
    assert dense.parameters == 24 * 48
    assert found.cost.edp < dense.cost.edp
    space = RankSpace(costs, {"a": (setting, None)})
    totals = space.totals(np.array([[0], [1]]))
    assert totals.cost.energy_pJ.tolist() == [found.cost.energy_pJ, dense.cost.energy_pJ]
    assert totals.cost.seconds.tolist() == [found.seconds, dense.seconds]
    assert totals.parameters.tolist() == [4 * 72, 24 * 48]
    assert space.within(0.1, 0.5).options["a"] == (setting,)
    with pytest.raises(ValueError, match=r"has no rank with 0\.5 to 0\.6"):
        space.within(0.5, 0.6)
