"""The accuracy predictor and the evolutionary search: fidelity, constraints, determinism, speed of the loop's arithmetic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heat_hf import TensorShape
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import cost_model
from heat_hf.search.ranks.evolution import GAMMA, Evolution, evolve, require_reachable
from heat_hf.search.ranks.predictor import AccuracyPredictor, UntrustedPredictorError
from heat_hf.search.ranks.space import Costs, Matrix, RankSpace

MODEL = cost_model("simba-l")


def space_of(tensors: int, ranks: tuple[int, ...] = (4, 8, 16, 24, 32)) -> RankSpace:
    costs = Costs({f"t{i}": Matrix(MatrixSize(64, 96)) for i in range(tensors)}, 32, MODEL)
    own = tuple(TensorSetting("low_rank", TensorShape.matrix(64, 96), (rank,)) for rank in ranks)
    return RankSpace(costs, dict.fromkeys(costs.matrices, own))


def accuracy(space: RankSpace, choices: np.ndarray, seed: int = 0) -> np.ndarray:
    """Tensors matter unequally, with diminishing returns."""
    weights = np.random.default_rng(seed).uniform(0.1, 1, len(space.sizes))
    return 0.95 - 0.4 * (weights * np.exp(-choices / 1.5)).sum(-1) / weights.sum()


def networks(space: RankSpace, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    last = space.sizes - 1
    places = rng.uniform(size=(count, 1)) + 0.2 * rng.standard_normal((count, len(last)))
    return np.clip(np.rint(places * last), 0, last).astype(np.int64)


def test_predictor_ranks_networks_it_has_not_seen() -> None:
    space = space_of(12)
    choices = networks(space, 300)
    predictor = AccuracyPredictor(space)
    fidelity = predictor.fit(list(choices), accuracy(space, choices).tolist())
    assert fidelity.networks == 60 == len(fidelity.measured)
    assert fidelity.spearman > 0.9
    assert 0.6 < fidelity.kendall < fidelity.spearman
    fresh = networks(space, 50, seed=9)
    assert np.corrcoef(predictor.predict(fresh), accuracy(space, fresh))[0, 1] > 0.9
    again = AccuracyPredictor(space)
    assert again.fit(list(choices), accuracy(space, choices).tolist()) == fidelity


def test_predictor_refuses_noise_and_too_little() -> None:
    space = space_of(12)
    choices = list(networks(space, 100))
    predictor = AccuracyPredictor(space)
    noise = np.random.default_rng(99).uniform(size=100)
    with pytest.raises(UntrustedPredictorError, match=r"rank correlation on 20 held-out networks is .*, below 0\.6"):
        predictor.fit(choices, noise.tolist())
    with pytest.raises(UntrustedPredictorError, match=r"all 20 held-out networks score 0\.5000; evaluate more"):
        predictor.fit(choices, [0.5] * 100)
    with pytest.raises(RuntimeError, match="not fitted"):
        predictor.predict(np.stack(choices))
    for few, scores in ((choices[:19], [0.5] * 19), (choices, [0.5] * 99), (choices, [float("nan")] * 100)):
        with pytest.raises(ValueError, match="at least 20 networks with finite accuracies"):
            predictor.fit(few, scores)


def test_what_a_prior_knows_is_corrected() -> None:
    """A prior that weighs tensors rightly and has another scale: few networks are enough, fewer than without it."""
    space = space_of(36)
    weights = np.random.default_rng(0).uniform(0.1, 1, 36)
    prior = weights[:, None] * np.exp(-np.arange(5) / 1.2)
    choices = networks(space, 60)
    scores = accuracy(space, choices).tolist()
    fresh = networks(space, 200, seed=9)
    apart = {}
    for name, known in (("alone", None), ("prior", prior)):
        predictor = AccuracyPredictor(space, prior=known)
        predictor.fit(list(choices), scores)
        apart[name] = np.abs(predictor.predict(fresh) - accuracy(space, fresh)).mean()
    assert apart["prior"] < apart["alone"] / 2


def test_features_tell_ranks_and_shapes_apart() -> None:
    costs = Costs({"a": Matrix(MatrixSize(64, 96)), "b": Matrix(MatrixSize(64, 96))}, 32, None)
    shapes = (TensorShape((64,), (8, 12)), TensorShape((8, 8), (96,)))
    own = tuple(TensorSetting("tucker", shape, rank) for shape in shapes for rank in ((4, 4, 4), (8, 4, 6)))
    predictor = AccuracyPredictor(RankSpace(costs, {"a": own, "b": own}))
    features = predictor.features(np.array(list(itertools.product(range(4), repeat=2))))
    assert len(np.unique(features, axis=0)) == 16


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["edp", "seconds", "parameters"]), st.floats(0.05, 0.9))
def test_evolution_finds_the_best_of_a_small_space(seed: int, kind: str, share: float) -> None:
    space = space_of(4)
    every = np.array(list(itertools.product(range(5), repeat=4)))
    spent = space.totals(every).of(kind)
    budget = float(spent.min() + share * (spent.max() - spent.min()))
    found = evolve(
        space, lambda c: accuracy(space, c, seed), kind, budget, Evolution(population=128, generations=30, seed=seed)
    )
    best = accuracy(space, every, seed)[spent <= budget].max()
    assert found.accuracy == pytest.approx(best)
    assert {"edp": found_edp(space, found.choice)}.get(kind, 0) <= budget


def found_edp(space: RankSpace, choice: np.ndarray) -> float:
    return float(space.totals(choice).of("edp"))


def test_papers_objective() -> None:
    space = space_of(4)
    every = np.array(list(itertools.product(range(5), repeat=4)))
    objective = (1 - accuracy(space, every)) * (space.totals(every).of("edp") / space.costs.dense.of("edp")) ** GAMMA
    found = evolve(space, lambda c: accuracy(space, c), options=Evolution(population=128, generations=30))
    assert found.objective == pytest.approx(objective.min())
    assert list(found.history) == sorted(found.history, reverse=True)


def test_evolution_is_deterministic_and_beats_random() -> None:
    space, options = space_of(36), Evolution(population=256, generations=30)
    budget = found_edp(space, networks(space, 1)[0])
    runs = [evolve(space, lambda c: accuracy(space, c), "edp", budget, options) for _ in range(2)]
    assert runs[0].choice.tolist() == runs[1].choice.tolist()
    assert runs[0].history == runs[1].history
    assert found_edp(space, runs[0].choice) <= budget
    looked_at = networks(space, runs[0].candidates, seed=5)
    within = accuracy(space, looked_at)[space.totals(looked_at).of("edp") <= budget]
    assert runs[0].accuracy > within.max()
    other = evolve(space, lambda c: accuracy(space, c), "edp", budget, Evolution(population=256, generations=30, seed=1))
    assert other.history != runs[0].history


def test_costs_are_looked_up_not_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    space = space_of(8)
    _ = space.table, space.costs.dense
    monkeypatch.setattr(Costs, "of", lambda *args: pytest.fail("mapped in the loop"))
    evolve(space, lambda c: accuracy(space, c), options=Evolution(population=64, generations=5))


def test_unreachable_budgets_say_what_is_reachable() -> None:
    space = space_of(6)
    least = found_edp(space, space.smallest()) / space.costs.dense.of("edp")
    with pytest.raises(ValueError, match=rf"must lie between {least:.4g} \(the smallest ranks\) and 1"):
        evolve(space, lambda c: accuracy(space, c), "edp", least / 2 * space.costs.dense.of("edp"))
    require_reachable(space, "edp", least * space.costs.dense.of("edp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"population": 4}, "population must be an integer of at least 8"),
        ({"generations": 0}, "generations must be an integer of at least 1"),
        ({"elite": 1.0}, "elite must be between 0 and 1"),
        ({"mutation": 0}, "mutation must be between 0 and 1"),
        ({"gamma": -1.0}, "gamma must be between 0 and 10"),
    ],
)
def test_bad_options(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evolution(**change)
