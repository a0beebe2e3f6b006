"""What every stage of a distillation asks of the student, and how stages make a recipe (paper, Eqs. 3 and 4, Table 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from heat_hf.encoders.signals import Signal, attention_distance, divergence, hidden_distance

if TYPE_CHECKING:
    from heat_hf.distillation.arguments import DistillationArguments


@dataclass(frozen=True)
class Stage:
    """Which losses a stage adds up.

    Attributes:
        name: in logs.
        attention, hidden: CosEmbed of attention maps, and of hidden states, of every block (Eq. 3).
        logits: the model's outputs (Eq. 4).
        labels: the task's own loss, without the teacher.
    """

    name: str
    attention: bool = False
    hidden: bool = False
    logits: bool = False
    labels: bool = False

    @property
    def by_layer(self) -> bool:
        """Whether the stage only aligns layers."""
        return not (self.logits or self.labels)


LAYERS, LOGITS = Stage("layers", attention=True, hidden=True), Stage("logits", logits=True)
RECIPES: dict[str, tuple[Stage, ...]] = {
    "two-stage": (LAYERS, LOGITS),
    "one-stage": (Stage("all", attention=True, hidden=True, logits=True),),
    "layers": (LAYERS,),
    "logits": (LOGITS,),
    "hidden-logits": (Stage("hidden", hidden=True), LOGITS),
    "attention-logits": (Stage("attention", attention=True), LOGITS),
    "labels": (Stage("labels", labels=True),),
}


def layer_losses(
    stage: Stage, args: DistillationArguments, student: Any, teacher: Any, mask: Tensor | None  # noqa: ANN401
) -> dict[str, Tensor]:  # fmt: skip
    """Eq. 3, weighted: sums over blocks."""
    found: dict[str, Tensor] = {}
    if stage.attention:
        apart = attention_distance(student.attentions, teacher.attentions, mask)
        found["attention"] = args.attention_weight * len(student.attentions) * apart
    hidden = args.hidden_weight_in(stage)
    if hidden:
        apart = hidden_distance(student.hidden_states, teacher.hidden_states, mask)
        found["hidden"] = hidden * (len(student.hidden_states) - 1) * apart
    return found


def output_losses(
    args: DistillationArguments,
    student: Sequence[Signal],
    teacher: Sequence[Signal],
    own_loss: Tensor | None,
) -> dict[str, Tensor]:
    """Eq. 4: half the Kullback-Leibler divergence at temperature τ, half the cross entropy.

    Of numbers, half the squared distance. Embeddings have no cross entropy; to theirs comes the distance of all pairwise
    similarities of a batch.

    Args:
        args: temperature, its scaling, and weights.
        student: what it says.
        teacher: likewise.
        own_loss: the task's own loss of the student, against labels; None to take the teacher's distribution instead.
    """
    scale = args.temperature**2 if args.scale_by_temperature else 1.0
    apart = divergence(student, teacher, args.temperature)
    if all(own.categorical for own in student):
        other = own_loss if own_loss is not None else _cross_entropy(student, teacher)
        return {"divergence": scale * apart / 2, "cross_entropy": other / 2}
    if own_loss is not None:
        return {"divergence": apart / 2, "own_loss": own_loss / 2}
    if student[0].values.shape[-1] == 1 or len(student[0].values) == 1 or not args.similarity_weight:
        return {"divergence": apart}
    return {"divergence": apart, "similarity": args.similarity_weight * _similarity_distance(student[0], teacher[0])}


def _cross_entropy(student: Sequence[Signal], teacher: Sequence[Signal]) -> Tensor:
    """−Σ p_teacher log p_student, mean over sequences."""
    lost = student[0].values.new_zeros(())
    for own, other in zip(student, teacher, strict=True):
        p, log_q = other.values.softmax(-1), own.values.log_softmax(-1)
        lost = lost - ((p * log_q).sum(-1) * own.weights).sum()
    return lost / sum(float(own.weights.sum()) for own in student)


def _similarity_distance(student: Signal, teacher: Signal) -> Tensor:
    """Mean squared difference of the cosines of all pairs of different rows: what a sentence encoder is used for."""
    apart = (student.values @ student.values.T - teacher.values @ teacher.values.T).square()
    rows = len(apart)
    return (apart.sum() - apart.diagonal().sum()) / (rows * (rows - 1))


def label_columns(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The references among a batch's columns."""
    return {name: inputs[name] for name in LABEL_COLUMNS if name in inputs}


LABEL_COLUMNS = ("labels", "label", "label_ids", "start_positions", "end_positions")


def total(parts: Mapping[str, Tensor]) -> Tensor:
    """The loss of a stage."""
    return torch.stack(list(parts.values())).sum()
