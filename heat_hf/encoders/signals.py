"""How far a model is from the dense model: its outputs, its hidden states, its attention maps.

One notion of outputs serves all distillation, the Fisher information of the loss-aware projection, and the measure of a
compressed model without labels: for classes the Kullback-Leibler divergence of the dense model's distribution to the other's,
for numbers half the squared distance, for a headless encoder one minus the cosine of the embeddings that it serves, or half
their squared distance where it compares them by anything but cosines (`heat_hf.encoders.served`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heat_hf.encoders.served import served_by

OF_NUMBERS = ("regression", "multi_label_classification")  # problem types whose outputs are no scores of classes
MASKED = -1e30


@dataclass(frozen=True)
class Signal:
    """One output of a model for a batch.

    Attributes:
        values: rows × classes (logits), or rows × dimensions.
        categorical: whether these are logits.
        weights: of each row; those of a sequence add up to 1.
    """

    values: Tensor
    categorical: bool
    weights: Tensor


def output_signals(outputs: Any, inputs: Mapping[str, Tensor], model: Any) -> list[Signal]:  # noqa: ANN401
    """A model's outputs as signals: start and end of an answer, classes of sequences or tokens, numbers, embeddings.

    Args:
        outputs: of the model's forward pass.
        inputs: what it was given; an `attention_mask` marks padding.
        model: whose outputs these are; its configuration says what numbers are, and its checkpoint what embeddings are.

    Raises:
        ValueError: if the checkpoint's embeddings are made in a way that is not known.
    """
    ids = next(iter(inputs.values()))
    mask = inputs.get("attention_mask")
    mask = torch.ones(ids.shape[:2], device=ids.device) if mask is None or mask.dim() != 2 else mask
    rows = torch.ones(len(ids), device=ids.device)
    if getattr(outputs, "start_logits", None) is not None:
        logits = (outputs.start_logits, outputs.end_logits)
        return [Signal(positions.float().masked_fill(mask == 0, MASKED), True, rows / 2) for positions in logits]
    values = getattr(outputs, "logits", None)
    if values is None:
        return [Signal(served_by(model).compared(outputs[0].float(), mask), False, rows)]
    if values.dim() == 3:
        share = mask / mask.sum(1, keepdim=True).clamp_min(1)
        return [Signal(values[mask.bool()].float(), True, share[mask.bool()])]
    numbers = values.shape[-1] == 1 or getattr(model.config, "problem_type", None) in OF_NUMBERS
    return [Signal(values.float(), not numbers, rows)]


def divergence(student: Sequence[Signal], teacher: Sequence[Signal], temperature: float = 1.0) -> Tensor:
    """Mean over the batch's sequences; differentiable in the student's values. 0 where both are the same.

    Args:
        student: its outputs.
        teacher: likewise.
        temperature: classes are compared by their logits divided by it.
    """
    lost = student[0].values.new_zeros(())
    for learned, taught in zip(student, teacher, strict=True):
        if learned.categorical:
            log_q, log_p = ((values / temperature).log_softmax(-1) for values in (learned.values, taught.values))
            per_row = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        else:
            per_row = (learned.values - taught.values).square().sum(-1) / 2
        lost = lost + (per_row * learned.weights).sum()
    sequences = sum(float(signal.weights.sum()) for signal in student)
    return lost / sequences


def hidden_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    """Mean over blocks of 1 − cos of the hidden states, CosEmbed of Eq. 3; padding does not count, every sequence the same.

    Args:
        student: the embeddings' output and that of every block, each of extents (sequences, tokens, hidden size).
        teacher: likewise.
        mask: of extents (sequences, tokens), 0 for padding.
    """
    pairs = list(zip(student, teacher, strict=True))[1:]
    return torch.stack([_mean(_apart(learned, taught), mask) for learned, taught in pairs]).mean()


def attention_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    """Mean over blocks and heads of 1 − cos of each token's attention, CosEmbed of Eq. 3; padding does not count.

    Where a block lost heads, each that it has is compared with the one of the teacher's that it is most like, sequence by
    sequence: it is not known which they were.

    Args:
        student: the maps of every block, each of extents (sequences, heads, tokens, tokens).
        teacher: likewise.
        mask: of extents (sequences, tokens), 0 for padding.
    """
    keys = None if mask is None else mask[:, None, None, :]
    lost = []
    for learned, taught in zip(student, teacher, strict=True):
        pair = (learned, taught) if keys is None else (learned * keys, taught * keys)
        if learned.shape[1] == taught.shape[1]:
            lost.append(_mean(_apart(*pair).mean(1), mask))
        else:
            lost += [_nearest(head, pair[1], mask) / learned.shape[1] for head in pair[0].split(1, dim=1)]
    return torch.stack(lost).sum() / len(student)


def _nearest(head: Tensor, heads: Tensor, mask: Tensor | None) -> Tensor:
    """The distance of a head's maps from those of whichever of several heads is nearest, mean over sequences."""
    alone = None if mask is None else mask[:, None]
    return _by_sequence(_apart(head, heads), alone).amin(1).mean()


def _apart(one: Tensor, other: Tensor) -> Tensor:
    return 1 - torch.nn.functional.cosine_similarity(one.float(), other.float(), dim=-1)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens of a sequence, then over sequences: the same for a batch and for its parts."""
    return _by_sequence(values, mask).mean()


def _by_sequence(values: Tensor, mask: Tensor | None) -> Tensor:
    return values.mean(-1) if mask is None else (values * mask).sum(-1) / mask.sum(-1).clamp_min(1)


def random_probe(signals: Sequence[Signal], generator: torch.Generator) -> Tensor:
    """A scalar whose gradient J has E[J Jᵀ] = the second derivative of the summed divergence at these values (the Fisher).

    Args:
        signals: of a batch, with a graph to differentiate.
        generator: of the random directions, on the CPU.
    """
    probe = signals[0].values.new_zeros(())
    for signal in signals:
        noise = torch.randn(signal.values.shape, generator=generator).to(signal.values)
        if signal.categorical:
            p = signal.values.detach().softmax(-1)
            noise = p.sqrt() * noise - p * (p.sqrt() * noise).sum(-1, keepdim=True)
        probe = probe + (signal.values * noise * signal.weights.sqrt()[:, None]).sum()
    return probe
