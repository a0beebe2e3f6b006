"""Budgets of a whole network, and how a rule that only knows shares of parameters is made to keep one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from heat_hf.compression.config import TARGETS, HeatConfig
from heat_hf.encoders.cost import reporting_mapper
from heat_hf.encoders.linears import encoder_linears, runs
from heat_hf.search.ranks.allocation import BudgetKind
from heat_hf.search.ranks.settings import plan_settings
from heat_hf.search.ranks.space import Costs, Matrix, Settings
from heat_hf.search.shapes.table import CostTable

SHARES = 24  # places of a share of parameters looked at, twice, to fit a budget
LEAST_SHARE, LARGEST_SHARE = 0.01, 0.95


def network_costs(model: PreTrainedModel, config: HeatConfig) -> Costs:
    """Costs of a model's tensors, as compression reports them."""
    linears = encoder_linears(model, config.modules, config.exclude)
    matrices = {n: Matrix(linear.out_features, linear.in_features, runs(model.config, n)) for n, linear in linears.items()}
    return Costs(matrices, config.tokens, reporting_mapper(config))


@dataclass(frozen=True)
class Budget:
    """A limit of the whole network.

    Attributes:
        kind: what is limited; None for the paper's objective, which limits nothing.
        asked: the limit as the configuration has it.
        limit: in J·s, s, or parameters.
    """

    kind: BudgetKind | None = None
    asked: float | None = None
    limit: float | None = None


def budgets(config: HeatConfig, costs: Costs) -> list[Budget]:
    """The configuration's budgets from the smallest; without a target, the one that limits nothing.

    Raises:
        ValueError: if one is not below the dense network's figure.
    """
    if config.budget_name is None:
        return [Budget()]
    kind: BudgetKind = TARGETS[config.budget_name]  # type: ignore[assignment]
    dense, found = costs.dense.of(kind), []
    for asked in sorted(config.budget_list):
        limit = asked if kind == "seconds" else asked * dense
        if limit >= dense:
            raise ValueError(f"{config.budget_name}={asked:g} must be below the dense model's {dense:.4g} {kind}")
        found.append(Budget(kind, asked, limit))
    return found


def fit_share(settings: Callable[[float], Settings], costs: Costs, kind: BudgetKind, budget: float) -> dict[str, Any]:
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

    def first(shares: Sequence[float]) -> tuple[int, Settings] | None:
        nonlocal least
        for place, share in enumerate(shares):
            try:
                own = settings(share)
            except ValueError:
                return None  # smaller ones do not work, either
            spent = costs.total(own).of(kind)
            least = min(least, spent)
            if spent <= budget:
                return place, own
        return None

    grid = np.geomspace(LARGEST_SHARE, LEAST_SHARE, SHARES).tolist()
    coarse = first(grid)
    if coarse is None:
        dense = costs.dense.of(kind)
        raise ValueError(
            f"a budget of {budget / dense:.4g} of the dense {kind} cannot be reached by this method: "
            f"the least it comes to is {least / dense:.4g}"
        )
    place, own = coarse
    finer = first(np.geomspace(grid[max(0, place - 1)], grid[place], SHARES).tolist())
    return dict(finer[1] if finer is not None else own)


def rule_settings(
    model: PreTrainedModel, config: HeatConfig, costs: Costs, table: CostTable | None, kind: BudgetKind, budget: float
) -> dict[str, Any]:
    """Settings by "uniform", "tensorly", "manual" or "random" that fill a budget."""
    linears = encoder_linears(model, config.modules, config.exclude)

    def of_share(share: float) -> Settings:
        wanted = replace(config, target_params_ratio=share, target_edp_ratio=None, target_latency=None)
        return plan_settings(linears, wanted, table)

    return fit_share(of_share, costs, kind, budget)
