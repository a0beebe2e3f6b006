"""Losses of a distillation: layer by layer (paper, Eq. 3), and of the model's outputs (Eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from heat_hf.distillation.arguments import DistillationArguments
from heat_hf.distillation.stages import Stage
from heat_hf.encoders.signals import Signal, attention_distance, divergence, hidden_distance


def layer_losses(
    stage: Stage,
    args: DistillationArguments,
    student: Any,  # noqa: ANN401
    teacher: Any,  # noqa: ANN401
    mask: Tensor | None,
    places: Sequence[int],
) -> dict[str, Tensor]:
    """Eq. 3, weighted: sums over blocks. A student with fewer blocks learns from those of the teacher at some places."""
    losses: dict[str, Tensor] = {}
    if stage.attention:
        apart = attention_distance(student.attentions, [teacher.attentions[place] for place in places], mask)
        losses["attention"] = args.attention_weight * len(student.attentions) * apart
    hidden = args.hidden_weight_in(stage)
    if hidden:
        blocks = len(student.hidden_states) - 1
        embedded, *states = teacher.hidden_states
        apart = hidden_distance(student.hidden_states, (embedded, *(states[place] for place in places)), mask)
        losses["hidden"] = hidden * blocks * apart
    return losses


def output_losses(
    args: DistillationArguments,
    student: Sequence[Signal],
    teacher: Sequence[Signal],
    task_loss: Tensor | None,
) -> dict[str, Tensor]:
    """Eq. 4: half the Kullback-Leibler divergence at temperature τ, half the cross entropy.

    Of numbers, half the squared distance. Embeddings have no cross entropy; to theirs comes the distance of all pairwise
    similarities of a batch.

    Args:
        args: temperature, its scaling, and weights.
        student: its outputs.
        teacher: likewise.
        task_loss: the task's own loss of the student, against labels; None to take the teacher's distribution instead.
    """
    scale = args.temperature**2 if args.scale_by_temperature else 1.0
    apart = divergence(student, teacher, args.temperature)
    if all(signal.categorical for signal in student):
        cross_entropy = task_loss if task_loss is not None else _cross_entropy(student, teacher)
        return {"divergence": scale * apart / 2, "cross_entropy": cross_entropy / 2}
    if task_loss is not None:
        return {"divergence": apart / 2, "own_loss": task_loss / 2}
    if student[0].values.shape[-1] == 1 or len(student[0].values) == 1 or not args.similarity_weight:
        return {"divergence": apart}
    return {"divergence": apart, "similarity": args.similarity_weight * _similarity_distance(student[0], teacher[0])}


def _cross_entropy(student: Sequence[Signal], teacher: Sequence[Signal]) -> Tensor:
    """−Σ p_teacher log p_student, mean over sequences."""
    lost = student[0].values.new_zeros(())
    for learned, taught in zip(student, teacher, strict=True):
        p, log_q = taught.values.softmax(-1), learned.values.log_softmax(-1)
        lost = lost - ((p * log_q).sum(-1) * learned.weights).sum()
    return lost / sum(float(signal.weights.sum()) for signal in student)


def _similarity_distance(student: Signal, teacher: Signal) -> Tensor:
    """Mean squared difference of the cosines of all pairs of different rows: what a sentence encoder is used for."""
    apart = (student.values @ student.values.T - teacher.values @ teacher.values.T).square()
    rows = len(apart)
    return (apart.sum() - apart.diagonal().sum()) / (rows * (rows - 1))


def total(parts: Mapping[str, Tensor]) -> Tensor:
    """The loss of a stage."""
    return torch.stack(list(parts.values())).sum()
