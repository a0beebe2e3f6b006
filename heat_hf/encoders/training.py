"""Training a model to be like a dense teacher: the defaults of Trainer's options, and what every such training shares."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import SaveStrategy


@dataclass
class TeachingArguments(TrainingArguments):
    """Trainer's options, with defaults for learning from a teacher.

    Raises:
        ValueError: for a value that cannot work.
    """

    per_device_train_batch_size: int = field(default=32, metadata={"help": "rows in a batch"})
    learning_rate: float = field(default=1e-4, metadata={"help": "peak learning rate"})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "little is padded"})
    save_total_limit: int | None = field(default=1, metadata={"help": "checkpoints kept"})
    logging_steps: float = field(default=50, metadata={"help": "steps between log lines"})
    report_to: None | str | list[str] = field(  # noqa: RUF036 - HfArgumentParser reads it in this order
        default_factory=list, metadata={"help": "trackers"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        positive = ["learning_rate", *(["num_train_epochs"] if self.max_steps <= 0 else [])]
        positive += ["save_steps"] if self.save_strategy == SaveStrategy.STEPS else []
        for name in (*positive, "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class TeachingTrainer(Trainer):
    """Trainer with a loss that is a mean over a batch's rows, computed by `loss_and_outputs`."""

    loss_is_scaled_for_ga = False  # else gradient accumulation would divide by its steps twice

    @abstractmethod
    def loss_and_outputs(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """The loss of a batch, and the model's outputs."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """As Trainer asks for it."""
        loss, outputs = self.loss_and_outputs(model, inputs)
        return (loss, outputs) if return_outputs else loss


def disable_dropout(model: nn.Module) -> None:
    """A student is to meet its teacher's outputs, not to be robust to noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
