"""int8 in PyTorch."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn


def in_int8(model: Any) -> Any:  # noqa: ANN401
    """A copy whose linears multiply in int8; activations are quantized as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to torchao one day
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
