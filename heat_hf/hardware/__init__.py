"""What a computation costs on hardware: a value, a protocol, and the analytic model of described accelerators."""

from __future__ import annotations

from heat_hf.hardware.analytic import AnalyticModel, cost_model
from heat_hf.hardware.cost import Cost, MisfitError
from heat_hf.hardware.gemm import Gemm
from heat_hf.hardware.protocol import CostModel
from heat_hf.hardware.spec import Accelerator, Level, Spatial, load_accelerator

__all__ = [
    "Accelerator",
    "AnalyticModel",
    "Cost",
    "CostModel",
    "Gemm",
    "Level",
    "MisfitError",
    "Spatial",
    "cost_model",
    "load_accelerator",
]
