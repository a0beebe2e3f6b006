"""Budgets of a whole network, and how a rule that only knows shares of parameters is made to keep one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from heat_hf.formats.setting import Settings
    from heat_hf.search.ranks.allocation import BudgetKind
    from heat_hf.search.ranks.space import Costs

TARGETS: dict[str, BudgetKind] = {
    "target_params_ratio": "parameters",
    "target_edp_ratio": "edp",
    "target_latency_ratio": "seconds",
    "target_latency": "seconds",
}
ABSOLUTE = "target_latency"  # the one that is no fraction of the dense network's figure
SHARES = 24  # shares of parameters tried, twice, to fit a budget
LEAST_SHARE, LARGEST_SHARE = 0.01, 0.95


@dataclass(frozen=True)
class Budget:
    """A limit of the whole network.

    Attributes:
        target: a key of `TARGETS`; None where nothing is limited, as for given ranks or the paper's objective.
        asked: the limit as the user gave it: a fraction of the dense network's, or seconds.
        limit: in J·s, s, or parameters.
    """

    target: str | None = None
    asked: float | None = None
    limit: float | None = None

    @property
    def kind(self) -> BudgetKind | None:
        """What is limited."""
        return None if self.target is None else TARGETS[self.target]


def network_budgets(target: str | None, values: Sequence[float], costs: Costs) -> list[Budget]:
    """Budgets of a network, from the smallest; without a target, the one that limits nothing.

    Args:
        target: a key of `TARGETS`, or None.
        values: fractions of the dense network's figure, or seconds.
        costs: of the network.

    Raises:
        ValueError: if one is not below the dense network's figure, or the cost model does not know that figure.
    """
    if target is None:
        return [Budget()]
    kind, budgets = TARGETS[target], []
    total = costs.dense.cost
    if kind == "edp" and total is not None and total.energy_pJ is None:
        raise ValueError(f"{target} needs energies, and the cost model {costs.model_name} has none: use target_latency_ratio")
    dense = costs.dense.of(kind)
    for asked in sorted(values):
        limit = asked if target == ABSOLUTE else asked * dense
        if limit >= dense:
            raise ValueError(f"{target}={asked:g} must be below the dense model's {dense:.4g} {kind}")
        budgets.append(Budget(target, asked, limit))
    return budgets


def fit_share(settings: Callable[[float], Settings], costs: Costs, kind: BudgetKind, budget: float) -> Settings:
    """The settings with the largest share of parameters that keep a budget, of a rule that turns shares into settings.

    EDP does not only grow with ranks, so no bisection: shares are tried downwards, and then again between the first that fits
    and the one before.

    Args:
        settings: of a share of parameters; raises ValueError where the share is too small.
        costs: of the network.
        kind: of the budget.
        budget: in J·s, s, or parameters.

    Raises:
        ValueError: if no share keeps the budget; the message has the least that was met.
    """
    least = math.inf

    def first_fit(shares: Sequence[float]) -> tuple[int, Settings] | None:
        nonlocal least
        for number, share in enumerate(shares):
            try:
                candidate = settings(share)
            except ValueError:
                return None  # smaller ones do not work, either
            spent = costs.total(candidate).of(kind)
            least = min(least, spent)
            if spent <= budget:
                return number, candidate
        return None

    grid = np.geomspace(LARGEST_SHARE, LEAST_SHARE, SHARES).tolist()
    coarse = first_fit(grid)
    if coarse is None:
        dense = costs.dense.of(kind)
        raise ValueError(
            f"a budget of {budget / dense:.4g} of the dense {kind} cannot be reached by this method: "
            f"the least it comes to is {least / dense:.4g}"
        )
    number, settings_found = coarse
    finer = first_fit(np.geomspace(grid[max(0, number - 1)], grid[number], SHARES).tolist())
    return settings_found if finer is None else finer[1]
