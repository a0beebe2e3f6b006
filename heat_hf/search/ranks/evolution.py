"""Evolutionary search over networks: selection, crossover, mutation, elitism (paper, section 2.2.2).

Everything is arithmetic on arrays of places: costs are looked up, accuracies predicted for a whole generation at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heat_hf.search.ranks.allocation import BudgetKind
from heat_hf.search.ranks.space import Choice, RankSpace

Array = NDArray[np.float64]
GAMMA = 0.25  # exponent of the cost in the paper's objective
TOLERANCE = 1e-12  # relative: sums in another order are the same


@dataclass(frozen=True)
class Evolution:
    """Options of the search.

    Attributes:
        population: networks in a generation.
        generations: how many are bred.
        elite: fraction of a generation that goes on unchanged and breeds.
        mutation: probability that a tensor's option changes.
        gamma: γ, exponent of the cost in the paper's objective, where there is no budget.
        seed: the same seed gives the same result.

    Raises:
        ValueError: for a value that cannot work.
    """

    population: int = 1024
    generations: int = 60
    elite: float = 0.125
    mutation: float = 0.08
    gamma: float = GAMMA
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("population", 8), ("generations", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
        for name in ("elite", "mutation"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, both excluded, got {getattr(self, name)!r}")
        if not 0 <= self.gamma <= 10:
            raise ValueError(f"gamma must be between 0 and 10, got {self.gamma!r}")


@dataclass(frozen=True)
class Found:
    """The best network.

    Attributes:
        choice: places of options.
        accuracy: as predicted.
        objective: what was minimized.
        history: the best objective of each generation.
        candidates: networks looked at.
    """

    choice: Choice
    accuracy: float
    objective: float
    history: tuple[float, ...]
    candidates: int


def evolve(
    space: RankSpace,
    predict: Callable[[Choice], Array],
    kind: BudgetKind | None = None,
    budget: float | None = None,
    options: Evolution | None = None,
    seeds: Sequence[Choice] = (),
) -> Found:
    """The network with the least (1 − Acc)(E·T)^γ, or, within a budget, with the best accuracy.

    Networks over the budget are ranked behind all that keep it, by how far they are over.

    Args:
        space: what networks choose from.
        predict: accuracies of many networks (networks × tensors → networks).
        kind: of the budget, "edp", "seconds" or "parameters".
        budget: in J·s, s, or a number; None for the paper's objective.
        options: of the search.
        seeds: networks of the first generation, beside random ones.

    Raises:
        ValueError: if not even the smallest options keep the budget; the message has the reachable range.
    """
    options = options or Evolution()
    rng = np.random.default_rng([options.seed, 3])
    if kind is not None and budget is not None:
        require_reachable(space, kind, budget)

    def judge(choices: Choice) -> tuple[Array, Array]:
        accuracy = predict(choices)
        totals = space.totals(choices)
        if kind is None or budget is None:
            return (1 - accuracy) * totals.objective_ratio(space.costs.dense) ** options.gamma, accuracy
        spent = totals.of(kind) / budget
        return np.where(spent <= 1 + TOLERANCE, 1 - accuracy, 1 + spent), accuracy

    population = _first(space, options, rng, seeds)
    objective, accuracy = judge(population)
    history, kept = [], max(2, round(options.elite * options.population))
    for generation in range(options.generations + 1):
        order = np.lexsort((*population.T[::-1], objective))  # ties go to smaller options, so nothing depends on the order
        population, objective, accuracy = population[order], objective[order], accuracy[order]
        history.append(float(objective[0]))
        if generation == options.generations:
            break
        parents = _distinct(population)[:kept]
        children = _breed(population[parents], options.population - len(parents), space, options, rng)
        scores = judge(children)
        population = np.concatenate([population[parents], children])
        objective = np.concatenate([objective[parents], scores[0]])
        accuracy = np.concatenate([accuracy[parents], scores[1]])
    looked_at = options.population + options.generations * (options.population - kept)
    return Found(population[0].copy(), float(accuracy[0]), history[-1], tuple(history), looked_at)


def require_reachable(space: RankSpace, kind: BudgetKind, budget: float) -> None:
    """Raise ValueError, with the reachable range, if a budget is below what the smallest options need."""
    require_within(space.least().of(kind), space.costs.dense.of(kind), kind, budget)


def require_within(least: float, dense: float, kind: BudgetKind, budget: float) -> None:
    """Raise ValueError, with the reachable range, if a budget is below the least there is."""
    if budget < least * (1 - TOLERANCE):
        raise ValueError(
            f"a budget of {budget / dense:.4g} of the dense {kind} cannot be reached: "
            f"it must lie between {least / dense:.4g} (the smallest ranks) and 1"
        )


def _first(space: RankSpace, options: Evolution, rng: np.random.Generator, seeds: Sequence[Choice]) -> Choice:
    """The seeds, then networks of every size."""
    last = space.sizes - 1
    sizes = rng.uniform(size=(options.population, 1))
    spread = 0.25 * rng.standard_normal((options.population, len(last)))
    drawn = np.clip(np.rint((sizes + spread) * last), 0, last).astype(np.int64)
    fixed = [space.smallest(), *seeds]
    return np.concatenate([np.stack(fixed), drawn])[: options.population]


def _distinct(population: Choice) -> NDArray[np.intp]:
    """Places of the first of equal networks, in their order: copies of one parent would crowd out all others."""
    return np.sort(np.unique(population, axis=0, return_index=True)[1])


def _breed(parents: Choice, count: int, space: RankSpace, options: Evolution, rng: np.random.Generator) -> Choice:
    """Children take each tensor's option from either of two parents; some options then move, most by a step."""
    tensors = parents.shape[1]
    pairs = rng.integers(len(parents), size=(2, count))
    children = np.where(rng.random((count, tensors)) < 0.5, parents[pairs[0]], parents[pairs[1]])
    moves = rng.random((count, tensors)) < options.mutation
    steps = rng.integers(1, 3, size=(count, tensors)) * rng.choice([-1, 1], size=(count, tensors))
    anywhere = rng.integers(0, space.sizes, size=(count, tensors))
    moved = np.where(rng.random((count, tensors)) < 0.2, anywhere, children + steps)
    return np.where(moves, np.clip(moved, 0, space.sizes - 1), children)
