"""Data files: read as they are, and a damaged one is one sentence that names it."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from damages import damaged
from fuzzing import require_told

from heat_hf.encoders.rows import load_rows

ROWS = [{"text": "a text, with a comma", "label": 1}, {"text": 'a "quoted" one', "label": 0}, {"text": "NA", "label": 2}]


def written(folder: Path, suffix: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    file, data = folder / f"data{suffix}", datasets.Dataset.from_list(rows)
    match suffix:
        case ".parquet":
            data.to_parquet(file)
        case ".csv":
            data.to_csv(file, index=False)
        case ".tsv":
            data.to_csv(file, sep="\t", index=False)
        case ".jsonl":
            data.to_json(file)
        case ".json":
            file.write_text(json.dumps(rows))
        case ".txt":
            file.write_text("\n\n".join(row["text"] for row in rows))
    return file


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".json", ".jsonl"])
def test_files_are_read_as_they_are(suffix: str, tmp_path: Path) -> None:
    file = written(tmp_path, suffix)
    assert load_rows(file).to_list() == ROWS
    assert load_rows(file, 2).to_list() == ROWS[:2]


def test_text(tmp_path: Path) -> None:
    file = written(tmp_path, ".txt")
    assert load_rows(file)["text"][:] == [row["text"] for row in ROWS]
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert load_rows(file)["text"][:] == ["one", "two"]


def test_columns_as_json_and_lines_that_are_called_json(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps({"text": ["a", "b"], "label": [0, 1]}))
    assert load_rows(file).to_list() == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    file.write_text('{"text": "a"}\n{"text": "b", "label": 1}\n')
    assert load_rows(file).to_list() == [{"text": "a", "label": None}, {"text": "b", "label": 1}]
    file.write_text('{"text": "a"}')
    assert load_rows(file).to_list() == [{"text": "a"}]


def test_class_names_of_a_parquet_file_stay(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).to_parquet(tmp_path / "data.parquet")
    assert load_rows(tmp_path / "data.parquet").features["label"].names == ["bad", "good"]


BAD = {
    "empty.csv": (b"", "cannot be read as csv: Empty CSV file"),
    "empty.txt": (b"", "has no rows"),
    "blank.txt": (b"\n \n", "has no rows"),
    "header.csv": (b"text,label\n", "has no rows"),
    "empty.json": (b"", "cannot be read as json"),
    "none.json": (b"[]", "has no rows"),
    "empty.jsonl": (b"", "has no rows"),
    "empty.parquet": (b"", "cannot be read as parquet"),
    "latin.txt": ("ein schöner Text".encode("latin-1"), "is not text in UTF-8: invalid start byte at byte 7"),
    "latin.csv": ("text\nein schöner Text".encode("latin-1"), "is not text in UTF-8"),
    "utf16.txt": ("text".encode("utf-16"), "is not text in UTF-8"),
    "latin.jsonl": ('{"text": "schön"}'.encode("latin-1"), "is not text in UTF-8"),
    "gzip.csv": (gzip.compress(b"text\na"), "is not text in UTF-8"),
    "ragged.csv": (b"text,label\na,1\nb\n", "Row #3: Expected 2 columns, got 1"),
    "long.csv": (b"text,label\na,1\nb,2,3\n", "Row #3: Expected 2 columns, got 3"),
    "twice.csv": (b"text,text\na,b\n", "has two columns with the name 'text'"),
    "lines.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2 is no JSON"),
    "number.jsonl": (b'{"text": "a"}\n\n3\n', "line 3 is 3, not a row with columns"),
    "text.json": (b'"text"', "holds 'text', not a list of rows"),
    "list.json": (b'[{"text": "a"}, ["b"]]', r"row 1 is \['b'\], not a row"),
    "kinds.json": (b'[{"text": "a"}, {"text": 3}]', "column 'text' holds values of different kinds"),
    "columns.json": (b'{"text": ["a", "b"], "label": [1]}', "cannot be read as json"),
    "deep.json": (b"[" * 100_000, "is nested too deeply|cannot be read as json"),
    "cut.json": (b'[{"text": "a"}, {"te', "cannot be read as json"),
    "text.parquet": (b"text\na\n", "does not start with PAR1"),
    "cut.parquet": (b"PAR1 and no more", "cannot be read as parquet"),
    "data.xlsx": (b"PK", "is not of a known kind; use one of .txt"),
    "data.csv.gz": (gzip.compress(b"text\na"), "is not of a known kind"),
    "data": (b"text", "is not of a known kind"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_rows(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder.csv is a folder: name a data file"):
        load_rows(tmp_path / "folder.csv")
    with pytest.raises(FileNotFoundError, match=r"no data file .*none.csv"):
        load_rows(tmp_path / "none.csv")


def test_one_very_long_line(tmp_path: Path) -> None:
    text = "word " * 1_000_000
    for suffix in (".csv", ".jsonl", ".txt"):
        file = written(tmp_path, suffix, [{"text": text}, {"text": "short"}])
        assert [len(row["text"]) for row in load_rows(file)] == [len(text), 5]


def damaged_files(folder: Path, count: int) -> Counter[str]:
    """Read damaged files, and count what came of it; anything but rows or a named error fails."""
    rng, counts = random.Random(0), Counter[str]()
    for number in range(count):
        suffix = rng.choice([".parquet", ".csv", ".tsv", ".json", ".jsonl", ".txt"])
        good = written(folder, suffix)
        bad = folder / f"bad-{number}{suffix}"
        bad.write_bytes(damaged(good.read_bytes(), rng))
        try:
            rows = load_rows(bad)
        except ValueError as error:
            assert bad.name in str(error)
            assert "\n" not in str(error)
            counts["refused"] += 1
        else:
            assert len(rows.to_list()) == len(rows) > 0
            counts["read"] += 1
    return counts


def test_a_few_damaged_files(tmp_path: Path) -> None:
    assert damaged_files(tmp_path, 60)["refused"] > 20


@pytest.mark.slow
def test_damaged_files(tmp_path: Path) -> None:
    counts = damaged_files(tmp_path, 250)
    require_told("of {total} damaged data files {read} were read and {refused} refused in one line", counts)
