"""Where a model works with what its matrices answer, before another one reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from heat_hf.encoders.together import head_groups, inner_pairs
from heat_hf.hardware.between import Between

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def between(
    model: PreTrainedModel, linears: Mapping[str, nn.Linear], batch_size: int, sequence_length: int
) -> dict[str, Between]:
    """Activations and attentions by the name of the linear that reads them, where neurons or heads may go.

    Args:
        model: dense.
        linears: its layers to choose for, by name.
        batch_size: sequences of a forward pass.
        sequence_length: tokens of each.
    """
    config, tokens = model.config, (batch_size, sequence_length)
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    found = {}
    if isinstance(activation, str):
        for *_, reader in inner_pairs(model, linears):
            found[reader] = Between(linears[reader].in_features, 1, activation, *tokens)
    for (*_, reader), size in head_groups(model, linears).items():
        found[reader] = Between(linears[reader].in_features // size, size, "", *tokens)
    return found
