"""What a task is: everything that the command line, the recipes, evaluation and the model cards ask about it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Model = PreTrainedModel
    Tokenizer = PreTrainedTokenizerBase

Columns = tuple[str, str, str]
Second = Sequence[str] | None  # texts of a second column, where a task has one


class Task(ABC):
    """A task: one file with a subclass, and one line in `heat_hf.evaluation.tasks.TASKS`.

    Columns are always three names: first text, second text ("" for none), reference. Methods import what they need, so that
    the registry loads neither torch nor Transformers.

    Attributes:
        name: the key in `TASKS`, which users write; the Hub's name where the Hub has the task.
        head: how names of its model classes end, "ForSequenceClassification"; "" for an encoder without a head.
        columns: default column names.
        metrics: names in `heat_hf.evaluation.metrics`.
        main: the score that decides.
        percent: whether that score is between 0 and 100 rather than between 0 and 1.
        pipeline: Transformers' pipeline for it, shown on cards; "" where there is none.
        words: whether texts are lists of words.
        fine_tunes: whether its rows can make a teacher of an encoder.
    """

    name: ClassVar[str]
    head: ClassVar[str] = ""
    columns: ClassVar[Columns]
    metrics: ClassVar[tuple[str, ...]]
    main: ClassVar[str]
    percent: ClassVar[bool] = False
    pipeline: ClassVar[str] = ""
    words: ClassVar[bool] = False
    fine_tunes: ClassVar[bool] = True

    @property
    def model_class(self) -> Any:  # noqa: ANN401
        """The Transformers class that loads models with the head."""
        import transformers

        return getattr(transformers, f"AutoModel{self.head}")

    @abstractmethod
    def predict(self, model: Model, tokenizer: Tokenizer, first: Sequence[Any], second: Second) -> list[Any]:
        """The model's answer to every row, as the metrics take it.

        Args:
            model: with the head.
            tokenizer: the model's.
            first: texts, or lists of words.
            second: second texts, or None.
        """

    def references(self, model: Model, references: list[Any]) -> list[Any]:
        """The reference column as the metrics take it."""
        return references

    def encode(self, rows: Any, columns: Columns, tokenizer: Tokenizer, max_length: int, stride: int) -> Any:  # noqa: ANN401
        """Rows to train on: token ids of the text, or of the pair, and the reference as `labels`.

        Args:
            rows: a `datasets.Dataset`.
            columns: its columns.
            tokenizer: the model's.
            max_length: tokens after which a row is cut.
            stride: tokens that neighbouring windows share, where a row becomes several.
        """
        first, second, label = columns

        def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
            texts = [batch[name] for name in (first, second) if name]
            return {**tokenizer(*texts, truncation=True, max_length=max_length), "labels": batch[label]}

        return rows.map(tokenize, batched=True, remove_columns=rows.column_names)

    def collator(self, tokenizer: Tokenizer) -> Any:  # noqa: ANN401
        """What makes batches of encoded rows."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def labels(self, rows: Any, columns: Columns) -> list[str] | None:  # noqa: ANN401
        """Names of a head's outputs, as many as it is to have; None where the task does not name them."""
        return None

    def usage(self, name: str) -> str:
        """A program for a model's card that loads the model of this name."""
        if self.pipeline:
            return (
                f'import heat_hf\nfrom transformers import pipeline\n\npipe = pipeline("{self.pipeline}", model={quoted(name)})'
            )
        return loading(name, f"AutoModel{self.head}")

    def points(self, difference: float) -> float:
        """A difference of main scores in points, that is in hundredths of the whole scale."""
        return difference if self.percent else 100 * difference


def class_of(model: Model, label: Any) -> int:  # noqa: ANN401
    """Number of a model's class.

    Args:
        model: with a head that classifies.
        label: its name, or the number itself.

    Raises:
        ValueError: for anything else, as the -1 that test splits have where others have labels.
    """
    from heat_hf.encoders.values import shown

    config: Any = model.config
    names = {str(name): int(number) for name, number in (config.label2id or {}).items()}
    number: Any = names.get(label) if isinstance(label, str) else label
    if number not in range(config.num_labels):
        known = shown(", ".join(names)) if isinstance(label, str) else f"0 to {config.num_labels - 1}"
        raise ValueError(f"{shown(label)} is no class of the model, which has {known}")
    return int(number)


def quoted(name: str) -> str:
    """A name as a string of Python, in double quotes and one line."""
    return json.dumps(name, ensure_ascii=False)


def loading(name: str, model_class: str = "AutoModel") -> str:
    """A program for a model's card that loads it with a class of Transformers."""
    return f"import heat_hf\nfrom transformers import {model_class}\n\nmodel = {model_class}.from_pretrained({quoted(name)})"


def check_columns(rows: Any, columns: Sequence[str], what: str = "the data") -> None:  # noqa: ANN401
    """Raise ValueError if the columns are not three names, or rows lack one.

    Args:
        rows: see `heat_hf.encoders.rows.as_rows`.
        columns: first text, second text ("" for none) and reference, "" for none.
        what: the rows are, for the message.
    """
    from heat_hf.encoders.rows import column_names, require_rows
    from heat_hf.encoders.values import shown

    if not isinstance(columns, (list, tuple)) or len(columns) != 3 or not all(isinstance(name, str) for name in columns):
        raise ValueError(f"columns must name first text, second text (may be empty) and reference, got {shown(columns)}")
    require_rows(rows, what)
    present = column_names(rows, what)
    missing = [name for name in columns if name and name not in present]
    if missing:
        raise ValueError(f"{what} has no column {missing[0]!r}; it has {', '.join(present) or 'texts without columns'}")


def check_texts(values: Sequence[Any], column: str, words: bool) -> None:
    """Raise ValueError if a value of a text column is no text, or no list of words.

    Args:
        values: of the column.
        column: its name.
        words: whether texts are lists of words.
    """
    from heat_hf.encoders.values import shown

    for row, value in enumerate(values):
        split = isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(word, str) for word in value)
        if not (split if words else isinstance(value, str)):
            what = "a list of words" if words else "a text"
            raise ValueError(f"column {column!r} must have {what} in every row, got {shown(value)} in row {row}")
