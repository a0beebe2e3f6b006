"""heat_hf: hardware-efficient tensor factorization of Transformer encoders, as a Hugging Face plug-in.

Importing the package registers the quantization method "heat" with Transformers, so that compressed models load with
`AutoModel….from_pretrained`, whichever of the two is imported first. Everything else is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heat_hf.integrations.registration import install as _register

if TYPE_CHECKING:
    from heat_hf.compression.compressor import HeatCompressor
    from heat_hf.compression.config import HeatConfig
    from heat_hf.distillation.arguments import DistillationArguments
    from heat_hf.distillation.teacher import Teacher
    from heat_hf.distillation.trainer import DistillationTrainer
    from heat_hf.encoders.checkpoints.hub import push_folder
    from heat_hf.encoders.rows import joined_texts
    from heat_hf.encoders.statistics import Statistics
    from heat_hf.encoders.vocabulary import trim_vocabulary
    from heat_hf.evaluation.tasks import TASKS, Task, evaluate_task
    from heat_hf.formats import FORMATS, Format, MatrixSize, Solver, Subscripts, TensorShape
    from heat_hf.formats.decomposition import decompose
    from heat_hf.formats.layer import FactorizedLinear
    from heat_hf.formats.plan import ContractionPlan
    from heat_hf.formats.planning import plan_contraction
    from heat_hf.formats.setting import TensorSetting
    from heat_hf.hardware import Cost, CostModel, Gemm, cost_model, load_accelerator
    from heat_hf.integrations.onnx import OnnxModel, export_onnx
    from heat_hf.integrations.openvino import OpenVinoModel, export_openvino
    from heat_hf.reports.card import Evaluation, Origin
    from heat_hf.reports.compression import CompressionReport
    from heat_hf.reports.model_page import report_page
    from heat_hf.reports.ranks import RankRecord
    from heat_hf.search.ranks.methods import RANK_SEARCHES, RankSearch, Rule
    from heat_hf.search.ranks.variants import Variant
    from heat_hf.search.shapes.search import ShapeSearch, search_shapes
    from heat_hf.search.shapes.table import CostTable

__all__ = [
    "FORMATS",
    "RANK_SEARCHES",
    "TASKS",
    "CompressionReport",
    "ContractionPlan",
    "Cost",
    "CostModel",
    "CostTable",
    "DistillationArguments",
    "DistillationTrainer",
    "Evaluation",
    "FactorizedLinear",
    "Format",
    "Gemm",
    "HeatCompressor",
    "HeatConfig",
    "MatrixSize",
    "OnnxModel",
    "OpenVinoModel",
    "Origin",
    "RankRecord",
    "RankSearch",
    "Rule",
    "ShapeSearch",
    "Solver",
    "Statistics",
    "Subscripts",
    "Task",
    "Teacher",
    "TensorSetting",
    "TensorShape",
    "Variant",
    "cost_model",
    "decompose",
    "evaluate_task",
    "export_onnx",
    "export_openvino",
    "joined_texts",
    "load_accelerator",
    "plan_contraction",
    "push_folder",
    "report_page",
    "search_shapes",
    "trim_vocabulary",
]
_MODULES = {
    "heat_hf.compression.compressor": ("HeatCompressor",),
    "heat_hf.compression.config": ("HeatConfig",),
    "heat_hf.distillation.arguments": ("DistillationArguments",),
    "heat_hf.distillation.teacher": ("Teacher",),
    "heat_hf.distillation.trainer": ("DistillationTrainer",),
    "heat_hf.encoders.checkpoints.hub": ("push_folder",),
    "heat_hf.encoders.rows": ("joined_texts",),
    "heat_hf.evaluation.tasks": ("TASKS", "Task", "evaluate_task"),
    "heat_hf.encoders.statistics": ("Statistics",),
    "heat_hf.encoders.vocabulary": ("trim_vocabulary",),
    "heat_hf.formats": ("FORMATS", "Format", "MatrixSize", "Solver", "Subscripts", "TensorShape"),
    "heat_hf.formats.decomposition": ("decompose",),
    "heat_hf.formats.layer": ("FactorizedLinear",),
    "heat_hf.formats.plan": ("ContractionPlan",),
    "heat_hf.formats.planning": ("plan_contraction",),
    "heat_hf.formats.setting": ("TensorSetting",),
    "heat_hf.hardware": ("Cost", "CostModel", "Gemm", "cost_model", "load_accelerator"),
    "heat_hf.integrations.onnx": ("OnnxModel", "export_onnx"),
    "heat_hf.integrations.openvino": ("OpenVinoModel", "export_openvino"),
    "heat_hf.reports.card": ("Evaluation", "Origin"),
    "heat_hf.reports.compression": ("CompressionReport",),
    "heat_hf.reports.model_page": ("report_page",),
    "heat_hf.reports.ranks": ("RankRecord",),
    "heat_hf.search.ranks.methods": ("RANK_SEARCHES", "RankSearch", "Rule"),
    "heat_hf.search.ranks.variants": ("Variant",),
    "heat_hf.search.shapes.search": ("ShapeSearch", "search_shapes"),
    "heat_hf.search.shapes.table": ("CostTable",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "__version__":
        from heat_hf.encoders.checkpoints.names import package_version

        return package_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'heat_hf' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


_register()
