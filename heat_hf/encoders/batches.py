"""Rows of text as batches of model inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from heat_hf.encoders.rows import as_rows
from heat_hf.encoders.values import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = Mapping[str, Tensor]
IDS, TYPES, MASK = "input_ids", "token_type_ids", "attention_mask"
TEXT_COLUMNS = ("text", "sentence", "sentence1", "sentence2", "question", "context", "premise", "hypothesis")


def calibration_batches(
    dataset: Any,  # noqa: ANN401
    tokenizer: PreTrainedTokenizerBase | None,
    batch_size: int = 32,
    max_length: int = 128,
    name: str = "calibration_dataset",
) -> list[Batch]:
    """Bring calibration data to batches of model inputs, sorted by length so that little is padded.

    Args:
        dataset: rows, see `as_rows`: sentences, rows with text columns or with `input_ids`, or batches of tensors, which are
            taken as they are.
        tokenizer: needed for everything but batches of tensors.
        batch_size: rows in a batch.
        max_length: tokens after which a row is cut.
        name: of the argument, for messages.

    Raises:
        ValueError: if the data is empty, has none of these forms, or needs a tokenizer that is not there; the message names the
            row.
    """
    rows = as_rows(dataset, name)
    if all(
        isinstance(row, Mapping) and isinstance(row.get("input_ids"), Tensor) and row["input_ids"].dim() > 1 for row in rows
    ):
        return [_batch(row, f"batch {number} of {name}") for number, row in enumerate(rows)]
    if tokenizer is None:
        raise ValueError(f"{name} needs a tokenizer, and the checkpoint has none: pass batches of tensors")
    if not all(isinstance(row, Mapping) and "input_ids" in row for row in rows):
        rows = [text for number, row in enumerate(rows) for text in _texts(row, f"row {number} of {name}")]
        if not any(text.strip() for text in rows):
            raise ValueError(f"{name} holds {len(rows)} texts, all of them empty")
    return pad_batches(encode_rows(rows, tokenizer, max_length, name), tokenizer, batch_size)


def _batch(batch: Mapping[str, Any], name: str) -> Batch:
    """The tensors of a batch, checked as far as that is possible without a model."""
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    ids, mask = tensors["input_ids"], tensors.get("attention_mask")
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        raise ValueError(f"{name} must have token ids, rows × tokens, got {tuple(ids.shape)} of {ids.dtype}")
    if mask is not None and mask.dim() == 2:
        if mask.shape != ids.shape:
            raise ValueError(f"{name} has {tuple(ids.shape)} token ids and an attention_mask of {tuple(mask.shape)}")
        if not mask.bool().any(1).all():
            raise ValueError(f"{name} has a row of padding alone: its attention_mask is 0 everywhere")
    return tensors


def require_vocabulary(batches: Iterable[Mapping[str, Any]], size: int | None, name: str = "calibration_dataset") -> None:
    """Refuse token ids that a model has no embedding for.

    Args:
        batches: model inputs, or encoded rows.
        size: of the vocabulary; None if it is not known.
        name: of the argument, for messages.

    Raises:
        ValueError: naming batch or row, and token.
    """
    for number, batch in enumerate(batches):
        ids = batch.get("input_ids")
        if ids is None or size is None:
            continue
        least, most = (int(ids.min()), int(ids.max())) if isinstance(ids, Tensor) else (min(ids), max(ids))
        if least < 0 or most >= size:
            token, what = most if most >= size else least, "batch" if isinstance(ids, Tensor) else "row"
            raise ValueError(f"{name} has the token {token} in {what} {number}; the model has the tokens 0 to {size - 1}")


def encode_rows(
    dataset: Any,  # noqa: ANN401
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 128,
    name: str = "the dataset",
    classes: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Tokenize rows, each as one input: a sentence, the one or two text columns of a row, or its `input_ids`.

    Args:
        dataset: rows, see `as_rows`; a whole number in a column `label` or `labels` is kept as `labels`. Of rows with
            `input_ids`, the tokens that their `attention_mask` leaves out are padding, and dropped.
        tokenizer: the model's.
        max_length: tokens after which a row is cut.
        name: of the argument, for messages.
        classes: numbers of labels that are words, where labels are read; else such labels are left out.

    Raises:
        ValueError: if there are no rows, or one has neither text nor `input_ids`, or a label that is no class; the message
            names the row.
    """
    most = min(max_length, tokenizer.model_max_length)
    least = tokenizer.num_special_tokens_to_add(pair=False)
    if most <= least:
        raise ValueError(f"rows of {most} tokens have no text beside the {least} tokens that the tokenizer adds")
    encoded = []
    for number, row in enumerate(as_rows(dataset, name)):
        where = f"row {number} of {name}"
        if isinstance(row, Mapping) and "input_ids" in row:
            ids = {key: values[:most] for key, values in _given_ids(row, where).items()}
        else:
            found = tokenizer(*_texts(row, where)[:2], truncation=True, max_length=most)
            ids = {key: found[key] for key in (IDS, TYPES) if key in found}
        label = next((row[key] for key in ("label", "labels") if isinstance(row, Mapping) and key in row), None)
        if isinstance(label, str) and classes is not None:
            if label not in classes:
                raise ValueError(f"{where} has the label {shown(label)}; the model has {', '.join(map(str, classes))}")
            label = classes[label]
        encoded.append({**ids, "labels": int(label)} if isinstance(label, int) else ids)
    return _typed(encoded)


def _typed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the types of their tokens if there is any but 0, which models take where none are given."""
    if any(any(row.get(TYPES, ())) for row in rows):
        return [{TYPES: [0] * len(row[IDS]), **row} for row in rows]
    return [{key: value for key, value in row.items() if key != TYPES} for row in rows]


def pad_batches(encoded: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, batch_size: int = 32) -> list[Batch]:
    """Encoded rows as batches of tensors, sorted by length so that little is padded."""
    ordered = sorted(encoded, key=lambda row: len(row["input_ids"]))
    return [dict(tokenizer.pad(ordered[i : i + batch_size], return_tensors="pt")) for i in range(0, len(ordered), batch_size)]


def _given_ids(row: Mapping[str, Any], where: str) -> dict[str, list[int]]:
    """Token ids of a row, and their types if it has any, without padding."""
    found = {key: _whole_numbers(row[key], key, where) for key in (IDS, TYPES, MASK) if row.get(key) is not None}
    if len(set(map(len, found.values()))) > 1:
        raise ValueError(f"{where} has {', '.join(f'{len(values)} {key}' for key, values in found.items())}")
    mask = found.pop(MASK, None)
    if mask is None:
        return found
    if not any(mask):
        raise ValueError(f"{where} is padding alone: its {MASK} is 0 everywhere")
    return {key: [value for value, counts in zip(values, mask, strict=True) if counts] for key, values in found.items()}


def _whole_numbers(values: Any, key: str, where: str) -> list[int]:  # noqa: ANN401
    """Numbers of a row's tokens, whatever sequence they are in."""
    found = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(found, (list, tuple)) or not found or not all(type(i) is int and 0 <= i < 2**31 for i in found):
        what = "token ids" if key == IDS else "whole numbers"
        raise ValueError(f"{where} must have {what} in {key}, got {shown(values)}")
    return list(found)


def _texts(row: Any, where: str) -> list[str]:  # noqa: ANN401
    if isinstance(row, str):
        return [str(row)]
    texts = {key: row[key] for key in TEXT_COLUMNS if key in row}
    wrong = next((key for key, text in texts.items() if not isinstance(text, str)), None)
    if wrong is not None:
        raise ValueError(f"{where} must have a text in column {wrong!r}, got {shown(texts[wrong])}")
    if not texts:
        raise ValueError(
            f"{where} must be a text, or have a column of {', '.join(TEXT_COLUMNS)} or input_ids; its columns are "
            f"{', '.join(map(str, row)) or 'none'}"
        )
    return list(texts.values())


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


def tokens(batch: Batch) -> int:
    """Number of a batch's tokens that are not padding."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        return int(mask.bool().sum())
    return next(iter(batch.values())).shape[:2].numel()


def sequences(batch: Batch) -> int:
    """Number of a batch's sequences."""
    return len(next(iter(batch.values())))
