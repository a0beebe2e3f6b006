"""DistillationTrainer: Trainer with the paper's two stages (section 2.2.3)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainerCallback, get_scheduler
from transformers.modeling_utils import unwrap_model

from heat_hf.distillation.arguments import DistillationArguments
from heat_hf.distillation.checks import check_data, check_models
from heat_hf.distillation.factors import in_two_factors
from heat_hf.distillation.losses import layer_losses, output_losses, total
from heat_hf.distillation.numbered import ROW, KeepNumbers, Numbered
from heat_hf.distillation.results import TrainedStudent
from heat_hf.distillation.stages import Stage, label_columns
from heat_hf.distillation.teacher import Teacher, set_attention
from heat_hf.encoders.checkpoints.hub import push_saved
from heat_hf.encoders.linears import factorized_embeddings
from heat_hf.encoders.signals import OF_NUMBERS, output_signals
from heat_hf.encoders.training import TeachingTrainer, disable_dropout
from heat_hf.reports.card import Evaluation, Origin
from heat_hf.reports.compression import CompressionReport


class DistillationTrainer(TeachingTrainer):
    """Trains a factorized student to be like its dense teacher: first layer by layer, then in its outputs.

    Accelerate, mixed precision, gradient accumulation, checkpoints and resuming are Trainer's; the stage follows from the step
    alone, so a resumed run equals an uninterrupted one. Evaluation reports the loss of the last stage.

    Args:
        model: the student, a factorized model or a PEFT model around one.
        teacher: the dense model, or a `Teacher` that is shared with other trainings on the same rows.
        args: see `DistillationArguments`.
        train_dataset: tokenized rows, with labels where the recipe needs them.
        data_collator: of Trainer; the default one pads.
        report: of the student's compression, for `save` and `push_to_hub`; default: that of the folder it was loaded from.
        **kwargs: of Trainer.

    Raises:
        ValueError: if student, teacher and data do not go together; raised before the first step.
    """

    args: DistillationArguments

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        teacher: PreTrainedModel | Teacher,
        args: DistillationArguments | None = None,
        train_dataset: Any = None,  # noqa: ANN401
        data_collator: Any = None,  # noqa: ANN401
        report: CompressionReport | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or DistillationArguments()
        asked = teacher if isinstance(teacher, Teacher) else Teacher(teacher, args.teacher_cache_gib)
        self.taught = check_models(model.config, asked.model.config, args.stages)
        if train_dataset is not None:
            check_data(train_dataset, model.config, args)
        _freeze(model, args)
        super().__init__(model=model, args=args, train_dataset=train_dataset, data_collator=data_collator, **kwargs)
        asked.model.to(args.device)
        self.teacher, self.report = asked, report
        self.dense, self.rows = asked.model, self.train_dataset
        if asked.limit and self.train_dataset is not None:
            self.train_dataset = Numbered(self.train_dataset)
            self.data_collator = KeepNumbers(self.data_collator)
        self.model_accepts_loss_kwargs = False
        self._stage: Stage | None = None
        self._parts: dict[str, list[float]] = {}
        self.add_callback(_FreshOptimizer(self))

    @property
    def shares_matter(self) -> bool:
        """Similarities are those within a batch, and dropout is drawn by each process."""
        dense: Any = self.dense
        numbers = dense.base_model is dense or getattr(dense.config, "problem_type", None) in OF_NUMBERS
        return self.args.student_dropout or (bool(self.args.similarity_weight) and numbers)

    def train(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """As `TeachingTrainer.train`; pivoted layers are trained, and kept in checkpoints, `in_two_factors`."""
        given = self.optimizer is not None or self.model_init is not None  # then others hold the layers' elements
        if given or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super().train(*args, **kwargs)
        _ = self.key  # of the student as it was given
        with in_two_factors(unwrap_model(self.model)) as names:  # type: ignore[arg-type]
            found = super().train(*args, **kwargs)
        if names:  # what is left of the training holds elements that are no longer there
            self.model_wrapped: Any = self.model
            self.optimizer = self.lr_scheduler = None
        return found

    def before_first_step(self) -> None:
        """Keep the teacher's answers, if there is memory for them and rows are met more than once."""
        if isinstance(self.train_dataset, Numbered) and self._epochs() > self.args.world_size:
            self._fill(self.train_dataset)

    def _epochs(self) -> float:
        """How often every row is met."""
        args = self.args
        if args.max_steps <= 0:
            return float(args.num_train_epochs)
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return float(args.max_steps * batch / len(self.rows))

    def _fill(self, numbered: Numbered) -> None:
        """Ask the teacher before training: with which rows one shares a batch there changes the last bits of its answers."""
        args = self.args
        order = sorted(range(len(numbered)), key=lambda row: len(numbered[row]["input_ids"]))
        size = args.train_batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        collate = self._get_collator_with_removed_columns(self.data_collator)

        def asked() -> Iterator[tuple[list[int], dict[str, Tensor]]]:
            for batch in tqdm(batches, desc="Asking the teacher", unit="batch", disable=args.disable_tqdm):
                inputs: Any = self._prepare_inputs(collate([numbered[row] for row in batch]))
                yield batch, _given(inputs)

        with self.compute_loss_context_manager():
            self.teacher.fill(
                asked(),
                hidden=any(args.hidden_weight_in(stage) > 0 for stage in args.stages),
                attention=any(stage.attention for stage in args.stages),
                rows=self.key["training rows"],
            )

    def stage_ends(self) -> list[int]:
        """Steps after which the stages end."""
        return list(accumulate(self.args.stage_steps(self.state.max_steps)))

    def _stage_now(self, training: bool) -> Stage:
        stages = self.args.stages
        if not training:
            return stages[-1]
        return stages[sum(self.state.global_step >= end for end in self.stage_ends()[:-1])]

    def _enter(self, stage: Stage) -> None:
        if stage is not self._stage:
            set_attention(unwrap_model(self.model), stage.attention)  # type: ignore[arg-type]
            self.teacher.prepare(stage.attention)
            self._stage = stage

    def _by_labels(self, stage: Stage) -> bool:
        return stage.labels or (stage.logits and self.args.targets == "labels")

    def loss_and_outputs(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """The current stage's loss; its parts go to the log."""
        stage = self._stage_now(model.training)
        self._enter(stage)
        references, given = label_columns(inputs), _given(inputs)
        rows = inputs[ROW].tolist() if ROW in inputs else None
        hidden = self.args.hidden_weight_in(stage) > 0
        by_labels = self._by_labels(stage)
        asked = {**given, **references} if by_labels else given
        outputs = model(**asked, output_hidden_states=hidden, output_attentions=stage.attention)
        if stage.labels:
            parts = {"own_loss": outputs.loss}
        else:
            target = self.teacher(given, rows, hidden, stage.attention)
            parts = layer_losses(stage, self.args, outputs, target, given.get("attention_mask"), self.taught)
            if stage.logits:
                student = unwrap_model(self.model)  # type: ignore[arg-type]
                learned, taught = output_signals(outputs, given, student), output_signals(target, given, self.teacher.model)
                parts |= output_losses(self.args, learned, taught, outputs.loss if by_labels else None)
        if model.training:
            for name, value in parts.items():
                self._parts.setdefault(name, []).append(value.detach())
        return total(parts), outputs

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:  # noqa: ANN401
        """As Trainer's, with a loss of rows without labels, too; hidden states and attention maps are no predictions."""
        ignored = [*(ignore_keys or []), "hidden_states", "attentions", "past_key_values"]
        loss, *predictions = super().prediction_step(model, inputs, prediction_loss_only, ignored)
        if loss is None and not self._by_labels(self.args.stages[-1]):
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs).detach().mean()
        return loss, *predictions

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:  # noqa: ANN401
        """Every stage has Trainer's schedule to itself: warm-up, decay, and its own peak.

        Raises:
            ValueError: if `lr_scheduler_type` is no function of the step alone.
        """
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._multipliers(num_training_steps))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _multipliers(self, steps: int) -> Any:  # noqa: ANN401
        args, curves = self.args, []
        lengths = args.stage_steps(steps)
        for length, rate in zip(lengths, args.rates(), strict=True):
            scratch = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
            schedule = get_scheduler(
                args.lr_scheduler_type, scratch, args.get_warmup_steps(length), length,
                scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
            )  # fmt: skip
            if not hasattr(schedule, "lr_lambdas"):
                raise ValueError(
                    f"lr_scheduler_type={args.lr_scheduler_type} is no function of the step: take linear or cosine"
                )
            curves.append((schedule.lr_lambdas[0], rate / args.learning_rate))

        def at(step: int) -> float:
            stage, start = 0, 0
            while stage + 1 < len(lengths) and step >= start + lengths[stage]:
                start += lengths[stage]
                stage += 1
            curve, factor = curves[stage]
            return float(curve(step - start)) * factor

        return at

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        self._signature_columns = columns if ROW in columns else [*columns, ROW]  # type: ignore[assignment]

    def save(
        self,
        save_directory: str | os.PathLike[str],
        overwrite: bool = False,
        *,
        origin: Origin | None = None,
        evaluations: Sequence[Evaluation] = (),
        **kwargs: Any,
    ) -> None:
        """Save the student with tokenizer, report and card, and its training's losses, also as a picture on the card.

        What a checkpoint of sentence-transformers has beside its Transformer is saved, too. With several processes, one writes.

        Args:
            save_directory: where; it appears whole or not at all.
            overwrite: whether to replace a non-empty directory there.
            origin: what the card says; default: what report and arguments know.
            evaluations: scores for the card.
            **kwargs: for `save_pretrained`, for example `max_shard_size`.

        Raises:
            ValueError: if the student's report is not known, or the student has adapters.
            OSError: if the directory cannot be written.
        """
        if self.is_world_process_zero():
            self._trained().save(Path(save_directory), overwrite, origin, evaluations, **kwargs)

    def _trained(self) -> TrainedStudent:
        student: Any = unwrap_model(self.model)  # type: ignore[arg-type]
        rows = len(self.train_dataset) if self.train_dataset is not None else 0  # type: ignore[arg-type]
        text = self.args.described(self.state.global_step, rows)
        return TrainedStudent(student, self.processing_class, self.report, self.state, text[0].upper() + text[1:])

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str = "End of training",
        *,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        create_pr: bool = False,
        origin: Origin | None = None,
        evaluations: Sequence[Evaluation] = (),
    ) -> Any:  # noqa: ANN401
        """Push what `save` saves to `args.hub_model_id`, by default named as `args.output_dir`, in one commit.

        Args:
            commit_message: of the commit.
            token: default: that of the arguments.
            revision: branch; default: that of the arguments.
            private: whether a new repository is; default: as in the arguments.
            create_pr: open a pull request instead.
            origin: what the card says, see `save`.
            evaluations: scores for the card.

        Returns:
            `huggingface_hub.CommitInfo`; None in all processes but the first.

        Raises:
            ValueError: as `save`.
            OSError: if the Hub refuses or cannot be reached.
        """
        if not self.is_world_process_zero():
            return None
        args = self.args
        repo_id = args.hub_model_id or Path(str(args.output_dir)).absolute().name
        return push_saved(
            lambda folder: self._trained().save(folder, False, origin, evaluations), repo_id,
            private=args.hub_private_repo if private is None else private, revision=revision or args.hub_revision,
            token=token or args.hub_token, commit_message=commit_message, create_pr=create_pr,
        )  # fmt: skip

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, with the stage and the parts of its loss, of all processes."""
        if "loss" in logs and self._parts:
            means = {name: torch.stack(values).mean() for name, values in self._parts.items()}  # type: ignore[arg-type]
            logs |= {name: float(self.accelerator.gather(mean).mean()) for name, mean in means.items()}
            self._parts.clear()
            if self._stage is not None:
                logs["stage"] = self.args.stages.index(self._stage) + 1
        super().log(logs, start_time)


class _FreshOptimizer(TrainerCallback):
    """Forgets Adam's moments where a stage ends: the gradients of the next loss have another scale."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Runs before a checkpoint of the step is written."""
        if state.global_step in self.trainer.stage_ends()[:-1]:
            assert self.trainer.optimizer is not None
            self.trainer.optimizer.state.clear()


def _given(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch without its references and its rows' numbers."""
    references = label_columns(inputs)
    return {key: value for key, value in inputs.items() if key not in references and key != ROW}


def _freeze(model: Any, args: DistillationArguments) -> None:  # noqa: ANN401
    if not args.student_dropout:
        disable_dropout(model)
    if not args.train_embeddings:
        embeddings = getattr(model.base_model, "embeddings", None) or model.get_input_embeddings()
        embeddings.requires_grad_(False)
        for table in factorized_embeddings(model).values():
            table.requires_grad_(True)
