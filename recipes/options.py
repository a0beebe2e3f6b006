"""Options of the recipes: a YAML file for a whole run, and any of its options again on the command line."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from heat_hf import FORMATS, HeatConfig
from heat_hf.distillation import DistillationArguments
from heat_hf.evaluation.tasks import TASKS, Task, find_task

_PLACE = re.compile(r"(?s)^(--[\w-]+=)?/(?:.*/)?(?=[^/])")  # where a file is on this machine is not published
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


@dataclass
class ModelOptions:
    """What the model is for, and where the dense one comes from."""

    task: str | None = field(default=None, metadata={"help": f"one of {', '.join(TASKS)}"})
    teacher: str | None = field(default=None, metadata={"help": "Hub id or folder of a fine-tuned dense model"})
    model: str | None = field(default=None, metadata={"help": "pretrained encoder to fine-tune into one where there is none"})
    revision: str = field(default="main", metadata={"help": "of either, on the Hub"})
    teacher_epochs: float = field(default=3.0, metadata={"help": "of fine-tuning it"})
    teacher_learning_rate: float = field(default=5e-5, metadata={"help": "of fine-tuning it"})
    teacher_config_overrides: str | None = field(
        default=None, metadata={"help": "of its configuration while fine-tuning: key=value,…"}
    )
    name: str | None = field(default=None, metadata={"help": "of the result, on its card; default: the output folder's"})


@dataclass
class DataOptions:
    """Rows to train on and rows to score, from the Hub or from files."""

    dataset: str | None = field(default=None, metadata={"help": "Hub id of a data set"})
    dataset_config: str | None = field(default=None, metadata={"help": "which of its configurations"})
    train_split: str = field(default="train", metadata={"help": "split of the Hub's data set"})
    validation_split: str = field(default="validation", metadata={"help": "likewise"})
    train_files: list[str] = field(default_factory=list, metadata={"help": "instead: parquet, csv, tsv, json, jsonl or txt"})
    validation_file: str | None = field(default=None, metadata={"help": "likewise"})
    data_name: str | None = field(default=None, metadata={"help": "of the data, on the card; default: that of the data set"})
    columns: list[str] = field(default_factory=list, metadata={"help": "first text, second text ('' for none), reference"})
    train_columns: list[str] = field(default_factory=list, metadata={"help": "the same for training; default: columns"})
    max_length: int = field(default=128, metadata={"help": "tokens after which a row is cut, or of a question's window"})
    stride: int = field(default=64, metadata={"help": "tokens that neighbouring windows of a question share"})
    train_rows: int | None = field(default=None, metadata={"help": "use so many rows, drawn by the seed"})
    least_words: int = field(default=0, metadata={"help": "leave out training rows whose first text is shorter"})
    joined_rows: int = field(default=0, metadata={"help": "unlabelled rows to add, each of two training texts; one text a row"})
    validation_rows: int | None = field(default=None, metadata={"help": "score only the first rows"})
    calibration_rows: int = field(default=2048, metadata={"help": "training rows for search and projection"})


@dataclass
class CompressionOptions:
    """What the student is."""

    decomposition: str = field(default="low_rank", metadata={"help": f"{', '.join(FORMATS)} or mixed"})
    rank_search: str = field(default="sensitivity", metadata={"help": "how ranks are found"})
    target_edp_ratio: float | None = field(default=None, metadata={"help": "EDP to keep, as a fraction of the dense one"})
    target_params_ratio: float | None = field(default=None, metadata={"help": "parameters to keep instead"})
    ranks: str | None = field(default=None, metadata={"help": "take what heat-hf search ranks found instead"})
    variant: str | None = field(default=None, metadata={"help": "which of its variants"})
    cost_table: str | None = field(default=None, metadata={"help": "what heat-hf search shapes found, for shapes"})
    widths: bool = field(default=False, metadata={"help": "feed-forward networks may lose inner neurons instead"})
    refine_steps: int = field(default=HeatConfig.refine_steps, metadata={"help": "of every block, before training; 0: none"})
    accelerator: str = field(default="simba-l", metadata={"help": "whose EDP counts"})
    sequence_length: int = field(default=128, metadata={"help": "tokens for which it counts"})

    def config(self, seed: int) -> HeatConfig:
        """As compression takes it."""
        names = ("decomposition", "target_edp_ratio", "target_params_ratio", "cost_table", "accelerator", "sequence_length")
        values = {name: getattr(self, name) for name in (*names, "widths", "refine_steps")}
        if self.ranks is not None:  # the record says the rest
            return HeatConfig(**{**values, "target_params_ratio": 0.5, "target_edp_ratio": None, "widths": False}, seed=seed)
        return HeatConfig(**values, rank_search=self.rank_search, seed=seed)


@dataclass
class Options:
    """All of a run's."""

    task: Task
    model: ModelOptions
    data: DataOptions
    compression: CompressionOptions
    training: DistillationArguments
    command: str


def parse(argv: Sequence[str] | None = None) -> Options:
    """Read a command line: an optional YAML file first, then options that override it.

    `$NAME` in the file's values stands for the environment variable.

    Args:
        argv: default: the process's.

    Raises:
        ValueError: if the file has an unknown option, an environment variable is not set, or options do not go together.
        FileNotFoundError: if there is no such file.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "-m", "recipes.run", *(_PLACE.sub(r"\1", word) for word in given)])
    parser = HfArgumentParser((ModelOptions, DataOptions, CompressionOptions, DistillationArguments))  # type: ignore[arg-type]
    if given and given[0].endswith((".yaml", ".yml")):
        parser.set_defaults(**_read(Path(given.pop(0)), {action.dest for action in parser._actions}))
    model, data, compression, training = parser.parse_args_into_dataclasses(given)
    data.train_files = [_expanded(path) for path in data.train_files]
    if model.task is None:
        raise ValueError(f"task is missing: one of {', '.join(TASKS)}")
    options = Options(find_task(model.task), model, data, compression, training, command)
    _check_model(options)
    _check_data(options)
    return options


def _read(path: Path, names: set[str]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no recipe file {path}")
    values = yaml.safe_load(path.read_text()) or {}
    unknown = sorted(set(values) - names)
    if unknown:
        raise ValueError(f"{path} has an unknown option {unknown[0]!r}")
    return {name: _expanded(value) for name, value in values.items()}


def _expanded(value: Any) -> Any:  # noqa: ANN401
    """Environment variables in strings and lists of strings."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    if not isinstance(value, str):
        return value
    for name in _VARIABLE.findall(value):
        if name not in os.environ:
            raise ValueError(f"{value} needs the environment variable {name}, which is not set")
    return os.path.expandvars(value)


def _check_model(options: Options) -> None:
    model, compression = options.model, options.compression
    if (model.teacher is None) == (model.model is None):
        raise ValueError("give either teacher, a fine-tuned dense model, or model, an encoder to fine-tune")
    if model.teacher is None and not options.task.fine_tunes:
        raise ValueError(f"{options.task.name} has no labels to fine-tune on: name a teacher, the encoder itself")
    if compression.ranks is not None and compression.variant is None:
        raise ValueError("variant is missing: it names one of the record given by ranks")


def _check_data(options: Options) -> None:
    data, training = options.data, options.training
    if (data.dataset is None) != bool(data.train_files) or (data.dataset is None and data.validation_file is None):
        raise ValueError("give either dataset, or train_files and validation_file")
    for name in ("least_words", "joined_rows"):
        if getattr(data, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(data, name)}")
    if data.joined_rows and (training.targets == "labels" or training.recipe == "labels"):
        raise ValueError("joined_rows have no labels: leave them out, or take the teacher's targets")
    for name in ("train_rows", "validation_rows", "calibration_rows"):
        value = getattr(data, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
