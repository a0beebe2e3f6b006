"""The analytic cost model: best mappings onto a described accelerator."""

from __future__ import annotations

import os

from heat_hf.formats.plan import ContractionPlan
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.cascade import Cascade, cost_gemm, cost_plan, least_edp
from heat_hf.hardware.cost import Cost
from heat_hf.hardware.gemm import Gemm, Objective
from heat_hf.hardware.machine.runtimes import check_runtime
from heat_hf.hardware.mapper import Mapper
from heat_hf.hardware.protocol import CostModel, ways
from heat_hf.hardware.spec import CPU, Accelerator, load_accelerator


class AnalyticModel(CostModel):
    """Energies and times of best mappings, intermediates on chip where that pays (paper, section 2.2.1).

    Each product is mapped once, each plan costed once.

    Args:
        mapper: finds best mappings onto one accelerator.
        fused: keep intermediates on chip where that pays; else all go through DRAM.
    """

    def __init__(self, mapper: Mapper, fused: bool = True) -> None:
        self.mapper = mapper
        self.fused = fused
        self.name = mapper.accelerator.name
        self.digest = mapper.accelerator.digest
        sizes = {spatial.size for level in mapper.accelerator.levels for spatial in level.spatial}
        self.units = tuple(sorted(size for size in sizes if size > 1))
        self._executions: dict[tuple[TensorSetting, int], tuple[ContractionPlan, Cost]] = {}

    @property
    def accelerator(self) -> Accelerator:
        """The hardware."""
        return self.mapper.accelerator

    def gemm(self, gemm: Gemm) -> Cost:
        """Of the best mapping, operands and result in DRAM."""
        return self.mapper.map(gemm).cost

    def plan(self, plan: ContractionPlan) -> Cost:
        """Of the best cascade."""
        return self.cascade(plan).cost

    def execution(self, setting: TensorSetting, tokens: int) -> tuple[ContractionPlan, Cost]:
        """The cheapest way to execute a setting, and its cost; settings are costed once."""
        key = setting, tokens
        if key not in self._executions:
            plan, cascade = self._cheapest(setting, tokens)
            self._executions[key] = plan, cascade.cost
        return self._executions[key]

    def cascade(self, plan: ContractionPlan) -> Cascade:
        """A plan's steps with their mappings."""
        return cost_plan(plan, self.mapper, self.fused)

    def cascade_of(self, what: TensorSetting | MatrixSize, tokens: int) -> Cascade:
        """The same of the cheapest way to execute a setting, or of a dense layer."""
        if isinstance(what, MatrixSize):
            return cost_gemm(Gemm(tokens, *what), self.mapper, f"dense {what}")
        return self._cheapest(what, tokens)[1]

    def _cheapest(self, setting: TensorSetting, tokens: int) -> tuple[ContractionPlan, Cascade]:
        best, *others = ways(setting, tokens)
        cascade = self.cascade(best)
        for plan in others:
            if least_edp(plan, self.mapper) < cascade.edp:  # else it need not be mapped
                other = self.cascade(plan)
                if other.edp < cascade.edp:
                    best, cascade = plan, other
        return best, cascade


def cost_model(
    accelerator: str | os.PathLike[str] | CostModel,
    cache: str | os.PathLike[str] | None = None,
    runtime: str = "torch",
    precision: str = "float32",
) -> CostModel:
    """The cost model of searches, reports and `heat-hf cost`: `cost_accelerator` as it is, this machine, or the user's own.

    Args:
        accelerator: a shipped name, a .yaml file, or "cpu" for this machine; a cost model is returned as it is.
        cache: folder in which mappings, or measurements, are kept for later runs and other processes; default: for this
            object only, measurements in the user's cache folder.
        runtime: of "cpu", see `MachineModel`.
        precision: likewise.

    Raises:
        FileNotFoundError: if there is no such accelerator.
        ImportError: if the runtime is not installed.
        OSError: if the cache cannot be used.
        ValueError: if the accelerator's description cannot work, or it has no such runtime or precision.
    """
    check_runtime(accelerator, runtime, precision)
    if accelerator == CPU:
        from heat_hf.hardware.machine import MachineModel

        return MachineModel(runtime, precision, cache)
    if isinstance(accelerator, (str, os.PathLike)):
        return cost_accelerator(accelerator, cache=cache)
    return accelerator


def cost_accelerator(
    accelerator: str | os.PathLike[str],
    constraints: str | None = None,
    objective: Objective = "edp",
    padding: bool = True,
    cache: str | os.PathLike[str] | None = None,
    fused: bool = True,
) -> AnalyticModel:
    """The analytic model of a described accelerator, with every choice there is. Its defaults are what a cost means here.

    Args:
        accelerator: a shipped name or a .yaml file.
        constraints: name of one of its constraints; default: the whole mapping space.
        objective: of mappings: "edp", "energy" or "latency".
        padding: whether operands may be filled up with zeros where that pays, as any hardware can; else factors divide the
            products' extents, as Timeloop's do.
        cache: folder in which mappings are kept for later runs and other processes.
        fused: keep intermediates on chip where that pays.

    Raises:
        FileNotFoundError: if there is no such accelerator.
        ValueError: if its description cannot work, or a name is not known.
    """
    mapper = Mapper(load_accelerator(accelerator), constraints, objective, padding=padding, cache=cache)
    return AnalyticModel(mapper, fused)
