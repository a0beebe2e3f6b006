"""Layers to time: what a setting or a dense matrix runs in a model, with random weights."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting
from torch.nn import functional

from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.between import Between

Subject: TypeAlias = TensorSetting | MatrixSize | Between  # what is timed; a size is the dense layer
MOST_COPIES = 16
COPIED_ELEMENTS, COPIED_TOKENS = 2**21, 1024  # of all copies together: for many tokens weights weigh little
READS_FEWER = ("fewer_inputs", "on_basis")  # formats whose layers read as many features as their rank


def copies(subject: Subject, tokens: int) -> int:
    """How many there are of a layer, each with weights of its own: a model does not find them in the cache."""
    size = subject.size if isinstance(subject, TensorSetting) else subject
    weights = size.elements if isinstance(size, MatrixSize) else 1
    return max(1, min(MOST_COPIES, COPIED_ELEMENTS // weights, COPIED_TOKENS // tokens))


class Stack(nn.Module):
    """Copies of a layer, run one after the other as those of a model are.

    Args:
        subject: what the layers are.
        tokens: rows of each one's input, of extents (1, tokens, features); of what is between layers (batch size, sequence
            length, features), and attention has three.
    """

    def __init__(self, subject: Subject, tokens: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(_layer(subject, tokens, generator) for _ in range(copies(subject, tokens)))
        self.inputs = inputs(subject, tokens)
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What each layer makes of its inputs."""
        each = len(inputs) // len(self.layers)
        return tuple(layer(*inputs[k * each : (k + 1) * each]) for k, layer in enumerate(self.layers))


def inputs(subject: Subject, tokens: int) -> tuple[Tensor, ...]:
    """Of a stack, layer by layer."""
    each = 3 if isinstance(subject, Between) and not subject.activation else 1
    return (_input(*_extents(subject, tokens)),) * (each * copies(subject, tokens))


def _extents(subject: Subject, tokens: int) -> tuple[int, int, int]:
    """Of an input."""
    if isinstance(subject, Between):
        return subject.batch_size, subject.sequence_length, subject.features
    if isinstance(subject, MatrixSize):
        return 1, tokens, subject.columns
    return 1, tokens, subject.rank[0] if subject.format in READS_FEWER else subject.shape.columns


def _input(*extents: int) -> Tensor:
    """Random rows. All inputs share their memory: in a model, what a layer reads was written just before."""
    global _numbers
    if len(_numbers) < math.prod(extents):
        _numbers = torch.randn(math.prod(extents), generator=torch.Generator().manual_seed(0))
    return _numbers[: math.prod(extents)].reshape(extents)


_numbers = torch.empty(0)


class Attention(nn.Module):
    """Attention as models do it with what query, key and value answer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, *projected: Tensor) -> Tensor:
        """Of extents (batch size, sequence length, features), as its inputs."""
        (batch, length), heads = projected[0].shape[:2], (-1, self.size)
        query, key, value = (x.unflatten(-1, heads).transpose(1, 2) for x in projected)
        # Models drop a mask that hides nothing; a graph always has one.
        mask = (projected[0][:, None, None, :, 0] < math.inf).expand(batch, 1, length, length) if is_exporting() else None
        return functional.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(-2)


def _layer(subject: Subject, tokens: int, generator: torch.Generator) -> nn.Module:
    if isinstance(subject, Between):
        from transformers.activations import get_activation

        return get_activation(subject.activation) if subject.activation else Attention(subject.size)
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
