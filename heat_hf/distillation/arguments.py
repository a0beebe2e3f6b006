"""How a factorized model is distilled: Trainer's options, and the recipe's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from transformers.trainer_utils import HubStrategy

from heat_hf.distillation.stages import (
    BATCH_SIZE,
    EPOCHS,
    LAYER_SHARE,
    LEARNING_RATE,
    LOGIT_LEARNING_RATE,
    RECIPES,
    SAVE_STEPS,
    TARGETS,
    Stage,
)
from heat_hf.encoders.training import TeachingArguments
from heat_hf.reports.markdown import plain


@dataclass
class DistillationArguments(TeachingArguments):
    """Options of `DistillationTrainer`, beside all of Trainer's.

    `learning_rate` is that of the first stage; each stage has its warm-up and decay of its own, and starts with a fresh
    optimizer state.

    Attributes:
        recipe: a key of `heat_hf.distillation.RECIPES`; the default is the paper's.
        layer_share: of all steps, those of the first stage, where the recipe has two.
        logit_learning_rate: of the second stage, which undoes little of the first's with a smaller one.
        attention_weight, hidden_weight: of the two parts of Eq. 3.
        kept_hidden_weight: of the hidden states' distance in stages that match outputs; 0 is the paper's Eq. 4.
        temperature: τ of Eq. 4.
        scale_by_temperature: multiply the divergence by τ², so that its gradients keep their size.
        targets: of Eq. 4's cross entropy: the "teacher"'s distribution, as in the paper, or the data's "labels".
        similarity_weight: of the pairwise similarities of a sentence encoder's batch.
        student_dropout: leave the student's dropout on. Off by default: the teacher's outputs are to be met, not noise.
        train_embeddings: also train the embeddings that were not changed; word embeddings of low rank always are.
        encoded_rate: learning rate of the encoded weights of `strassen_tile`, in those of everything else.
        teacher_cache_gib: memory for the teacher's answers to training rows, so that each row is asked once; 0: none.

    Raises:
        ValueError: for a value that cannot work.
    """

    output_dir: str | None = field(default="distilled", metadata={"help": "folder of checkpoints"})
    learning_rate: float = field(default=LEARNING_RATE, metadata={"help": "peak learning rate of the first stage"})
    num_train_epochs: float = field(default=EPOCHS, metadata={"help": "epochs of all stages together"})
    per_device_train_batch_size: int = field(default=BATCH_SIZE, metadata={"help": "rows in a batch"})
    save_steps: float = field(default=SAVE_STEPS, metadata={"help": "steps between checkpoints"})
    logging_steps: float = field(default=0.02, metadata={"help": "steps between log lines, below 1 a fraction of all"})
    warmup_steps: float = field(default=0.1, metadata={"help": "steps of a stage until its peak, below 1 a fraction of it"})
    hub_strategy: HubStrategy | str = field(default="end", metadata={"help": "only end: checkpoints are not pushed"})
    recipe: str = field(default="two-stage", metadata={"help": f"one of {', '.join(RECIPES)}"})
    layer_share: float = field(default=LAYER_SHARE, metadata={"help": "share of the steps that the first of two stages takes"})
    logit_learning_rate: float = field(default=LOGIT_LEARNING_RATE, metadata={"help": "that of the second stage"})
    attention_weight: float = field(default=1.0, metadata={"help": "weight of the attention maps' distance"})
    hidden_weight: float = field(default=1.0, metadata={"help": "weight of the hidden states' distance"})
    kept_hidden_weight: float = field(default=0.0, metadata={"help": "the same, in stages that match outputs"})
    temperature: float = field(default=1.0, metadata={"help": "of the outputs' divergence"})
    scale_by_temperature: bool = field(default=True, metadata={"help": "multiply the divergence by temperature squared"})
    targets: str = field(default="teacher", metadata={"help": "of the cross entropy: teacher or labels"})
    similarity_weight: float = field(default=1.0, metadata={"help": "weight of pairwise similarities of sentence embeddings"})
    student_dropout: bool = field(default=False, metadata={"help": "leave the student's dropout on"})
    train_embeddings: bool = field(default=False, metadata={"help": "train the embeddings, too"})
    encoded_rate: float = field(default=1.0, metadata={"help": "learning rate of encoded weights, times the others'"})
    teacher_cache_gib: float = field(default=0.0, metadata={"help": "GiB for the teacher's answers, asked once a row"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("recipe", tuple(RECIPES)), ("targets", TARGETS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        strategy = HubStrategy(self.hub_strategy)
        if self.push_to_hub and strategy != HubStrategy.END:
            raise ValueError(f"hub_strategy must be end: checkpoints are not pushed, got {strategy.value}")
        for own in fields(self):
            value = getattr(self, own.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{own.name} must be finite, got {value}")
        self._check_numbers()
        if any(stage.by_layer for stage in self.stages) and not self.attention_weight + self.hidden_weight:
            raise ValueError("attention_weight and hidden_weight are both 0: the first stage would have nothing to do")
        if self.max_steps > 0:
            self.stage_steps(self.max_steps)

    def _check_numbers(self) -> None:
        if not 0 < self.layer_share < 1:
            raise ValueError(f"layer_share must be between 0 and 1, both excluded, got {self.layer_share}")
        for name in ("temperature", "logit_learning_rate", "encoded_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("attention_weight", "hidden_weight", "kept_hidden_weight", "similarity_weight", "teacher_cache_gib"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Of the recipe."""
        return RECIPES[self.recipe]

    def hidden_weight_in(self, stage: Stage) -> float:
        """Weight of the hidden states' distance in a stage; 0 where they are not needed."""
        if stage.hidden:
            return self.hidden_weight
        return 0.0 if stage.by_layer else self.kept_hidden_weight

    def rates(self) -> list[float]:
        """Peak learning rate of every stage."""
        return [self.learning_rate, self.logit_learning_rate][: len(self.stages)]

    def stage_steps(self, steps: int) -> list[int]:
        """Optimizer steps of every stage, of so many together.

        Raises:
            ValueError: if a stage gets none.
        """
        if len(self.stages) == 1:
            return [steps]
        first = round(self.layer_share * steps)
        if not 0 < first < steps:
            raise ValueError(f"{steps} steps are too few for {len(self.stages)} stages with layer_share={self.layer_share}")
        return [first, steps - first]

    def described(self, steps: int, rows: int, data: str = "") -> str:
        """A sentence on a training, for a model's card.

        Args:
            steps: taken.
            rows: of the training data.
            data: its name.
        """
        rates, named = " and ".join(f"{rate:g}" for rate in self.rates()), f" of {plain(data)}" if data else ""
        return (
            f"distilled from the dense model by the recipe “{self.recipe}” on {rows:,} rows{named}: "
            f"{steps:,} steps of {self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size} rows, "
            f"learning rates {rates}, seed {self.seed}."
        )
