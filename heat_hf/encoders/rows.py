"""What counts as rows of data, and rows from local files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from heat_hf.encoders.files import READERS, read_table
from heat_hf.encoders.values import shown

if TYPE_CHECKING:
    from datasets import Dataset

MOST_ROWS = 1_000_000  # of data that does not know its length: a stream from the Hub may have no end that anybody waits for
LONGEST_PATH = 1_000


def as_rows(data: Any, name: str) -> list[Any]:  # noqa: ANN401
    """Bring whatever a user hands over to a list of rows: texts, or mappings from column names to values.

    Args:
        data: a list, a generator or another iterable of texts or of mappings; a `datasets.Dataset` or `IterableDataset`; a
            table of pandas, Polars or PyArrow; a mapping from column names to lists of the same length, as a slice of a
            `Dataset` is; or batches of tensors, as a `DataLoader` gives them.
        name: of the argument, for messages.

    Returns:
        At least one row, each a `str` or a mapping.

    Raises:
        ValueError: for anything else. What can be iterated over but is no collection of rows, as a path, the splits of a
            `DatasetDict` or a set, is refused by name, not taken apart.
    """
    require_rows(data, name)
    if isinstance(data, Mapping):
        rows = _of_columns(data, name)
    else:
        table = next((found for found in (_of_table(data, *how) for how in _TABLES) if found is not None), None)
        rows = list(itertools.islice(data, MOST_ROWS + 1)) if table is None else table
    if not rows:
        raise ValueError(f"{name} is empty: it has no rows")
    if len(rows) > MOST_ROWS and not hasattr(data, "__len__"):
        raise ValueError(f"{name} has more than {MOST_ROWS:,} rows, and no length: take the first ones, as .take(4096) does")
    for number, row in enumerate(rows):
        if not isinstance(row, (str, Mapping)):
            raise ValueError(f"{name} must hold texts or rows with columns: row {number} is {shown(row)}")
    if isinstance(rows[0], str) and len(rows[0]) < LONGEST_PATH and Path(rows[0]).is_file():
        raise ValueError(f"{name} must hold texts: row 0 names the file {shown(rows[0])}, read it with datasets.load_dataset")
    return rows


def require_rows(data: Any, name: str) -> None:  # noqa: ANN401
    """Refuse what can be no collection of rows, without looking into it.

    Args:
        data: see `as_rows`.
        name: of the argument, for messages.

    Raises:
        ValueError: saying what was given, and what to give instead.
    """
    if isinstance(data, Mapping) and any(hasattr(value, "column_names") for value in data.values()):
        splits = [str(split) for split in data]
        raise ValueError(f"{name} has the splits {', '.join(splits)}: take one of them, as {name}[{splits[0]!r}]")
    wrong = next((what for kinds, what in _NO_ROWS if isinstance(data, kinds)), None)
    if wrong is None and not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        wrong = "no collection of rows"
    if wrong is not None:
        raise ValueError(f"{name} must be a list of texts, rows of a datasets.Dataset, or batches; {shown(data)} is {wrong}")


_NO_ROWS: tuple[tuple[Any, str], ...] = (
    ((str, os.PathLike), "one text or a path: read a file with datasets.load_dataset, and put one text into a list"),
    ((bytes, bytearray, memoryview), "bytes"),
    ((set, frozenset), "a set, which has no order: sort it into a list"),
    (Tensor, "a tensor: put it into a batch, as [{'input_ids': tensor}]"),
)
# Tables whose iteration does not give rows: class name, module, method that does, its arguments.
_TABLES = (
    ("DataFrame", "pandas", "to_dict", ("records",)),
    ("DataFrame", "polars", "to_dicts", ()),
    ("Table", "pyarrow", "to_pylist", ()),
)


def _of_table(data: Any, kind: str, module: str, method: str, arguments: Sequence[Any]) -> list[Any] | None:  # noqa: ANN401
    """Rows of a library's table; None if the data is none."""
    if type(data).__name__ != kind or type(data).__module__.split(".")[0] != module:
        return None
    rows: list[Any] = getattr(data, method)(*arguments)
    return rows


def _of_columns(columns: Mapping[str, Any], name: str) -> list[Any]:
    """Rows of a mapping from column names to lists."""
    if isinstance(columns.get("input_ids"), Tensor):
        raise ValueError(f"{name} is one batch of tensors: put it into a list, as [batch]")
    if not columns or not all(isinstance(values, (list, tuple)) for values in columns.values()):
        raise ValueError(
            f"{name} must be a list of texts, rows of a datasets.Dataset, or batches; {shown(dict(columns))} is a mapping "
            "whose values are no columns: put one row into a list"
        )
    lengths = {str(column): len(values) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name} has columns of different lengths: {shown(lengths)}")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def column_names(data: Any, name: str) -> list[str]:  # noqa: ANN401
    """Names of the columns of rows; empty where rows are texts.

    Args:
        data: see `as_rows`; a list, or what knows its columns.
        name: of the argument, for messages.

    Raises:
        ValueError: as `as_rows`.
    """
    known = getattr(data, "column_names", None)
    if known is None or isinstance(data, Mapping):
        rows = as_rows(data, name)
        known = list(dict.fromkeys(column for row in rows if isinstance(row, Mapping) for column in row))
    return list(known)


def columns_of(data: Any, names: Sequence[str], name: str) -> list[list[Any]]:  # noqa: ANN401
    """The values of some columns, none of them missing.

    Args:
        data: see `as_rows`.
        names: of columns.
        name: of the argument, for messages.

    Raises:
        ValueError: as `as_rows`; or if a row has no value, or NaN, in one of the columns.
    """
    rows = as_rows(data, name)
    return [[_value(row, column, number, name) for number, row in enumerate(rows)] for column in names]


def _value(row: Any, column: str, number: int, name: str) -> Any:  # noqa: ANN401
    value = row.get(column) if isinstance(row, Mapping) else None
    if value is None or value != value:  # NaN, as pandas has missing values
        raise ValueError(f"{name} has nothing in column {column!r} of row {number}")
    return value


def load_rows(path: str | Path, rows: int | None = None) -> Dataset:
    """Read a file as a `datasets.Dataset`; a .txt file has one row a line, in the column "text".

    Args:
        path: a .txt, .parquet, .csv, .tsv, .json or .jsonl file.
        rows: read only the first rows.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be opened.
        ValueError: for another kind of file, a number of rows below 1, a file without rows, or one that is not what its name
            says.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is a folder: name a data file" if file.is_dir() else f"no data file {file}")
    if file.suffix not in READERS:
        raise ValueError(f"{file} is not of a known kind; use one of {', '.join(READERS)}")
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be positive, got {rows}")
    table = read_table(file, rows)
    if table.num_rows == 0 or table.num_columns == 0:
        raise ValueError(f"{file} has no rows")
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(table))


JOINTS = (",", "and", "but", "though", "while")


def texts_in(data: Dataset, name: str) -> list[str]:
    """The texts in all columns, words of a list with spaces between.

    Args:
        data: as `load_rows` reads it.
        name: of the data, for messages.

    Raises:
        ValueError: if no column has texts.
    """
    texts = []
    for column in data.column_names:
        for value in data[column]:
            words = value if isinstance(value, list) else [value]
            if words and all(isinstance(word, str) for word in words):
                texts.append(" ".join(words))
    if not texts:
        raise ValueError(f"{name} has no texts: its columns are {', '.join(data.column_names)}")
    return texts


def joined_texts(texts: Sequence[str], count: int, seed: int = 0, least_words: int = 3) -> list[str]:
    """Unlabelled training texts, each two random ones with a comma or a conjunction between.

    A teacher is sure of what it was trained on, and shows little of how it decides; of contradictory texts it is not. A
    student that learns from both is closer to it on texts that neither has seen.

    Args:
        texts: to draw from.
        count: how many to make.
        seed: of the draw.
        least_words: shorter texts are not drawn.

    Raises:
        ValueError: if there are fewer than two texts to draw from.
    """
    import random

    long = [text.strip() for text in texts if len(text.split()) >= least_words]
    if len(long) < 2:
        raise ValueError(f"there are {len(long)} texts of at least {least_words} words; joining needs two")
    rng = random.Random(seed)
    return [f"{rng.choice(long)} {rng.choice(JOINTS)} {rng.choice(long)}" for _ in range(count)]
