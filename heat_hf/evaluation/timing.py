"""Time of models' forward passes, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from heat_hf.hardware.machine.race import race


@dataclass(frozen=True)
class Latency:
    """Seconds of one forward pass over repeated runs: median, and lower and upper quartile."""

    median: float
    lower: float
    upper: float


def measure_latency(
    models: Mapping[str, PreTrainedModel], batch_size: int = 8, sequence_length: int = 128, repeats: int = 20
) -> dict[str, Latency]:
    """Time a forward pass of models side by side, see `race`.

    Args:
        models: models by name, with the same vocabulary.
        batch_size: rows of the random token ids.
        sequence_length: tokens in a row.
        repeats: passes of each model that count; two more warm up.
    """
    vocabulary = min(model.config.vocab_size for model in models.values())
    ids = torch.randint(vocabulary, (batch_size, sequence_length), generator=torch.Generator().manual_seed(0))

    def forward(model: PreTrainedModel) -> None:
        inputs = ids.to(model.device)
        model(input_ids=inputs)
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)

    with torch.inference_mode():
        times = race({name: partial(forward, model) for name, model in models.items()}, repeats)
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in times.items()}
    return {name: Latency(median, lower, upper) for name, (lower, median, upper) in quartiles.items()}
