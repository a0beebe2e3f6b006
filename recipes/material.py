"""Rows of a recipe: from the Hub or from files, to train on and to score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.tasks.base import Columns, check_columns
from recipes.options import DataOptions, Options


@dataclass(frozen=True)
class Material:
    """Rows, and what they are.

    Attributes:
        train, validation: `datasets.Dataset`s.
        columns: first text, second text ("" for none) and reference of the validation rows.
        train_columns: the same of the training rows.
        name: of the data.
        texts: all training texts, also those too short to train on, where they are to be joined.
    """

    train: Any
    validation: Any
    columns: Columns
    train_columns: Columns
    name: str
    texts: list[str]


def read_material(options: Options) -> Material:
    """Read and choose the rows.

    Raises:
        OSError: if they cannot be read.
        ValueError: if a column is missing.
    """
    data = options.data
    train, validation = _from_hub(data) if data.dataset is not None else _from_files(data)
    if data.validation_rows is not None:
        validation = validation.select(range(min(data.validation_rows, len(validation))))
    columns: Any = tuple(data.columns or options.task.columns)
    train_columns: Any = tuple(data.train_columns or columns)
    check_columns(train, train_columns, "the train data")
    check_columns(validation, columns, "the validation data")
    if data.joined_rows and train_columns[1]:
        raise ValueError(f"joined_rows are for one text a row, and the rows have a second one, {train_columns[1]!r}")
    texts = list(train[train_columns[0]]) if data.least_words or data.joined_rows else []
    if texts:
        train = train.select([row for row, text in enumerate(texts) if len(text.split()) >= data.least_words])
    if data.train_rows is not None and data.train_rows < len(train):
        train = train.shuffle(seed=options.training.seed).select(range(data.train_rows))
    name = data.data_name or data.dataset or Path(data.train_files[0]).parent.name
    return Material(train, validation, columns, train_columns, name, texts)


def _from_hub(data: DataOptions) -> tuple[Any, Any]:
    import datasets

    train, validation = (
        datasets.load_dataset(data.dataset, data.dataset_config, split=split)
        for split in (data.train_split, data.validation_split)
    )
    return train, validation


def _from_files(data: DataOptions) -> tuple[Any, Any]:
    import datasets

    parts = [load_rows(path) for path in data.train_files]
    train = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    return train, load_rows(str(data.validation_file), data.validation_rows)
