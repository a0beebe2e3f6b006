"""A distillation that is scored after every epoch, and may stop when that no longer gets better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import EarlyStoppingCallback
from transformers.modeling_utils import unwrap_model

from heat_hf.distillation.results import TrainedStudent
from heat_hf.distillation.trainer import DistillationTrainer
from heat_hf.encoders.batches import Batch, sequences
from heat_hf.encoders.checkpoints.sentence_encoder import encoder_of
from heat_hf.evaluation.quality import Quality
from heat_hf.evaluation.tasks import task_of
from heat_hf.reports.card import Evaluation
from heat_hf.reports.markdown import plain

SCORE = "score"  # in logs with "eval_" before it; what `metric_for_best_model` must be


class ScoredTrainer(DistillationTrainer):
    """Evaluates by `heat_hf.evaluation.quality.Quality`: `eval_score`, and `eval_divergence` from the teacher.

    Args:
        *args: of `DistillationTrainer`.
        scored_rows: batches of model inputs, with `labels` for accuracy, or else for agreement with the teacher.
        data: their name, for the card.
        **kwargs: of `DistillationTrainer`.
    """

    def __init__(self, *args: Any, scored_rows: Sequence[Batch], data: str, **kwargs: Any) -> None:
        super().__init__(*args, eval_dataset=list(scored_rows), **kwargs)
        self.data = data
        self.quality = Quality(self.teacher.model, scored_rows)

    @property
    def scored(self) -> Any:  # noqa: ANN401
        """The rows: the card lists all scores as those of the same ones."""
        return self.quality.batches

    @property
    def measure(self) -> str:
        """What the score is."""
        return "accuracy" if self.quality.labelled else "agreement with the dense model"

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Score the student and log it, as Trainer asks for it; every process scores all rows."""
        score, divergence = self.quality.both(unwrap_model(self.model))  # type: ignore[arg-type]
        scores = {f"{metric_key_prefix}_{SCORE}": score, f"{metric_key_prefix}_divergence": divergence}
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    @property
    def _rows(self) -> int:
        return sum(map(sequences, self.quality.batches))

    def evaluation(self) -> Evaluation:
        """What student and teacher reach on the rows, for the card."""
        student: Any = unwrap_model(self.model)  # type: ignore[arg-type]
        score, dense = self.quality(student), self.quality(self.teacher.model)
        task = task_of(student, bool(encoder_of(student).files))
        return Evaluation(task, self.data, "evaluation", self._rows, self.measure, score, dense)

    def _trained(self) -> TrainedStudent:
        trained = super()._trained()
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        scores = scores_text(self.state.log_history, f"{self.measure} on {self._rows:,} rows of {plain(self.data)}", best)
        return replace(trained, training=f"{trained.training} {scores}".rstrip())


class Patience(EarlyStoppingCallback):
    """Trainer's early stopping, counted in the last stage alone: those before it only prepare what is scored."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # type: ignore[override]  # noqa: ANN401
        """Count evaluations without a better score."""
        if state.global_step > sum(args.stage_steps(state.max_steps)[:-1]):
            super().on_evaluate(args, state, control, **kwargs)  # type: ignore[no-untyped-call]


def scores_text(history: Sequence[Mapping[str, Any]], what: str, best: int | None = None) -> str:
    """A sentence on the scores of a training; empty if there are none.

    Args:
        history: `trainer.state.log_history`.
        what: they are.
        best: step whose weights were kept; None: the last one's.
    """
    scored = [entry for entry in history if f"eval_{SCORE}" in entry]
    if not scored:
        return ""
    listed = ", ".join(f"{entry[f'eval_{SCORE}']:.4f} at step {entry['step']:,}" for entry in scored)
    kept = "" if best is None else f"; kept: step {best:,}"
    return f"{what[0].upper()}{what[1:]}: {listed}{kept}."
