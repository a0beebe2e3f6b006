"""The protocol of whatever knows what a computation costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from heat_hf.formats import GONE
from heat_hf.formats.plan import ContractionPlan
from heat_hf.formats.setting import Execution, TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.between import Between
from heat_hf.hardware.cost import Cost
from heat_hf.hardware.gemm import Gemm


@runtime_checkable
class CostModel(Protocol):
    """Whatever knows what a product, a contraction plan, or a dense layer costs. Subclass it for the methods that follow.

    Attributes:
        name: in reports.
        digest: equal for two models that give the same costs; results that depend on costs are kept under it.
        units: widths that ranks should be multiples of; empty where there are none.
    """

    name: str
    digest: str
    units: tuple[int, ...]

    def gemm(self, gemm: Gemm) -> Cost:
        """The cost of a matrix product.

        Raises:
            MisfitError: if the hardware cannot run it.
        """
        ...

    def plan(self, plan: ContractionPlan) -> Cost:
        """The cost of a plan's forward pass; precomputed steps are free.

        Raises:
            MisfitError: if the hardware cannot run it.
        """
        ...

    def linear(self, size: MatrixSize, tokens: int) -> Cost:
        """The cost of a dense layer."""
        return self.gemm(Gemm(tokens, *size))

    def between(self, work: Between, units: int) -> Cost | None:
        """The cost of what is done between matrices where so many of its units are left; None where only matrices count.

        These alone are in the paper's ΣE·ΣT (section 2.2.2).
        """
        return None

    def gemms(self, gemms: Sequence[Gemm]) -> list[Cost]:
        """Costs of many products; a model that measures does so side by side."""
        return [self.gemm(gemm) for gemm in gemms]

    def plans(self, plans: Sequence[ContractionPlan]) -> list[Cost]:
        """Costs of many plans, likewise."""
        return [self.plan(plan) for plan in plans]

    def linears(self, sizes: Sequence[MatrixSize], tokens: int) -> list[Cost]:
        """Costs of many dense layers, likewise."""
        return [self.linear(size, tokens) for size in sizes]

    def execution(self, setting: TensorSetting, tokens: int) -> tuple[ContractionPlan, Cost]:
        """The cheapest of the ways a factorized layer may be executed, and its cost (paper, Eq. 2: min_m min_p)."""
        plans = ways(setting, tokens)
        return min(zip(plans, self.plans(plans), strict=True), key=lambda pair: pair[1].objective)

    def setting(self, setting: TensorSetting, tokens: int) -> Cost:
        """The cost of a factorized layer, executed in the cheapest way; nothing where nothing is left of it."""
        if setting.format in GONE:
            return self.linear(setting.size, tokens) * 0
        return self.execution(setting, tokens)[1]


def ways(setting: TensorSetting, tokens: int) -> list[ContractionPlan]:
    """Different plans by which a setting may be executed: with "auto", the MAC-optimal one and the one that rebuilds W′."""
    if setting.codec.path is not None:
        return [setting.plan(tokens)]
    executions: tuple[Execution, ...] = ("contract", "reconstruct") if setting.execution == "auto" else (setting.execution,)
    plans = [replace(setting, execution=execution).plan(tokens) for execution in executions]
    return plans[:1] if len(plans) == 2 and plans[0].all_steps == plans[1].all_steps else plans
