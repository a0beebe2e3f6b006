"""Distil a factorized classifier of sentences or pairs of sentences, as on GLUE.

python -m recipes.text_classification.run recipes/text_classification/sst2.yaml --output_dir runs/sst2
"""

from __future__ import annotations

from typing import Any

from transformers import DataCollatorWithPadding

from recipes.options import DataOptions
from recipes.pipeline import Recipe, run


def encode(rows: Any, columns: tuple[str, str, str], tokenizer: Any, data: DataOptions) -> Any:  # noqa: ANN401
    """Token ids and labels."""
    first, second, label = columns

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [batch[first], *([batch[second]] if second else [])]
        return {**tokenizer(*texts, truncation=True, max_length=data.max_length), "labels": batch[label]}

    return rows.map(tokenize, batched=True, remove_columns=rows.column_names)


def labels(rows: Any, columns: tuple[str, str, str]) -> list[str]:  # noqa: ANN401
    """Names of the classes: the data set's, or the numbers in it."""
    feature = rows.features[columns[2]]
    return list(getattr(feature, "names", None) or map(str, range(max(rows[columns[2]]) + 1)))


RECIPE = Recipe("text-classification", encode, DataCollatorWithPadding, labels)

if __name__ == "__main__":
    run(RECIPE, "recipes.text_classification.run")
