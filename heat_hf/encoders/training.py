"""Training a model to be like a dense teacher: the defaults of Trainer's options, and what every such training shares."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_utils import unwrap_model
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import SaveStrategy

from heat_hf.encoders.checkpoints.storage import writing
from heat_hf.encoders.resuming import mark, newest_checkpoint, require_training, step_rows, stopping, training_key
from heat_hf.encoders.tiles import encoded_weights


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
    """Trainer with a loss that is a mean over a batch's rows, computed by `loss_and_outputs`.

    A resumed training ends with the same weights as an uninterrupted one, and goes on only from a checkpoint of its own.

    Attributes:
        dense: the dense model that is learned from.
        rows: training data, as given.
    """

    loss_is_scaled_for_ga = False  # else gradient accumulation would divide by its steps twice
    dense: nn.Module
    rows: Any
    _key: dict[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_LogWithCheckpoint())

    @abstractmethod
    def loss_and_outputs(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """The loss of a batch, and the model's outputs."""

    @property
    def shares_matter(self) -> bool:
        """Whether the weights depend on how processes share the rows of a step, by more than rounding."""
        return False

    def before_first_step(self) -> None:
        """Work that a training starts with, once it is known to be able to."""

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

    @property
    def scored(self) -> Any:  # noqa: ANN401
        """Rows whose scores decide when the training stops or which weights it keeps; None where they are only logged."""
        decide = self.args.load_best_model_at_end or stopping(self.callback_handler.callbacks)
        return self.eval_dataset if decide else None

    @property
    def key(self) -> dict[str, Any]:
        """All that decides which weights the training ends with; taken before its first step, kept in every checkpoint."""
        if self._key is None:
            student: Any = unwrap_model(self.model)  # type: ignore[arg-type]
            callbacks = self.callback_handler.callbacks
            shared = self.shares_matter
            self._key = training_key(student, self.dense, self.args, self.rows, self.scored, callbacks, shared)
        return self._key

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:  # noqa: ANN401
        """Trainer's, going on only from a whole checkpoint of this very training.

        Args:
            resume_from_checkpoint: a checkpoint; True: the newest whole one in `args.output_dir`.
            **kwargs: of Trainer.

        Raises:
            ValueError: if the checkpoint lacks a part, or is of a training with another student, teacher, data or arguments.
        """
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = newest_checkpoint(Path(str(self.args.output_dir)))  # type: ignore[assignment]
            if checkpoint is None:
                raise ValueError(f"{self.args.output_dir} has no whole checkpoint to go on from")
        if checkpoint is not None:
            require_training(Path(str(checkpoint)), self.key)
        _ = self.key
        self.before_first_step()
        return super().train(None if checkpoint is None else str(checkpoint), **kwargs)

    def create_optimizer(self, model: Any = None) -> Any:  # noqa: ANN401
        """Trainer's; the encoded weights of operators are groups of their own, with their own learning rate."""
        optimizer = super().create_optimizer(model)
        factor = getattr(self.args, "encoded_rate", 1.0)
        encoded = encoded_weights(unwrap_model(self.model)) if factor != 1.0 else set()  # type: ignore[arg-type]
        for group in [group for group in optimizer.param_groups if encoded & set(group["params"])]:
            own = [parameter for parameter in group["params"] if parameter in encoded]
            group["params"] = [parameter for parameter in group["params"] if parameter not in encoded]
            optimizer.add_param_group({**group, "params": own, "lr": factor * group["lr"]})
        return optimizer

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401
        checkpoint = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save:
            mark(checkpoint, self.key)
        with writing(checkpoint):
            super()._save_checkpoint(model, trial)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:  # noqa: ANN401
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, (LengthGroupedSampler, RandomSampler)):
            return sampler
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size = step_rows(self.args)  # the same order however many processes share a step's rows
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return _OrderOfEpoch(sampler, seed, lambda: int(self.state.epoch or 0))


class _LogWithCheckpoint(TrainerCallback):
    """Logs where a checkpoint is written: a mean that went on after it would be another one in a resumed training."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Runs after Trainer has decided whether to save."""
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


class _OrderOfEpoch(Sampler[int]):
    """Rows in an order, grouped by length or not, that follows from seed and epoch.

    Trainer's own draw from generators that a resumed run meets in another state.
    """

    def __init__(self, sampler: LengthGroupedSampler | RandomSampler, seed: int, epoch: Callable[[], int]) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        state = np.random.SeedSequence([self.seed, self.epoch()]).generate_state(1)[0]
        self.sampler.generator = torch.Generator().manual_seed(int(state))
        return iter(self.sampler)


def disable_dropout(model: nn.Module) -> None:
    """A student is to meet its teacher's outputs, not to be robust to noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
