"""Pivoted layers are trained as the two factors of a low rank.

The rows that a pivoted layer keeps are rows of W′ as they happen to be, so steps of the same size in its elements move W′ far
in some directions and hardly in others. Two factors that share the singular values of W′ have no such directions. The matrix
is the same, before training and after.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from heat_hf.encoders.linears import factorized_layers, swap_modules

TRAINED, STORED = "low_rank", "pivoted"
EXACT = (torch.float32, torch.float64)  # others would round W′ twice


@contextmanager
def in_two_factors(model: nn.Module) -> Iterator[list[str]]:
    """Let pivoted layers be low-rank ones until the block ends, also after an error; their names.

    Those that stay as they are: with elements that are not trained, in short data types, or with something else in the place
    of a linear inside.

    Args:
        model: whose layers are swapped in place.
    """
    names = [name for name, layer in factorized_layers(model).items() if layer.setting.format == STORED and _trains(layer)]
    _convert(model, names, TRAINED)
    try:
        yield names
    finally:
        _convert(model, names, STORED)


def _trains(layer: nn.Module) -> bool:
    plain = all(type(child) is nn.Linear for child in layer.children())
    return plain and all(p.requires_grad and p.dtype in EXACT and not p.is_meta for p in layer.parameters())


def _convert(model: nn.Module, names: list[str], format: str) -> None:
    layers = factorized_layers(model)
    swap_modules(model, {layers[name]: layers[name].converted(format) for name in names})
