"""Models of PyTorch in fewer digits."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn


def in_int8(model: Any) -> Any:  # noqa: ANN401
    """A copy whose linears multiply in int8; activations are quantized as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to torchao one day
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def in_precision(model: Any, precision: str) -> Any:  # noqa: ANN401
    """The model itself in float32, or a copy: in bfloat16 as a whole, or `in_int8`."""
    if precision == "int8":
        return in_int8(model)
    return copy.deepcopy(model).bfloat16() if precision == "bfloat16" else model
