"""Networks that a rank search found, one for each budget."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heat_hf.encoders.linears import resolve_names, weights_digest
from heat_hf.formats.setting import Settings, TensorSetting, settings_to_dict
from heat_hf.hardware.cost import EDP
from heat_hf.search.ranks.budgets import TARGETS, Budget
from heat_hf.search.ranks.methods import MIXED, RankSearch
from heat_hf.search.ranks.problem import Problem

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Variant:
    """One network of a search.

    Attributes:
        name: "HEAT-a1", "HEAT-a2", …, from the smallest budget to the largest.
        method, decomposition: of the search, as in its configuration.
        target: what was limited, a key of `TARGETS`; None for the paper's objective, which limits nothing.
        budget: the limit as asked: a fraction of the dense network's, or seconds.
        settings: what every tensor gets; None for the dense matrix.
        edp_ratio, params_ratio: of all tensors together, as fractions of the dense ones; 1 for an EDP without an accelerator.
        seconds: of one forward pass of all tensors on the accelerator; None without one.
        loss: divergence of the model's outputs from the dense model's to second order; of the method "sensitivity".
        expected_divergence: that of a copy of the model with these settings, projected and not refined, on calibration rows;
            None where it was not made.
        predicted_accuracy: of the method "supernet", with the SuperNet's cores.
        measure: what `edp_ratio` compares: "EDP", or "time" where the cost model knows no energies.
    """

    name: str
    method: str
    decomposition: str
    target: str | None
    budget: float | None
    settings: Settings
    edp_ratio: float
    params_ratio: float
    seconds: float | None
    loss: float | None = None
    expected_divergence: float | None = None
    predicted_accuracy: float | None = None
    measure: str = EDP

    def configure(self, config: Any) -> Any:  # noqa: ANN401
        """A `HeatConfig` as it would ask for this variant alone."""
        targets: dict[str, Any] = {name: self.budget if name == self.target else None for name in TARGETS}
        targets |= {"decomposition": self.decomposition, "rank_search": self.method, "rank": None, "shape": None}
        return dataclasses.replace(config, **targets)

    def of(self, model: PreTrainedModel, linears: Mapping[str, nn.Linear]) -> Variant:
        """The same by the names of a model. A record of one with a head is also one of the model without, and vice versa.

        Args:
            model: dense.
            linears: its matrices that are to be factorized, by name.

        Raises:
            ValueError: if the variant is of another model.
        """
        names = resolve_names(model, self.settings, f"variant {self.name}")
        others = set(linears) ^ set(names.values())
        if others:
            raise ValueError(f"variant {self.name} does not fit the model: only one of both has {min(others)!r}")
        return dataclasses.replace(self, settings={name: self.settings[saved] for saved, name in names.items()})

    def to_dict(self) -> dict[str, Any]:
        """As JSON; what `edp_ratio` compares is left out where it is the EDP."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.measure == EDP:
            del data["measure"]
        return {**data, "settings": settings_to_dict(self.settings)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Variant:
        """Read what `to_dict` wrote."""
        settings = {
            name: None if setting is None else TensorSetting.from_dict(setting) for name, setting in data["settings"].items()
        }
        return cls(**{**data, "settings": settings})


@dataclass(frozen=True)
class Variants:
    """The result of a search.

    Attributes:
        networks: from the smallest budget to the largest.
        fidelity: of the method's own predictions, see `RankSearch.fidelity`.
    """

    networks: tuple[Variant, ...]
    fidelity: Mapping[str, Any] | None


def search_key(method: RankSearch, problem: Problem) -> dict[str, Any]:
    """What the result of a search depends on, as JSON: equal for two searches that give the same."""
    model = problem.costs.model
    key = {
        "weights": weights_digest(problem.linears),
        "accelerator_digest": None if model is None else model.digest,
        **problem.key,
        **method.key(problem),
    }
    normalized: dict[str, Any] = json.loads(json.dumps(key))
    return normalized


def find_variants(method: RankSearch, problem: Problem, budgets: Sequence[Budget]) -> Variants:
    """Settings of the network for every budget.

    Args:
        method: how; what cannot work has been refused by its `check`.
        problem: of the network.
        budgets: from the smallest.

    Raises:
        ValueError: if a budget cannot be reached.
    """
    networks = [_variant(method, problem, number, budget) for number, budget in enumerate(budgets, start=1)]
    return Variants(tuple(networks), method.fidelity(problem))


def _variant(method: RankSearch, problem: Problem, number: int, budget: Budget) -> Variant:
    solution, costs = method.solve(problem, budget), problem.costs
    total, dense = costs.total(solution.settings), costs.dense
    return Variant(
        name=f"HEAT-a{number}",
        method=method.name,
        decomposition=problem.formats[0] if len(problem.formats) == 1 else MIXED,
        target=budget.target,
        budget=budget.asked,
        settings=dict(solution.settings),
        edp_ratio=total.objective_ratio(dense),
        params_ratio=total.parameters / dense.parameters,
        seconds=total.seconds,
        loss=solution.loss,
        predicted_accuracy=solution.predicted_accuracy,
        measure=EDP if total.cost is None else total.cost.measure,
    )
