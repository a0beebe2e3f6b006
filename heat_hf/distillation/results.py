"""What a distillation leaves: the student with its report, its card, its curves, and what its checkpoint had beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.modeling_utils import unwrap_model

from heat_hf.distillation.teacher import set_attention
from heat_hf.encoders.checkpoints.folder import save_compressed
from heat_hf.encoders.checkpoints.names import STATE_NAME
from heat_hf.encoders.checkpoints.sentence_encoder import sentence_encoder
from heat_hf.reports.card import Evaluation, Origin, model_card, origin_of, saved_files, task_of
from heat_hf.reports.compression import CompressionReport
from heat_hf.reports.figures.distillation import draw_training

if TYPE_CHECKING:
    from heat_hf.distillation.trainer import DistillationTrainer

CURVES_NAME = "training.png"


def save_student(
    trainer: DistillationTrainer,
    save_directory: str | os.PathLike[str],
    overwrite: bool = False,
    origin: Origin | None = None,
    evaluations: Sequence[Evaluation] = (),
    **kwargs: Any,
) -> None:
    """Save a trained student as `HeatCompressor.save` would, with its losses; see `DistillationTrainer.save`."""
    student: Any = unwrap_model(trainer.model)  # type: ignore[arg-type]
    if hasattr(student, "peft_config"):
        raise ValueError(
            "the student has adapters: save_model saves those alone; for a whole model, call merge_and_unload first"
        )
    report = trainer.report or found_report(student)
    set_attention(student, False)
    with tempfile.TemporaryDirectory() as scratch:
        files: dict[str, Path | bytes] = {**sentence_encoder(student.name_or_path).files}
        about = origin or origin_of(report, Path(save_directory).name, task_of(student, bool(files)))
        trainer.state.save_to_json(str(Path(scratch) / STATE_NAME))
        files[STATE_NAME] = Path(scratch) / STATE_NAME
        if any("loss" in entry for entry in trainer.state.log_history):
            draw_training(trainer.state.log_history, Path(scratch) / CURVES_NAME)
            files[CURVES_NAME] = Path(scratch) / CURVES_NAME
            figures = {"Losses over the steps of training": CURVES_NAME}
            about = replace(about, figures={**(about.figures or {}), **figures})
        about = replace(about, training=about.training or trained(trainer))
        card = model_card(report, about, evaluations)
        files = {**saved_files(report, card), **files}
        save_compressed(student, trainer.processing_class, save_directory, files, overwrite, **kwargs)


def found_report(student: Any) -> CompressionReport:  # noqa: ANN401
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


def trained(trainer: DistillationTrainer) -> str:
    """A card's sentence on how a student was trained."""
    rows = len(trainer.train_dataset) if trainer.train_dataset is not None else 0  # type: ignore[arg-type]
    text = trainer.args.described(trainer.state.global_step, rows)
    return text[0].upper() + text[1:]
