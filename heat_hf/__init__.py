"""heat_hf: hardware-efficient tensor factorization of Transformer encoders, as a Hugging Face plug-in.

Importing the package registers the quantization method "heat" with Transformers, so that compressed models load with
`AutoModel….from_pretrained`. Everything else is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heat_hf.integrations import transformers_quantizer as _registration  # noqa: F401

if TYPE_CHECKING:
    from heat_hf.compressor import HeatCompressor
    from heat_hf.config import HeatConfig
    from heat_hf.contraction import ContractionPlan
    from heat_hf.formats import FORMATS, TensorShape
    from heat_hf.layers import FactorizedLinear
    from heat_hf.planning import plan_contraction
    from heat_hf.report import CompressionReport
    from heat_hf.setting import TensorSetting

_PUBLIC = {
    "CompressionReport": "heat_hf.report",
    "ContractionPlan": "heat_hf.contraction",
    "FORMATS": "heat_hf.formats",
    "FactorizedLinear": "heat_hf.layers",
    "HeatCompressor": "heat_hf.compressor",
    "HeatConfig": "heat_hf.config",
    "TensorSetting": "heat_hf.setting",
    "TensorShape": "heat_hf.formats",
    "plan_contraction": "heat_hf.planning",
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
        from heat_hf.config import package_version

        return package_version()
    if name not in _PUBLIC:
        raise AttributeError(f"module 'heat_hf' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
