"""Time of calls and of models' forward passes, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Latency:
    """Seconds of one forward pass over repeated runs: median, and lower and upper quartile."""

    median: float
    lower: float
    upper: float


def race(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time calls side by side: one of each in turn, so that all see the same disturbances.

    Args:
        contestants: calls by name; each returns when its work is done.
        repeats: of each that count; two more warm up.

    Returns:
        Seconds of every repetition, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats + 2):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: values[2:] for name, values in times.items()}


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
