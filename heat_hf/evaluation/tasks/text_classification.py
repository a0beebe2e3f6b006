"""Classes of sentences, or of pairs of sentences, as on GLUE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from heat_hf.evaluation.tasks.base import Columns, Second, Task, class_of

if TYPE_CHECKING:
    from heat_hf.evaluation.tasks.base import Model, Tokenizer


class TextClassification(Task):
    """The class with the largest logit."""

    name = "text-classification"
    head = "ForSequenceClassification"
    columns = ("sentence", "", "label")
    metrics = ("accuracy", "matthews", "f1")
    main = "accuracy"
    pipeline = "text-classification"

    def predict(self, model: Model, tokenizer: Tokenizer, first: Sequence[Any], second: Second) -> list[int]:
        """Number of the class of each sentence, or pair of sentences."""
        from heat_hf.evaluation.forward import forward_rows

        classes = [0] * len(first)
        for rows, _, output in forward_rows(model, tokenizer, first, second):
            for row, number in zip(rows, output.logits.argmax(-1).tolist(), strict=True):
                classes[row] = number
        return classes

    def references(self, model: Model, references: list[Any]) -> list[Any]:
        """Numbers of the classes; names are those of the model's.

        Raises:
            ValueError: as `class_of`.
        """
        return [class_of(model, label) for label in references]

    def labels(self, rows: Any, columns: Columns) -> list[str]:  # noqa: ANN401
        """Names of the classes: the data set's, or the numbers in it."""
        feature = rows.features[columns[2]]
        return list(getattr(feature, "names", None) or map(str, range(max(rows[columns[2]]) + 1)))
