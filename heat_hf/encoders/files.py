"""Tables from local files. Whatever is wrong with a file is a ValueError of one sentence, with the row where it is known.

Read directly, not by `datasets.load_dataset`: that takes "NA" and "null" in a text for missing, fills short rows up in silence,
and its errors name neither file nor row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from heat_hf.encoders.values import SHOWN, shown


def read_table(file: Path, rows: int | None = None) -> Any:  # noqa: ANN401
    """A file as a `pyarrow.Table`.

    Args:
        file: its name ends in one of `READERS`.
        rows: no more than these are needed.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is not what its name says.
    """
    import pyarrow

    try:
        table = READERS[file.suffix](file, rows)
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the system; PyArrow has OSErrors of its own for damaged files
            raise
        reason = " ".join(str(error).split())[: 3 * SHOWN]
        raise ValueError(f"{file} cannot be read as {file.suffix[1:]}: {reason}") from error
    twice = {name for name in table.column_names if table.column_names.count(name) > 1}
    if twice:
        raise ValueError(f"{file} has two columns with the name {min(twice)!r}")
    return table if rows is None else table.slice(0, rows)


def _text(file: Path, rows: int | None) -> Any:  # noqa: ANN401
    """One row a line, in the column "text"; lines without text are left out."""
    import pyarrow

    lines: list[str] = []
    for _, line in _lines(file):
        lines.append(line)
        if len(lines) == rows:
            break
    return pyarrow.table({"text": pyarrow.array(lines, pyarrow.string())})


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1; a byte order mark is no text."""
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, line.rstrip("\n")


def _parquet(file: Path, _rows: int | None) -> Any:  # noqa: ANN401
    from pyarrow import parquet

    _require_text(file, b"PAR1")
    return parquet.ParquetFile(file).read()


def _require_text(file: Path, start: bytes) -> None:
    with file.open("rb") as stream:
        if stream.read(len(start)) != start:
            raise ValueError(f"it does not start with {start.decode()}")


def _separated(delimiter: str) -> Callable[[Path, int | None], Any]:
    def read(file: Path, _rows: int | None) -> Any:  # noqa: ANN401
        import pyarrow
        from pyarrow import csv

        content = file.read_bytes()
        content.decode("utf-8")  # PyArrow takes columns that are not UTF-8 for bytes
        # One block: types are those of the whole column, and a row may be as long as it is.
        blocks = csv.ReadOptions(use_threads=False, block_size=max(1, min(len(content) + 1, 2**31 - 1)))
        format = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        return csv.read_csv(pyarrow.BufferReader(content), blocks, format)

    return read


def _json_lines(file: Path, rows: int | None) -> Any:  # noqa: ANN401
    found = []
    for number, line in _lines(file):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is no JSON: {error}") from error
        _require_row(found[-1], f"line {number}")
        if len(found) == rows:
            break
    return _of_rows(found)


def _json(file: Path, rows: int | None) -> Any:  # noqa: ANN401
    """A list of rows, columns by name, or lines."""
    text = file.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        if text.lstrip()[:1] == "{":
            return _json_lines(file, rows)
        raise
    if isinstance(content, dict):
        return _of_columns(content)
    if not isinstance(content, list):
        raise ValueError(f"it holds {shown(content)}, not a list of rows")
    for number, row in enumerate(content):
        _require_row(row, f"row {number}")
    return _of_rows(content)


def _require_row(row: object, where: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f'{where} is {shown(row)}, not a row with columns, as {{"text": …}}')


def _of_rows(rows: list[dict[str, Any]]) -> Any:  # noqa: ANN401
    """Columns are those of any row; a row that lacks one has nothing in it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return _of_columns({name: [row.get(name) for row in rows] for name in names})


def _of_columns(columns: dict[str, Any]) -> Any:  # noqa: ANN401
    import pyarrow

    arrays = {}
    for name, values in columns.items():
        if not isinstance(values, list):
            values = [values]  # the only row of a file of lines
        try:
            arrays[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError) as error:
            raise ValueError(f"column {name!r} holds values of different kinds: {error}") from error
    return pyarrow.table(arrays)


# By suffix: file, rows that are needed → table.
READERS: dict[str, Callable[[Path, int | None], Any]] = {
    ".txt": _text,
    ".parquet": _parquet,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".json": _json,
    ".jsonl": _json_lines,
}
