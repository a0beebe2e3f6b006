"""Distil a factorized sentence encoder on sentences alone; scored on pairs of sentences by Spearman correlation.

python -m recipes.sentence_embedding.run recipes/sentence_embedding/minilm.yaml --output_dir runs/minilm
"""

from __future__ import annotations

from typing import Any

from transformers import DataCollatorWithPadding

from recipes.options import DataOptions
from recipes.pipeline import Recipe, run


def encode(rows: Any, columns: tuple[str, str, str], tokenizer: Any, data: DataOptions) -> Any:  # noqa: ANN401
    """Token ids of every text column's sentences."""
    texts = [name for name in columns[:2] if name]

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        sentences = [sentence for name in texts for sentence in batch[name]]
        return dict(tokenizer(sentences, truncation=True, max_length=data.max_length))

    return rows.map(tokenize, batched=True, remove_columns=rows.column_names)


RECIPE = Recipe("sentence-similarity", encode, DataCollatorWithPadding, fine_tunes=False)

if __name__ == "__main__":
    run(RECIPE, "recipes.sentence_embedding.run")
