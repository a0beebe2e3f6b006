"""Whole models side by side on this machine, in several runtimes and precisions: score, size and time, and which to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

from heat_hf.reports.text import line_width, text_table

UNBOUNDED = 1000  # characters: no table is as wide


class Pass(NamedTuple):
    """A forward pass: rows, tokens in a row, and threads that it may use."""

    batch_size: int
    sequence_length: int
    threads: int = 1

    @property
    def tokens(self) -> str:
        """Rows × tokens."""
        return f"{self.batch_size} × {self.sequence_length}"


class Time(NamedTuple):
    """Seconds of a forward pass, their median, and quartiles of the ratio to the reference's of the same round."""

    seconds: float
    lower: float
    ratio: float
    upper: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.lower:.2f}–{self.upper:.2f})"


@dataclass(frozen=True)
class Entry:
    """A model in a runtime and a precision.

    Attributes:
        model: Hub id or folder.
        runtime: a name of `heat_hf.hardware.machine.runtimes.RUNTIMES`.
        precision: one of `heat_hf.hardware.machine.runtimes.PRECISIONS`.
        bytes: of weights, or of the exported files.
        times: of each forward pass.
        score: the task's main one; None without data.
        memory: bytes that loading and forward passes take at most; None where that is not known.
    """

    model: str
    runtime: str
    precision: str
    bytes: int
    times: dict[Pass, Time]
    score: float | None = None
    memory: int | None = None

    @property
    def way(self) -> str:
        """How the model runs."""
        return f"{self.runtime} {self.precision}"

    def command(self) -> str:
        """What makes it of the model."""
        if self.runtime != "torch":
            int8 = " --int8 --calibration-file FILE" if self.runtime == "openvino" else " --int8"
            flag = int8 if self.precision == "int8" else ""
            half = ", then OpenVinoModel(DIR, bfloat16=True)" if self.precision == "bfloat16" else ""
            return f"heat-hf export {self.model} --runtime {self.runtime}{flag} --output DIR{half}"
        in_int8 = "torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)"
        return {"int8": in_int8, "bfloat16": "model.bfloat16()"}.get(self.precision, "as it is")


@dataclass(frozen=True)
class BenchReport:
    """What a bench found.

    Attributes:
        entries: the first one is what all times are divided by.
        metric: name of the score; "" without data.
        within: how far below the best score counts as good, as a fraction of it.
        about: machine, versions, repeats, task and data.
        left_out: what was not run, and why.
    """

    entries: Sequence[Entry]
    metric: str = ""
    within: float = 0.01
    about: dict[str, Any] = field(default_factory=dict)
    left_out: Sequence[str] = ()

    @property
    def passes(self) -> list[Pass]:
        """Forward passes that were timed."""
        return list(self.entries[0].times)

    def label(self, one: Pass) -> str:
        """Rows × tokens, with the threads where there are passes of several numbers of them."""
        several = len({own.threads for own in self.passes}) > 1
        return f"{one.tokens} with {one.threads} thread{'s' * (one.threads > 1)}" if several else one.tokens

    def best(self, one: Pass) -> Entry:
        """The fastest one whose score is good; without scores, of all."""
        scores = [entry.score for entry in self.entries if entry.score is not None]
        least = max(scores) - self.within * abs(max(scores)) if scores else None
        good = [entry for entry in self.entries if least is None or (entry.score is not None and entry.score >= least)]
        return min(good, key=lambda entry: entry.times[one].ratio)

    def advice(self) -> list[str]:
        """A line for each model and way that is the best at some forward pass."""
        chosen: dict[int, list[Pass]] = {}
        for one in self.passes:
            chosen.setdefault(next(i for i, entry in enumerate(self.entries) if entry is self.best(one)), []).append(one)
        return [self._line(self.entries[number], passes) for number, passes in chosen.items()]

    def _line(self, entry: Entry, passes: Sequence[Pass]) -> str:
        times = ", ".join(f"{entry.times[one].ratio:.2f}" for one in passes)
        score = "" if entry.score is None else f" at {self.metric} {entry.score:.4f}"
        name = short_names([own.model for own in self.entries])[entry.model]
        return f"for {', '.join(map(self.label, passes))}: {name} in {entry.way}, {times} of the time{score}: {entry.command()}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; times in seconds, sizes in bytes."""
        return {
            **self.about,
            "metric": self.metric or None,
            "within": self.within,
            "left_out": list(self.left_out),
            "entries": [
                {**asdict(entry), "times": [{**one._asdict(), **time._asdict()} for one, time in entry.times.items()]}
                for entry in self.entries
            ],
            "use": [
                {
                    **one._asdict(),
                    "model": own.model,
                    "runtime": own.runtime,
                    "precision": own.precision,
                    "by": own.command(),
                }
                for one, own in ((one, self.best(one)) for one in self.passes)
            ],
        }

    def table(self, quartiles: bool = True) -> str:
        """A row for each model and way, as wide as it needs; without quartiles, medians alone."""
        names = short_names([entry.model for entry in self.entries])
        rows = [self._cells(names[entry.model], entry, quartiles) for entry in self.entries]
        used = [column for column in rows[0] if any(row[column] for row in rows)]
        groups = [
            [[row[column] for column in used] for row, entry in zip(rows, self.entries, strict=True) if entry.model == model]
            for model in dict.fromkeys(entry.model for entry in self.entries)
        ]
        return text_table(used, groups, left=(0, 1), width=UNBOUNDED)

    def __str__(self) -> str:
        table = self.table()
        if len(table.splitlines()[0]) > line_width():
            table = self.table(quartiles=False)
        names, first = short_names([entry.model for entry in self.entries]), self.entries[0]
        took = ", ".join(f"{1e3 * time.seconds:.3g} ms at {self.label(one)}" for one, time in first.times.items())
        return "\n".join(
            [
                table,
                f"time over that of {names[first.model]} in {first.way} in the same round: median (quartiles); it took {took}",
                *([f"left out: {'; '.join(self.left_out)}"] if self.left_out else []),
                *self.advice(),
            ]
        )

    def _cells(self, name: str, entry: Entry, quartiles: bool) -> dict[str, str]:
        """By column; one that is empty everywhere is left out."""
        return {
            "model": name,
            "runs in": entry.way,
            "MiB": f"{entry.bytes / 2**20:.1f}",
            "memory, MiB": "" if entry.memory is None else f"{entry.memory / 2**20:.0f}",
            self.metric: "" if entry.score is None else f"{entry.score:.4f}",
        } | {self.label(one): str(time) if quartiles else f"{time.ratio:.2f}" for one, time in entry.times.items()}


def short_names(models: Sequence[str]) -> dict[str, str]:
    """The last part of each model's name, where that tells them apart."""
    short = {model: PurePath(model).name or model for model in models}
    return short if len(set(short.values())) == len(short) else {model: model for model in models}
