"""What a user could do instead in a few lines: fewer blocks; and the time of a forward pass beside the dense model's."""

from __future__ import annotations

import copy
import statistics
from functools import partial
from typing import Any

import torch
from torch import nn

from heat_hf.hardware.machine.race import race


def encoder_of(model: Any) -> Any:
    """What holds the Transformer blocks of a model of BERT's family, as `layer`."""
    return getattr(model, model.base_model_prefix, model).encoder


def fewer_blocks(dense: Any, count: int) -> Any:
    """A copy with so many of its blocks, evenly spaced, the last among them."""
    model = copy.deepcopy(dense)
    blocks = list(encoder_of(model).layer)
    step = len(blocks) // count
    encoder_of(model).layer = nn.ModuleList(blocks[step - 1 :: step])
    model.config.num_hidden_layers = len(encoder_of(model).layer)
    return model


def time_ratio(dense: Any, model: Any, repeats: int) -> float:
    """Median time of a forward pass of 8 × 128 tokens over the dense model's, side by side."""
    ids = torch.randint(1000, 20_000, (8, 128), generator=torch.Generator().manual_seed(0))
    passes = {name: partial(one.eval(), input_ids=ids) for name, one in (("dense", dense), ("now", model))}
    with torch.inference_mode():
        seconds = race(passes, repeats)
    return statistics.median(now / before for now, before in zip(seconds["now"], seconds["dense"], strict=True))
