"""Rows of text as batches of model inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = Mapping[str, Tensor]
TEXT_COLUMNS = ("text", "sentence", "sentence1", "sentence2", "question", "context", "premise", "hypothesis")


def calibration_batches(
    dataset: Any,  # noqa: ANN401
    tokenizer: PreTrainedTokenizerBase | None,
    batch_size: int = 32,
    max_length: int = 128,
) -> list[Batch]:
    """Bring calibration data to batches of model inputs, sorted by length so that little is padded.

    Args:
        dataset: sentences; or rows (for example a `datasets.Dataset`) with text columns or with `input_ids`; or batches of
            tensors (for example a `DataLoader`), which are taken as they are.
        tokenizer: needed for everything but batches of tensors.
        batch_size: rows in a batch.
        max_length: tokens after which a row is cut.

    Raises:
        ValueError: if the data is empty, has none of these forms, or needs a tokenizer that is not there.
    """
    rows = list(dataset)
    if not rows:
        raise ValueError("calibration_dataset is empty")
    if all(
        isinstance(row, Mapping) and isinstance(row.get("input_ids"), Tensor) and row["input_ids"].dim() == 2 for row in rows
    ):
        return [{key: value for key, value in row.items() if isinstance(value, Tensor)} for row in rows]
    if tokenizer is None:
        raise ValueError("calibration_dataset needs a tokenizer, and the checkpoint has none: pass batches of tensors")
    if all(isinstance(row, Mapping) and "input_ids" in row for row in rows):
        return pad_batches(encode_rows(rows, tokenizer, max_length), tokenizer, batch_size)
    texts = [text for row in rows for text in _texts(row)]
    return pad_batches(encode_rows(texts, tokenizer, max_length), tokenizer, batch_size)


def encode_rows(dataset: Any, tokenizer: PreTrainedTokenizerBase, max_length: int = 128) -> list[dict[str, Any]]:  # noqa: ANN401
    """Tokenize rows, each as one input: a sentence, the one or two text columns of a row, or its `input_ids`.

    Args:
        dataset: sentences or rows; a whole number in a column `label` or `labels` is kept as `labels`.
        tokenizer: the model's.
        max_length: tokens after which a row is cut.

    Raises:
        ValueError: if there are no rows, or one has neither text nor `input_ids`.
    """
    rows = list(dataset)
    if not rows:
        raise ValueError("the dataset is empty")
    encoded = []
    for row in rows:
        if isinstance(row, Mapping) and "input_ids" in row:
            ids: dict[str, Any] = {"input_ids": [int(i) for i in row["input_ids"]][:max_length]}
        else:
            ids = {"input_ids": tokenizer(*_texts(row)[:2], truncation=True, max_length=max_length)["input_ids"]}
        label = next((row[name] for name in ("label", "labels") if isinstance(row, Mapping) and name in row), None)
        encoded.append(ids if not isinstance(label, int) else {**ids, "labels": label})
    return encoded


def pad_batches(encoded: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, batch_size: int = 32) -> list[Batch]:
    """Encoded rows as batches of tensors, sorted by length so that little is padded."""
    ordered = sorted(encoded, key=lambda row: len(row["input_ids"]))
    return [dict(tokenizer.pad(ordered[i : i + batch_size], return_tensors="pt")) for i in range(0, len(ordered), batch_size)]


def _texts(row: Any) -> list[str]:  # noqa: ANN401
    if isinstance(row, str):
        return [row]
    texts = [row[name] for name in TEXT_COLUMNS if name in row] if isinstance(row, Mapping) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"calibration_dataset must hold strings, rows with a column of {', '.join(TEXT_COLUMNS)} or input_ids, "
            f"or batches of tensors; got {row!r:.200}"
        )
    return texts


def model_inputs(batch: Batch, device: torch.device | str) -> dict[str, Tensor]:
    """A batch on a device, without labels."""
    return {key: value.to(device) for key, value in batch.items() if key != "labels"}


def data_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """Digest of batches of tensors, or of encoded rows: results that depend on data are refused for other data."""
    digest = hashlib.sha256()
    for row in rows:
        for key in sorted(row):
            value = row[key].tolist() if hasattr(row[key], "tolist") else row[key]
            digest.update(f"{key}{value}".encode())
    return digest.hexdigest()[:16]


def sequences(batch: Batch) -> int:
    """Number of a batch's sequences."""
    return len(next(iter(batch.values())))
