"""Quality and latency of a model, dense or compressed, on local data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from heat_hf.evaluation.question_answering import predict_answers


def sentence_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    batch_size: int = 64,
    max_length: int = 256,
) -> Tensor:
    """Mean-pooled, normalized token embeddings of a headless encoder, as all-MiniLM-L6-v2 defines them.

    Returns:
        float32 of extents (sentences, hidden size), on the CPU.
    """
    pooled: list[Tensor] = [torch.empty(0)] * len(sentences)
    for batch, output in _forward(model, tokenizer, sentences, None, batch_size, max_length):
        mask = batch.inputs["attention_mask"].to(output[0].device)[..., None]
        mean = (output[0] * mask).sum(1) / mask.sum(1).clamp_min(1)
        for row, vector in zip(batch.rows, torch.nn.functional.normalize(mean.float().cpu(), dim=1), strict=True):
            pooled[row] = vector
    return torch.stack(pooled)


def sentence_similarity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, first: Sequence[str], second: Sequence[str]
) -> list[float]:
    """Cosine similarity of each pair of sentences."""
    vectors = sentence_embeddings(model, tokenizer, [*first, *second])
    return (vectors[: len(first)] * vectors[len(first) :]).sum(1).tolist()


def predicted_labels(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    first: Sequence[str],
    second: Sequence[str] | None = None,
    batch_size: int = 64,
    max_length: int = 256,
) -> list[int]:
    """Class with the largest logit for each sentence, or pair of sentences."""
    labels = [0] * len(first)
    for batch, output in _forward(model, tokenizer, first, second, batch_size, max_length):
        for row, label in zip(batch.rows, output.logits.argmax(-1).tolist(), strict=True):
            labels[row] = label
    return labels


def predicted_tags(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    first: Sequence[Sequence[str]],
    second: Sequence[str] | None = None,
    batch_size: int = 64,
    max_length: int = 256,
) -> list[list[str]]:
    """Name of the class with the largest logit for each word, that of its first token; words cut off get class 0.

    Raises:
        ValueError: if there is a second text.
    """
    if second is not None:
        raise ValueError("token classification takes one column of words, and no second text")
    names = _label_names(model)
    tags = [[names[0]] * len(words) for words in first]
    for batch, output in _forward(model, tokenizer, first, None, batch_size, max_length, words=True):
        for place, (row, classes) in enumerate(zip(batch.rows, output.logits.argmax(-1).tolist(), strict=True)):
            for word, own in reversed(list(zip(batch.inputs.word_ids(place), classes, strict=True))):
                if word is not None:
                    tags[row][word] = names[own]
    return tags


def _label_names(model: PreTrainedModel) -> list[str]:
    config: Any = model.config
    return [config.id2label[number] for number in range(config.num_labels)]


def _tag_names(model: PreTrainedModel, rows: Sequence[Sequence[int | str]]) -> list[list[str]]:
    names = _label_names(model)
    return [[own if isinstance(own, str) else names[own] for own in row] for row in rows]


@dataclass(frozen=True)
class _Batch:
    rows: list[int]
    inputs: Any


def _forward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    first: Sequence[Any],
    second: Sequence[str] | None,
    batch_size: int,
    max_length: int,
    words: bool = False,
) -> Any:  # noqa: ANN401
    """Run the model over rows in order of length, so that little is padded."""
    order = sorted(range(len(first)), key=lambda row: len(first[row]) + (len(second[row]) if second else 0))
    training = model.training
    model.eval()
    try:
        for start in tqdm(range(0, len(order), batch_size), desc="Evaluating", unit="batch"):
            rows = order[start : start + batch_size]
            pairs = [[first[row] for row in rows], *([[second[row] for row in rows]] if second else [])]
            inputs = tokenizer(
                *pairs, padding=True, truncation=True, max_length=max_length, return_tensors="pt", is_split_into_words=words
            )
            with torch.inference_mode():
                yield _Batch(rows, inputs), model(**inputs.to(model.device))
    finally:
        model.train(training)


@dataclass(frozen=True)
class Task:
    """An evaluation task: which columns it reads, what the model says, and how that is scored.

    Attributes:
        model_class: name of the Transformers class to load.
        columns: default column names: first text, second text ("" for none), reference.
        predict: model, tokenizer, first texts, second texts or None → predictions.
        metrics: names in `heat_hf.evaluation.metrics`.
        references: model, reference column → references as the metrics take them; default: as they are.
        main: the score that decides.
    """

    model_class: str
    columns: tuple[str, str, str]
    predict: Callable[..., list[Any]]
    metrics: tuple[str, ...]
    main: str
    references: Callable[[PreTrainedModel, Any], Any] = lambda _, references: references


TASKS = {
    "sentence-similarity": Task(
        "AutoModel", ("sentence1", "sentence2", "score"), sentence_similarity, ("spearman",), "spearman"
    ),
    "text-classification": Task(
        "AutoModelForSequenceClassification",
        ("sentence", "", "label"),
        predicted_labels,
        ("accuracy", "matthews", "f1"),
        "accuracy",
    ),
    "question-answering": Task(
        "AutoModelForQuestionAnswering", ("question", "context", "answers"), predict_answers, ("squad",), "f1"
    ),
    "token-classification": Task(
        "AutoModelForTokenClassification", ("tokens", "", "ner_tags"), predicted_tags, ("entities",), "f1", _tag_names
    ),
}


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
        rows: a `datasets.Dataset`, or a mapping from column names to lists.
        columns: first text, second text ("" for none) and reference column; default: the task's.

    Returns:
        Metric name → value, and "rows".

    Raises:
        ValueError: for an unknown task, a missing column, or empty data.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known are {', '.join(TASKS)}")
    spec = TASKS[task]
    names = spec.columns if columns is None else columns
    if len(names) != 3:
        raise ValueError(f"columns must name first text, second text (may be empty) and reference, got {list(names)!r}")
    present = getattr(rows, "column_names", None) or list(rows)
    missing = [name for name in names if name and name not in present]
    if missing:
        raise ValueError(f"the data has no column {missing[0]!r}; it has {', '.join(present)}")
    first, second, references = (list(rows[name]) if name else None for name in names)
    if not first or references is None:
        raise ValueError("the data has no rows, or no reference column was named")
    predictions = spec.predict(model, tokenizer, first, second)
    from heat_hf.evaluation.metrics import load_metric

    references = spec.references(model, references)
    scores: dict[str, float] = {}
    for metric in spec.metrics:
        scores.update(load_metric(metric).compute(predictions=predictions, references=references))
    return {**scores, "rows": len(first)}


@dataclass(frozen=True)
class Latency:
    """Seconds of one forward pass over repeated runs: median, and lower and upper quartile."""

    median: float
    lower: float
    upper: float


def race(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time calls side by side: one of each in turn, so that all see the same disturbances.

    Args:
        contestants: calls by name; each returns when its work is done.
        repeats: of each that count; two more warm up.

    Returns:
        Seconds of every repetition, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats + 2):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: values[2:] for name, values in times.items()}


def measure_latency(
    models: Mapping[str, PreTrainedModel], batch_size: int = 8, sequence_length: int = 128, repeats: int = 20
) -> dict[str, Latency]:
    """Time a forward pass of models side by side, see `race`.

    Args:
        models: models by name, with the same vocabulary.
        batch_size: rows of the random token ids.
        sequence_length: tokens in a row.
        repeats: passes of each model that count; two more warm up.
    """
    vocabulary = min(model.config.vocab_size for model in models.values())
    ids = torch.randint(vocabulary, (batch_size, sequence_length), generator=torch.Generator().manual_seed(0))

    def forward(model: PreTrainedModel) -> None:
        inputs = ids.to(model.device)
        model(input_ids=inputs)
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)

    with torch.inference_mode():
        times = race({name: partial(forward, model) for name, model in models.items()}, repeats)
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in times.items()}
    return {name: Latency(median, lower, upper) for name, (lower, median, upper) in quartiles.items()}
