"""What a distillation leaves: the student with its report, its card, its curves, and what its checkpoint had beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerState

from heat_hf.distillation.teacher import set_attention
from heat_hf.encoders.checkpoints.folder import save_compressed
from heat_hf.encoders.checkpoints.names import STATE_NAME
from heat_hf.encoders.checkpoints.sentence_encoder import encoder_of
from heat_hf.encoders.checkpoints.storage import temporary_directory
from heat_hf.evaluation.tasks import task_of
from heat_hf.reports.card import Evaluation, Origin, model_card, origin_of, saved_files
from heat_hf.reports.compression import CompressionReport
from heat_hf.reports.figures.distillation import draw_training

CURVES_NAME = "training.png"


@dataclass(frozen=True)
class TrainedStudent:
    """A student after its training, and what its folder needs beside its weights.

    Attributes:
        model: the student.
        tokenizer: its tokenizer, or None.
        report: of its compression; None: that of the folder it was loaded from.
        state: of Trainer, with the losses.
        training: a sentence on how it was trained, for its card.
    """

    model: Any
    tokenizer: Any
    report: CompressionReport | None
    state: TrainerState
    training: str

    def save(
        self, folder: Path, overwrite: bool, origin: Origin | None, evaluations: Sequence[Evaluation], **kwargs: Any
    ) -> None:
        """Save as `HeatCompressor.save` would, with the losses; see `DistillationTrainer.save`."""
        if hasattr(self.model, "peft_config"):
            raise ValueError(
                "the student has adapters: save_model saves those alone; for a whole model, call merge_and_unload first"
            )
        report = self.report or loaded_report(self.model)
        set_attention(self.model, False)
        with temporary_directory() as scratch:
            files: dict[str, Path | bytes] = {**encoder_of(self.model).files}
            about = origin or origin_of(report, folder.name, task_of(self.model, bool(files)))
            about = replace(about, training=about.training or self.training)
            _lasting(self.state).save_to_json(str(scratch / STATE_NAME))
            files[STATE_NAME] = scratch / STATE_NAME
            if any("loss" in entry for entry in self.state.log_history):
                draw_training(self.state.log_history, scratch / CURVES_NAME)
                files[CURVES_NAME] = scratch / CURVES_NAME
                about = replace(about, figures={**(about.figures or {}), "Losses over the steps of training": CURVES_NAME})
            files = {**saved_files(report, model_card(report, about, evaluations)), **files}
            save_compressed(self.model, self.tokenizer, folder, files, overwrite, **kwargs)


def _lasting(state: TrainerState) -> TrainerState:
    """Without what is of this run: times, a mean loss that counts from where it was resumed, and paths of this machine."""
    lasting = [entry for entry in state.log_history if "train_runtime" not in entry]
    return replace(state, log_history=lasting, best_model_checkpoint=None)


def loaded_report(student: Any) -> CompressionReport:  # noqa: ANN401
    """The report in the checkpoint that a student was loaded from.

    Raises:
        ValueError: if it has none.
    """
    try:
        return CompressionReport.from_pretrained(student.name_or_path)
    except OSError as error:
        raise ValueError(
            f"the report of the student's compression is not in {student.name_or_path!r}: pass report=compressor.report to "
            "the trainer, or load the student from a folder saved by heat_hf"
        ) from error
