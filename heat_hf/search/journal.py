"""Results of a search on disk while it runs, and what its processes have to agree on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from heat_hf.encoders.checkpoints.key import read_key, require_same_key
from heat_hf.encoders.checkpoints.storage import remove_leftovers, writing

Row = TypeVar("Row")


class Journal:
    """Results of finished tasks on disk, a file for each process, and what processes have to agree on.

    Args:
        output: the table that will be made; None to keep nothing.
        key: of the search.
        overwrite: whether to throw away what is left of another search.

    Raises:
        ValueError: if the folder holds another search.
    """

    def __init__(self, output: Path | None, key: Mapping[str, Any], overwrite: bool) -> None:
        from accelerate import PartialState

        self.state = PartialState(cpu=not torch.cuda.is_available())
        self.processes: int = self.state.num_processes
        self.main: bool = self.state.is_main_process
        self.share = self.state.split_between_processes
        self.wait = self.state.wait_for_everyone
        if output is None and self.processes > 1:
            raise ValueError("a search over several processes needs an output file, through which they share results")
        self.output = output
        self.folder = None if output is None else output.with_name(f"{output.name}.partial")
        self.key = json.loads(json.dumps(key))
        self.overwrite = overwrite

    def __enter__(self) -> Journal:
        if self.folder is not None:
            if self.main:
                self._open(self.folder)
            self.wait()
            require_same_key(read_key(self.folder / "key.json"), self.key, str(self.folder))
        return self

    def _open(self, folder: Path) -> None:
        file = folder / "key.json"
        # Without a key, as of a process that was killed while it removed the folder, rows may be of any search.
        if folder.exists() and (not file.exists() or (self.overwrite and read_key(file) != self.key)):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            temporary = folder / f"key-{os.getpid()}"
            with writing(folder):
                temporary.write_text(json.dumps(self.key))
            temporary.replace(file)

    def clear(self) -> None:
        """Remove what this search left if it was killed when its table was there already."""
        if self.output is None or self.folder is None or not self.main:
            return
        remove_leftovers(self.output)
        if self.folder.exists() and read_key(self.folder / "key.json") in ({}, self.key):
            shutil.rmtree(self.folder)

    def read(self, row: Callable[..., Row]) -> dict[str, list[Row]]:
        """Results by task, from all processes. A line torn by a crash is as if it had not been written.

        Args:
            row: makes a row of its fields: a NamedTuple.
        """
        results: dict[str, list[Row]] = {}
        for file in sorted(self.folder.glob("*.jsonl")) if self.folder else []:
            for line in file.read_text().splitlines():
                try:
                    name, rows = json.loads(line)
                except ValueError:
                    continue
                results[name] = [row(*fields) for fields in rows]
        return results

    def write(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        """Keep the result of a task, NamedTuples."""
        if self.folder is None:
            return
        with writing(self.folder), (self.folder / f"part-{self.state.process_index}.jsonl").open("a") as file:
            file.write(f"\n{json.dumps([name, list(rows)])}\n")  # the first break ends a line torn before
            file.flush()
            os.fsync(file.fileno())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Once the table is written, nothing else has to stay."""
        if kind is None and self.folder is not None:
            self.wait()
            if self.main:
                shutil.rmtree(self.folder)
