"""Tasks: for each, the head a model has, the columns of its data, how it is scored, trained, and described on a card."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from heat_hf.evaluation.tasks.base import Task, check_columns, check_texts, loading
from heat_hf.evaluation.tasks.question_answering import QuestionAnswering
from heat_hf.evaluation.tasks.sentence_similarity import SentenceSimilarity
from heat_hf.evaluation.tasks.text_classification import TextClassification
from heat_hf.evaluation.tasks.token_classification import TokenClassification

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from heat_hf.encoders.checkpoints.sentence_encoder import SentenceEncoder

__all__ = ["TASKS", "Task", "as_served", "evaluate_task", "find_task", "task_of", "usage"]

TASKS: dict[str, Task] = {
    task.name: task for task in (SentenceSimilarity(), TextClassification(), QuestionAnswering(), TokenClassification())
}


def find_task(name: str) -> Task:
    """The task of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known are {', '.join(TASKS)}")
    return TASKS[name]


def task_of(model: Any, sentence_encoder: bool = False) -> str:  # noqa: ANN401
    """What a model is for, as the Hub names tasks, by its head; of several with the same head, the first in `TASKS`.

    Args:
        model: of Transformers.
        sentence_encoder: whether its checkpoint is one of sentence-transformers.
    """
    with_head = (task.name for task in TASKS.values() if task.head and type(model).__name__.endswith(task.head))
    return next(with_head, SentenceSimilarity.name if sentence_encoder else "feature-extraction")


def as_served(
    model: Any,  # noqa: ANN401
    tokenizer: PreTrainedTokenizerBase | None,
    rows: Any,  # noqa: ANN401
    name: str,
    encoder: SentenceEncoder | None = None,
) -> tuple[Any, Any]:
    """Tokenizer and rows as a headless model's checkpoint serves them: lower case where it says so, and with its prompt.

    Args:
        model: of Transformers; with a head, tokenizer and rows are as they were.
        tokenizer: the checkpoint's.
        rows: to calibrate, train or score on, see `as_rows`.
        name: of the rows, for messages.
        encoder: what its checkpoint has beside the Transformer; default: what is where the model was loaded from.

    Raises:
        ValueError: if the rows have none of the known forms, or embeddings are made in a way that is not known.
    """
    if task_of(model) != "feature-extraction":
        return tokenizer, rows
    from heat_hf.encoders.rows import as_rows
    from heat_hf.encoders.served import serve, served_by

    served = served_by(model) if encoder is None else serve(model, encoder)
    words = tokenizer and served.tokenizer(tokenizer, model.config)
    return words, served.prompted(as_rows(rows, name)) if served.prompt else rows


def usage(name: str, task: str) -> str:
    """A program for a model's card that loads the model; for a task that is not in `TASKS`, without a head."""
    return TASKS[task].usage(name) if task in TASKS else loading(name)


def evaluate_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    rows: Any,  # noqa: ANN401
    columns: Sequence[str] | None = None,
) -> dict[str, float]:
    """Score a model on labelled rows.

    Args:
        model: a headless encoder for "sentence-similarity", else with the task's head.
        tokenizer: the model's tokenizer.
        task: a key of `TASKS`.
        rows: a `datasets.Dataset`, a mapping from column names to lists, or whatever else `as_rows` takes.
        columns: first text, second text ("" for none) and reference column; default: the task's.

    Returns:
        Metric name → value, and "rows".

    Raises:
        ValueError: for an unknown task, a missing column, empty data, a row without text or reference, or a score that is not
            a number.
    """
    from heat_hf.encoders.rows import as_rows, columns_of
    from heat_hf.evaluation.metrics import load_metric

    chosen = find_task(task)
    columns = chosen.columns if columns is None else columns
    rows = as_rows(rows, "the data")
    check_columns(rows, columns)
    if not columns[0] or not columns[2]:
        raise ValueError(f"columns must name a first text and a reference, got {list(columns)}")
    given = dict(zip(filter(None, columns), columns_of(rows, list(filter(None, columns)), "the data"), strict=True))
    first, second, references = (given.get(name) for name in columns)
    assert first is not None
    assert references is not None
    for name in filter(None, columns[:2]):
        check_texts(given[name], name, chosen.words)
    with _named(columns[2]):
        references = chosen.references(model, references)
    predictions = chosen.predict(model, tokenizer, first, second)
    scores: dict[str, float] = {}
    for metric in chosen.metrics:
        with _named(columns[2]):
            scores.update(load_metric(metric).compute(predictions=predictions, references=references))
    for name, score in scores.items():
        if not math.isfinite(score):
            raise ValueError(f"{name} of these {len(first)} rows is not a number: all answers or references are the same")
    return {**scores, "rows": len(first)}


@contextmanager
def _named(column: str) -> Iterator[None]:
    """Errors about values of the reference column name it, in one line."""
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        reason = " ".join(f"{kind}{error}".split())
        raise ValueError(f"the references in column {column!r} are not what the task takes: {reason:.200}") from error
