"""What every stage of a distillation asks of the student, and how stages make a recipe (paper, Table 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TARGETS = ("teacher", "labels")
# Defaults that the command line, the API and the recipes share: what low rank was tuned with.
EPOCHS, BATCH_SIZE, LAYER_SHARE, SAVE_STEPS = 2.0, 32, 0.5, 200
LEARNING_RATE, LOGIT_LEARNING_RATE = 3e-4, 1e-4
LABEL_COLUMNS = ("labels", "label", "label_ids", "start_positions", "end_positions")


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


def label_columns(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The references among a batch's columns."""
    return {name: inputs[name] for name in LABEL_COLUMNS if name in inputs}
