"""Layers to time: what a setting or a dense matrix runs in a model, with random weights."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize

Subject: TypeAlias = TensorSetting | MatrixSize  # what is timed; a size is the dense layer
MOST_COPIES = 16
COPIED_ELEMENTS, COPIED_TOKENS = 2**21, 1024  # of all copies together: for many tokens weights weigh little
READS_FEWER = ("fewer_inputs", "on_basis")  # formats whose layers read as many features as their rank


def copies(subject: Subject, tokens: int) -> int:
    """How many there are of a layer, each with weights of its own: a model does not find them in the cache."""
    size = subject if isinstance(subject, MatrixSize) else subject.size
    return max(1, min(MOST_COPIES, COPIED_ELEMENTS // size.elements, COPIED_TOKENS // tokens))


class Stack(nn.Module):
    """Copies of a layer, run one after the other as those of a model are.

    Args:
        subject: what the layers are.
        tokens: rows of each one's input, of extents (1, tokens, features).
    """

    def __init__(self, subject: Subject, tokens: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(_layer(subject, tokens, generator) for _ in range(copies(subject, tokens)))
        features = subject.columns if isinstance(subject, MatrixSize) else subject.shape.columns
        if isinstance(subject, TensorSetting) and subject.format in READS_FEWER:
            (features,) = subject.rank
        self.inputs = (_input(tokens, features),) * len(self.layers)
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What each layer makes of its input."""
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


def _input(tokens: int, features: int) -> Tensor:
    """Random rows. All inputs share their memory: in a model, what a layer reads was written just before."""
    global _numbers
    if len(_numbers) < tokens * features:
        _numbers = torch.randn(tokens * features, generator=torch.Generator().manual_seed(0))
    return _numbers[: tokens * features].reshape(1, tokens, features)


_numbers = torch.empty(0)


def _layer(subject: Subject, tokens: int, generator: torch.Generator) -> nn.Module:
    if isinstance(subject, MatrixSize):
        layer: nn.Module = nn.Linear(subject.columns, subject.rows)
    else:
        layer = FactorizedLinear(subject, tokens=tokens)
        if subject.format == "pivoted":
            layer.order.copy_(torch.randperm(subject.shape.rows, generator=generator))
    for parameter in layer.parameters():
        # Small, but no denormal numbers anywhere, which take CPUs far longer.
        nn.init.normal_(parameter, std=0.05, generator=generator)
    return layer.requires_grad_(False)
