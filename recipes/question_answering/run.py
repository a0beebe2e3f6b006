"""Distil a factorized extractive reader, as on SQuAD v1.1.

python -m recipes.question_answering.run recipes/question_answering/squad.yaml --output_dir runs/squad
"""

from __future__ import annotations

from typing import Any

from transformers import DataCollatorWithPadding

from heat_hf.evaluation.question_answering import encode_questions
from recipes.options import DataOptions
from recipes.pipeline import Recipe, run


def encode(rows: Any, columns: tuple[str, str, str], tokenizer: Any, data: DataOptions) -> Any:  # noqa: ANN401
    """Overlapping windows of question and context, with the answer's place."""
    question, context, answers = columns

    def windows(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        found = encode_questions(
            tokenizer, batch[question], batch[context], batch[answers], data.max_length, data.stride
        )  # fmt: skip
        kept = [name for name in found[0] if name not in ("row", "offsets")]
        return {name: [window[name] for window in found] for name in kept}

    return rows.map(windows, batched=True, remove_columns=rows.column_names)


RECIPE = Recipe("question-answering", encode, DataCollatorWithPadding)

if __name__ == "__main__":
    run(RECIPE, "recipes.question_answering.run")
