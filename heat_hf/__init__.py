"""heat_hf: hardware-efficient tensor factorization of Transformer encoders, as a Hugging Face plug-in.

Importing the package registers the quantization method "heat" with Transformers, so that compressed models load with
`AutoModel….from_pretrained`. Everything else is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heat_hf.integrations import transformers as _registration  # noqa: F401

if TYPE_CHECKING:
    from heat_hf.compression.compressor import HeatCompressor
    from heat_hf.compression.config import HeatConfig
    from heat_hf.formats import FORMATS, TensorShape
    from heat_hf.formats.layer import FactorizedLinear
    from heat_hf.formats.plan import ContractionPlan
    from heat_hf.formats.planning import plan_contraction
    from heat_hf.formats.setting import TensorSetting
    from heat_hf.reports.compression import CompressionReport

_PUBLIC = {
    "CompressionReport": "heat_hf.reports.compression",
    "ContractionPlan": "heat_hf.formats.plan",
    "FORMATS": "heat_hf.formats",
    "FactorizedLinear": "heat_hf.formats.layer",
    "HeatCompressor": "heat_hf.compression.compressor",
    "HeatConfig": "heat_hf.compression.config",
    "TensorSetting": "heat_hf.formats.setting",
    "TensorShape": "heat_hf.formats",
    "plan_contraction": "heat_hf.formats.planning",
}

__all__ = [
    "FORMATS",
    "CompressionReport",
    "ContractionPlan",
    "FactorizedLinear",
    "HeatCompressor",
    "HeatConfig",
    "TensorSetting",
    "TensorShape",
    "plan_contraction",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "__version__":
        from heat_hf.compression.config import package_version

        return package_version()
    if name not in _PUBLIC:
        raise AttributeError(f"module 'heat_hf' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
