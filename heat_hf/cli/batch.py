"""`heat-hf batch`: many checkpoints to many budgets."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heat_hf.cli import compress, options
from heat_hf.cli.values import heat_config, show

if TYPE_CHECKING:
    from heat_hf.reports.batch import Batch

FIELDS = ("models", "budgets", "options")
OWN = ("output", "overwrite", "dry_run", "json", "statistics")  # what each run gets from the batch
FILES = ("calibration_file", "cost_table", "ranks")  # options whose files are part of what is asked for
SHARED = (
    "model", "revision", "subfolder", "code_revision", "calibration_rows", "modules", "exclude", "seed", "sequence_length",
    "batch_size", "calibration_memory",
)  # fmt: skip  # options that statistics depend on
JOURNAL, PAGE = "batch.json", "batch.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `batch`."""
    parser.add_argument("runs", metavar="RUNS.yaml", help="models, budgets, and options of compress for all")
    options.add_output(parser, "DIR", "where DIR/MODEL/BUDGET, a table and a page go; what is there already is kept", True)
    options.add_json(parser, "the table")


@dataclass(frozen=True)
class Run:
    """One model to one budget.

    Attributes:
        model, budget: their names.
        args: of `compress`.
        key: all that the result depends on, as JSON.
    """

    model: str
    budget: str
    args: argparse.Namespace
    key: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the folder, below the batch's."""
        return f"{self.model}/{self.budget}"


def run(args: argparse.Namespace) -> int:
    """Compress every model to every budget that is not there yet; a run that fails does not stop the others."""
    output = Path(args.output)
    runs = read_runs(Path(args.runs), output)
    journal = _journal(output, runs)
    failed: dict[str, str] = {}
    for one in runs:
        if not (output / one.name).exists():
            journal[one.name] = one.key
            _write(output / JOURNAL, json.dumps(journal, indent=1) + "\n")
            print(f"{one.name}:", file=sys.stderr)
            try:
                compress.compressed(one.args)
            except (ValueError, OSError) as error:
                failed[one.name] = " ".join(str(error).split())
    found = _found(output, runs, failed)
    _write(output / PAGE, found.page())
    show(args, found.to_dict(), str(found))
    if failed:
        name, reason = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(runs)} runs failed; what else was asked for is in {output}. {name}: {reason}")
    return 0


def read_runs(file: Path, output: Path) -> list[Run]:
    """The runs that a file asks for, models outermost, all checked.

    Raises:
        OSError: if the file, or one that it names, cannot be read.
        ValueError: for what it must not hold; the message names the place.
    """
    asked = _asked(file)
    common, budgets = asked.get("options") or {}, asked["budgets"]
    runs = []
    for model, own in asked["models"].items():
        own = {"model": own} if isinstance(own, str) else own
        if not isinstance(own, dict) or not isinstance(own.get("model"), str):
            raise ValueError(f"{file}: models: {model} must be a checkpoint, or options with model, got {own!r}")
        for budget, target in budgets.items():
            where = f"{file}: {model}, {budget}"
            if not isinstance(target, dict):
                raise ValueError(f"{file}: budgets: {budget} must be options of compress, got {target!r}")
            runs.append(_run(where, model, str(budget), {**common, **own, **target}, output))
    return runs


def _asked(file: Path) -> dict[str, Any]:
    import yaml

    from heat_hf.encoders.checkpoints.reading import require_readable, told

    require_readable(file)
    with told(file, "is no YAML"):
        asked = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(asked, dict) or not set(asked) <= set(FIELDS):
        raise ValueError(f"{file} must have {', '.join(FIELDS)} and nothing else, got {_names(asked)}")
    for field in FIELDS[:2]:
        if not isinstance(asked.get(field), dict) or not asked[field]:
            raise ValueError(f"{file}: {field} must be names with what each stands for, got {asked.get(field)!r}")
        for name in asked[field]:
            if not re.fullmatch(r"\w[\w.-]*", str(name)):
                raise ValueError(f"{file}: {field}: a name has letters, digits, dots and dashes, got {name!r}")
    if not isinstance(asked.get("options") or {}, dict):
        raise ValueError(f"{file}: options must be options of compress, got {asked['options']!r}")
    return asked


def _names(asked: object) -> str:
    return ", ".join(map(str, asked)) if isinstance(asked, dict) else repr(asked)


def _run(where: str, model: str, budget: str, asked: dict[str, Any], output: Path) -> Run:
    import xxhash

    from heat_hf.encoders.checkpoints.weights import checksum

    own = next((name for name in OWN if name in asked), None)
    if own is not None:
        raise ValueError(f"{where}: {own} is not to be given: the batch sets it")
    parser = options.Parser(prog=where)
    compress.add_arguments(parser)
    words = [str(asked["model"]), *_words({name: value for name, value in asked.items() if name != "model"})]
    try:
        args = parser.parse_args([*words, "--output", str(output / model / budget)])
        config = heat_config(args)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).split(options.HELP)[0]}") from error
    files = {name: checksum([file]) for name in FILES if (file := getattr(args, name)) is not None}
    if args.calibration_file and config.uses_calibration and not config.tile_extent:
        key = json.dumps([*(getattr(args, name) for name in SHARED), files["calibration_file"]])
        args.statistics = str(output / f"statistics-{xxhash.xxh3_64_hexdigest(key.encode())}")
    return Run(model, budget, args, {"options": asked, "files": files})


def _words(asked: Mapping[str, Any]) -> Iterator[str]:
    """Options as a command line has them: true is a flag, a list several values, a mapping SIZE=value."""
    for name, value in asked.items():
        option = f"--{str(name).replace('_', '-')}"
        if value is False or value is None:
            continue
        yield option
        if isinstance(value, dict):
            yield from (f"{size}={own}" for size, own in value.items())
        elif value is not True:
            yield from map(str, value if isinstance(value, list) else [value])


def _journal(output: Path, runs: list[Run]) -> dict[str, Any]:
    """What was asked for in this folder before; a run that is there must have been asked for alike."""
    from heat_hf.encoders.checkpoints.reading import read_json

    file = output / JOURNAL
    journal: dict[str, Any] = read_json(file) if file.exists() else {}
    for one in runs:
        if (output / one.name).exists() and journal.get(one.name) != json.loads(json.dumps(one.key)):
            raise ValueError(f"{output / one.name} is of another run than what is asked for: name another DIR, or remove it")
    return journal


def _write(file: Path, text: str) -> None:
    from heat_hf.encoders.checkpoints.storage import atomic_file

    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _found(output: Path, runs: list[Run], failed: Mapping[str, str]) -> Batch:
    from heat_hf.reports.batch import Batch
    from heat_hf.reports.compression import CompressionReport

    done = {one.name: CompressionReport.load(output / one.name) for one in runs if one.name not in failed}
    return Batch(done, dict(failed))
