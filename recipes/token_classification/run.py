"""Distil a factorized tagger of words, as for named entities.

python -m recipes.token_classification.run recipes/token_classification/conll2003.yaml --output_dir runs/conll2003
"""

from __future__ import annotations

from typing import Any

from transformers import DataCollatorForTokenClassification

from heat_hf.distillation.checks import IGNORED
from recipes.options import DataOptions
from recipes.pipeline import Recipe, run


def encode(rows: Any, columns: tuple[str, str, str], tokenizer: Any, data: DataOptions) -> Any:  # noqa: ANN401
    """Token ids, and each word's tag at its first token."""
    words, _, tags = columns
    numbers = {name: number for number, name in enumerate(labels(rows, columns))}

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        found = tokenizer(batch[words], truncation=True, max_length=data.max_length, is_split_into_words=True)
        placed = []
        for place, own in enumerate(batch[tags]):
            ids = found.word_ids(place)
            first = [word is not None and word != before for before, word in zip([None, *ids], ids, strict=False)]
            known = [numbers.get(tag, tag) for tag in own]
            placed.append([known[word] if start else IGNORED for word, start in zip(ids, first, strict=True)])
        return {**found, "labels": placed}

    return rows.map(tokenize, batched=True, remove_columns=rows.column_names)


def labels(rows: Any, columns: tuple[str, str, str]) -> list[str]:  # noqa: ANN401
    """Names of the tags: the data set's, or those in it, "O" first."""
    feature = rows.features[columns[2]]
    names = getattr(getattr(feature, "feature", None), "names", None)
    if names:
        return list(names)
    found = {tag for row in rows[columns[2]] for tag in row}
    if all(isinstance(tag, int) for tag in found):
        return [str(number) for number in range(max(found) + 1)]
    return sorted(found, key=lambda tag: (tag != "O", tag))


RECIPE = Recipe("token-classification", encode, DataCollatorForTokenClassification, labels)

if __name__ == "__main__":
    run(RECIPE, "recipes.token_classification.run")
