"""Rows from local files, whatever common format they are in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

_BUILDERS = {".txt": "text", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}


def load_rows(path: str | Path, rows: int | None = None) -> Dataset:
    """Read a file as a `datasets.Dataset`; a .txt file has one row a line, in the column "text".

    Args:
        path: a .txt, .parquet, .csv, .tsv, .json or .jsonl file.
        rows: read only the first rows.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another kind of file, a number of rows below 1, or a file without rows.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no data file {file}")
    if file.suffix not in _BUILDERS:
        raise ValueError(f"{file} is not of a known kind; use one of {', '.join(_BUILDERS)}")
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be positive, got {rows}")
    import datasets

    options = {"delimiter": "\t"} if file.suffix == ".tsv" else {}
    data = datasets.load_dataset(_BUILDERS[file.suffix], data_files=str(file), split="train", **options)
    if file.suffix == ".txt":
        data = data.filter(lambda row: bool(row["text"].strip()))
    if len(data) == 0:
        raise ValueError(f"{file} has no rows")
    return data if rows is None else data.select(range(min(rows, len(data))))


JOINTS = (",", "and", "but", "though", "while")


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
