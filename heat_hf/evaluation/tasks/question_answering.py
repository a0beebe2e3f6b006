"""Extractive question answering, as on SQuAD v1.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from heat_hf.evaluation.tasks.base import Columns, Second, Task

if TYPE_CHECKING:
    from heat_hf.evaluation.tasks.base import Model, Tokenizer


class QuestionAnswering(Task):
    """The best span over all windows of a question's context."""

    name = "question-answering"
    head = "ForQuestionAnswering"  # Transformers 5 has no pipeline for it
    columns = ("question", "context", "answers")
    metrics = ("squad",)
    main = "f1"
    percent = True

    def predict(self, model: Model, tokenizer: Tokenizer, first: Sequence[Any], second: Second) -> list[str]:
        """The answer to each question, a part of its context."""
        from heat_hf.evaluation.answers import predict_answers

        return predict_answers(model, tokenizer, first, second)

    def encode(self, rows: Any, columns: Columns, tokenizer: Tokenizer, max_length: int, stride: int) -> Any:  # noqa: ANN401
        """Overlapping windows of question and context, with the first and last token of the answer."""
        from heat_hf.evaluation.answers import encode_questions, model_inputs

        question, context, answers = columns

        def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            windows = encode_questions(tokenizer, batch[question], batch[context], batch[answers], max_length, stride)
            inputs = list(map(model_inputs, windows))
            return {name: [window[name] for window in inputs] for name in inputs[0]}

        return rows.map(tokenize, batched=True, remove_columns=rows.column_names)
