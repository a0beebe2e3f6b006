"""Reading option values, and printing results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

    from heat_hf.compression.compressor import HeatCompressor
    from heat_hf.compression.config import HeatConfig
    from heat_hf.encoders.batches import Batch
    from heat_hf.encoders.checkpoints.sentence_encoder import SentenceEncoder
    from heat_hf.encoders.statistics import Statistics


def parse_pairs(values: Sequence[str] | None, read: Callable[[str], Any]) -> Any:  # noqa: ANN401
    """`["V"]` → V for all matrices; `["384x1536=V", …]` → a mapping by matrix size."""
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return read(values[0])
    if not all("=" in value for value in values):
        raise ValueError(f"give one value for all matrices or SIZE=VALUE for each size, got {' '.join(values)}")
    return {size: read(value) for size, value in (value.split("=", 1) for value in values)}


def parse_rank(text: str) -> int | list[int]:
    """`"64"` → 64, `"16,24,80"` → [16, 24, 80]."""
    try:
        ranks = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--rank must be an integer or integers with commas between, got {text!r}") from error
    return ranks[0] if len(ranks) == 1 else ranks


def heat_config(args: argparse.Namespace) -> HeatConfig:
    """The configuration that the options ask for: each of its fields that is an option of the verb, the others as they are.

    Raises:
        ValueError: if it cannot work.
    """
    import dataclasses

    from heat_hf.compression.config import HeatConfig

    read: dict[str, Callable[[str], Any]] = {"rank": parse_rank, "shape": str}
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(HeatConfig) if hasattr(args, field.name)}
    config = HeatConfig(**{name: parse_pairs(value, read[name]) if name in read else value for name, value in given.items()})
    config.cost_model()  # raises now, rather than once the model is loaded
    return config


def loading(args: argparse.Namespace, prefix: str = "") -> dict[str, Any]:
    """What the options of `add_loading` ask for, as `from_pretrained` takes it; nobody is asked whether code may run.

    Args:
        args: of the command line.
        prefix: of the names of `add_place`'s options, "teacher_".
    """
    places = {name: getattr(args, f"{prefix}{name}") for name in ("revision", "subfolder", "code_revision")}
    return {**{name: place for name, place in places.items() if place}, "trust_remote_code": args.trust_remote_code}


def with_encoder(model: str, how: dict[str, Any]) -> tuple[dict[str, Any], SentenceEncoder]:
    """How a checkpoint is loaded, wherever it has its Transformer, and what sentence-transformers has beside it."""
    from heat_hf.encoders.checkpoints.sentence_encoder import sentence_encoder

    encoder = sentence_encoder(model, **{key: value for key, value in how.items() if key == "revision"})
    return ({**how, "subfolder": encoder.subfolder} if encoder.subfolder else how), encoder


def rows_of(args: argparse.Namespace, name: str) -> Dataset | None:
    """The rows that `--NAME-file` and `--NAME-rows` ask for; None without a file.

    Raises:
        OSError, ValueError: if the file cannot be read.
    """
    from heat_hf.encoders.rows import load_rows

    file = getattr(args, f"{name}_file")
    return load_rows(file, getattr(args, f"{name}_rows")) if file else None


def single_rows(model: Any, tokenizer: Any, rows: Dataset | None, encoder: SentenceEncoder) -> Sequence[Batch]:  # noqa: ANN401
    """Calibration rows for an export, as a model is served them, one by one so that nothing is padded; none without rows."""
    from heat_hf.encoders.batches import calibration_batches
    from heat_hf.evaluation.tasks import as_served

    if rows is None:
        return ()
    words, texts = as_served(model, tokenizer, rows, "--calibration-file", encoder)
    return calibration_batches(texts, words, batch_size=1, name="--calibration-file")


def statistics_of(
    args: argparse.Namespace, compressor: HeatCompressor, config: HeatConfig, rows: Dataset | None
) -> Statistics | None:
    """What `--statistics` names: loaded, or collected of the calibration rows and written there; None without it.

    Raises:
        OSError, ValueError: if the file cannot be read or written, or neither it nor calibration rows are there.
    """
    from pathlib import Path

    from heat_hf.encoders.statistics import Statistics

    if args.statistics is None:
        return None
    if Path(args.statistics).exists():
        return Statistics.load(args.statistics)
    if rows is None:
        raise ValueError(f"--statistics {args.statistics} is not there: give --calibration-file to collect it")
    statistics = compressor.statistics_of(config, rows)
    statistics.save(args.statistics)
    return statistics


def show(args: argparse.Namespace, data: object, text: str) -> None:
    """Print the data as JSON if that was asked for, else the text."""
    print(json.dumps(data, indent=2) if args.json else text)
