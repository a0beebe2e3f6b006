"""Forward passes over rows of text: in order of length, so that little is padded, with dropout off and without a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and inference mode; the model's mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def batches_by_length(lengths: Sequence[int], batch_size: int, label: str) -> Iterator[list[int]]:
    """Numbers of rows, a batch at a time, the shortest first, behind a progress bar."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in tqdm(range(0, len(order), batch_size), desc=label, unit="batch"):
        yield order[start : start + batch_size]


def forward_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    first: Sequence[Any],
    second: Sequence[str] | None = None,
    words: bool = False,
    batch_size: int = 64,
    max_length: int = 256,
) -> Iterator[tuple[list[int], Any, Any]]:
    """Run a model over texts, or pairs of texts.

    Args:
        model: whatever head it has.
        tokenizer: the model's.
        first: texts, or lists of words.
        second: the other text of each pair.
        words: whether the texts are lists of words.
        batch_size: rows in a batch.
        max_length: tokens after which a row is cut.

    Yields:
        Numbers of a batch's rows, the tokenizer's encoding of them, the model's outputs.
    """
    lengths = [len(text) + (len(second[row]) if second else 0) for row, text in enumerate(first)]
    with evaluating(model):
        for rows in batches_by_length(lengths, batch_size, "Evaluating"):
            texts = [[column[row] for row in rows] for column in (first, second) if column]
            inputs = tokenizer(
                *texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt", is_split_into_words=words
            )
            yield rows, inputs, model(**inputs.to(model.device))
