"""Ranks by weight-sharing SuperNet, accuracy predictor and evolution (paper, section 2.2.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heat_hf.encoders.checkpoints.storage import temporary_directory
from heat_hf.search.ranks.methods.base import RankSearch, Solution

if TYPE_CHECKING:
    from heat_hf.search.journal import Journal
    from heat_hf.search.ranks.budgets import Budget
    from heat_hf.search.ranks.predictor import AccuracyPredictor, Fidelity
    from heat_hf.search.ranks.problem import Problem, Training
    from heat_hf.search.ranks.space import Choice, RankSpace
    from heat_hf.search.ranks.supernet import SuperNetArguments

_KEY = (
    "max_steps", "num_train_epochs", "learning_rate", "subnets", "hidden_weight", "least_share", "largest_share", "hold",
    "spread", "variance", "prior",
)  # fmt: skip


@dataclass(frozen=True)
class _Predicted:
    """A predictor fitted to SubNets, how well it fits those held out, and (EDP of the dense network's, accuracy) of all."""

    predictor: AccuracyPredictor
    fidelity: Fidelity
    subnets: list[tuple[float, float]]


class SuperNet(RankSearch):
    """One format, every tensor factorized; without a budget the paper's objective (1 − Acc)(E·T)^γ."""

    name = "supernet"
    budget_optional = True
    needs_training = True
    resumable = True

    def check(self, problem: Problem, budgets: Sequence[Budget]) -> None:
        """As every method; also that the smallest options keep each budget."""
        from heat_hf.search.ranks.evolution import require_reachable

        super().check(problem, budgets)
        if _arguments(problem).prior and (problem.statistics is None or not problem.statistics.has_gradients):
            told = "they tell what ranks lose"
            raise ValueError(f"prior=True needs a calibration_dataset, and loss_aware left at None or True: {told}")
        for budget in budgets:
            if budget.kind is not None and budget.limit is not None:
                require_reachable(self._space(problem), budget.kind, budget.limit)

    def solve(self, problem: Problem, budget: Budget) -> Solution:
        """By evolution over predicted accuracies."""
        from heat_hf.search.ranks.curves import least_lost
        from heat_hf.search.ranks.evolution import Evolution, evolve

        space, predicted = self._space(problem), self._predicted(problem)
        evolution = _training(problem).evolution or Evolution(seed=problem.seed)
        prior = predicted.predictor.prior
        seeds: list[Choice] = []
        if prior is not None and budget.kind is not None and budget.limit is not None:
            seeds.append(least_lost(space, prior, budget.kind, budget.limit))
        best = evolve(space, predicted.predictor.predict, budget.kind, budget.limit, evolution, seeds)
        return Solution(space.settings(best.choice), predicted_accuracy=best.accuracy)

    def key(self, problem: Problem) -> dict[str, Any]:
        """Arguments and data of the training."""
        from heat_hf.encoders.batches import data_digest
        from heat_hf.encoders.resuming import step_rows
        from heat_hf.search.ranks.evolution import Evolution

        training, arguments = _training(problem), _arguments(problem)
        return {
            "supernet": {name: getattr(arguments, name) for name in _KEY}
            | {"rows of a step": step_rows(arguments)}  # however processes share them
            | ({"without": sorted(arguments.without)} if arguments.without else {}),
            "evolution": asdict(training.evolution or Evolution(seed=problem.seed)),
            "training": data_digest(training.rows),
            "evaluation": data_digest(getattr(training.quality, "batches", ())),
        }

    def fidelity(self, problem: Problem) -> Mapping[str, Any] | None:
        """Rank correlations of the predictor on held-out SubNets, and what was measured of all."""
        predicted = self._predicted(problem)
        return {**asdict(predicted.fidelity), "subnets": predicted.subnets}

    def _space(self, problem: Problem) -> RankSpace:
        from heat_hf.search.ranks.supernet_search import supernet_space

        (format,) = problem.formats
        shapes = {size: self.shape(problem, format, size) for size in problem.sizes}
        space: RankSpace = problem.once("supernet space", lambda: supernet_space(problem, shapes, _arguments(problem)))
        return space

    def _predicted(self, problem: Problem) -> _Predicted:
        predicted: _Predicted = problem.once("supernet predictor", lambda: self._predict(problem))
        return predicted

    def _predict(self, problem: Problem) -> _Predicted:
        from heat_hf.search.ranks.curves import losses_of
        from heat_hf.search.ranks.predictor import AccuracyPredictor
        from heat_hf.search.ranks.supernet import RankSuperNet, sample_subnets
        from heat_hf.search.ranks.supernet_search import evaluate_subnets, supernet_model, train_supernet

        space, training, arguments = self._space(problem), _training(problem), _arguments(problem)
        assert problem.journal is not None
        model = supernet_model(problem, space)
        supernet = RankSuperNet(model, space, arguments.stabilizers, problem.seed, problem.linears)
        with _folder(problem.journal) as folder:
            train_supernet(supernet, problem.model, arguments, training.rows, training.collator, folder)
            choices = sample_subnets(supernet, arguments.subnets, problem.seed)
            accuracies = evaluate_subnets(supernet, choices, training.quality, problem.journal)
        predictor = AccuracyPredictor(space, problem.seed, losses_of(problem, space) if arguments.prior else None)
        fidelity, costs = predictor.fit(choices, accuracies), problem.costs
        ratios = [costs.total(space.settings(choice)).objective_ratio(costs.dense) for choice in choices]
        return _Predicted(predictor, fidelity, list(zip(ratios, accuracies, strict=True)))


def _training(problem: Problem) -> Training:
    assert problem.training is not None
    return problem.training


def _arguments(problem: Problem) -> SuperNetArguments:
    from heat_hf.search.ranks.supernet import SuperNetArguments

    arguments: SuperNetArguments = problem.once(
        "supernet arguments", lambda: _training(problem).arguments or SuperNetArguments(seed=problem.seed)
    )
    return arguments


@contextmanager
def _folder(journal: Journal) -> Iterator[Path]:
    """Where a SuperNet is kept while it trains: beside the journal, or for this run only."""
    if journal.folder is not None:
        yield journal.folder
        return
    with temporary_directory() as folder:
        yield folder
