"""Extractive question answering: long contexts as overlapping windows, and the best span over all windows of a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from heat_hf.evaluation.forward import batches_by_length, evaluating

MAX_LENGTH, STRIDE = 384, 128
BEST, LONGEST = 20, 30  # starts and ends looked at, tokens of an answer


def encode_questions(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[dict[str, Any]] | None = None,
    max_length: int = MAX_LENGTH,
    stride: int = STRIDE,
) -> list[dict[str, Any]]:
    """Windows of tokens, those of a question one after the other.

    Args:
        tokenizer: the model's, a fast one.
        questions: one for each row.
        contexts: likewise.
        answers: `{"text": […], "answer_start": […]}` of each row; windows then have `start_positions` and `end_positions` of
            the first answer, or the position of the first token where it is not in the window.
        max_length: tokens of a window.
        stride: tokens that neighbouring windows share.

    Returns:
        Model inputs, `row`, and `offsets`: first and last character in the context of its tokens, None for other tokens.

    Raises:
        ValueError: if the tokenizer is slow, or the lengths cannot work.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"question answering needs a fast tokenizer, got {type(tokenizer).__name__}")
    if not 0 <= stride < max_length:
        raise ValueError(f"stride must be at least 0 and below max_length={max_length}, got {stride}")
    encoded = tokenizer(
        [question.strip() for question in questions],
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in tokenizer.model_input_names if name in encoded]
    windows = []
    for number, row in enumerate(encoded["overflow_to_sample_mapping"]):
        characters = zip(encoded["offset_mapping"][number], encoded.sequence_ids(number), strict=True)
        offsets = [span if side == 1 else None for span, side in characters]
        window: dict[str, Any] = {name: encoded[name][number] for name in names} | {"row": row, "offsets": offsets}
        if answers is not None:
            window["start_positions"], window["end_positions"] = _span(offsets, answers[row])
        windows.append(window)
    return windows


def model_inputs(window: Mapping[str, Any]) -> dict[str, Any]:
    """What the model takes of a window."""
    return {name: value for name, value in window.items() if name not in ("row", "offsets")}


def _span(offsets: Sequence[tuple[int, int] | None], answer: dict[str, Any]) -> tuple[int, int]:
    """First and last token of the answer; the first token of all if it is not completely there."""
    start = int(answer["answer_start"][0])
    end = start + len(answer["text"][0])
    inside = [token for token, span in enumerate(offsets) if span is not None and span[1] > start and span[0] < end]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:  # type: ignore[index]
        return 0, 0
    return inside[0], inside[-1]


def predict_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    contexts: Sequence[str] | None,
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
    stride: int = STRIDE,
) -> list[str]:
    """The most likely span of every question's context.

    Raises:
        ValueError: if there are no contexts.
    """
    if contexts is None:
        raise ValueError("question answering needs a second text column: the contexts")
    windows = encode_questions(tokenizer, questions, contexts, None, max_length, stride)
    best = [(-np.inf, "")] * len(questions)
    lengths = [len(window["input_ids"]) for window in windows]
    with evaluating(model):
        for numbers in batches_by_length(lengths, batch_size, "Answering"):
            batch = [windows[number] for number in numbers]
            inputs = tokenizer.pad(list(map(model_inputs, batch)), return_tensors="pt")
            outputs = model(**inputs.to(model.device))
            begins, ends = (logits.float().cpu().numpy() for logits in (outputs.start_logits, outputs.end_logits))
            for window, begin, end in zip(batch, begins, ends, strict=True):
                row = window["row"]
                candidate = _best_span(window["offsets"], begin, end, contexts[row])
                best[row] = max(best[row], candidate, key=lambda scored: scored[0])
    return [text for _, text in best]


def _best_span(
    offsets: Sequence[tuple[int, int] | None], begins: np.ndarray, ends: np.ndarray, context: str
) -> tuple[float, str]:
    """Score and text of the best pair of likely starts and ends inside the context."""
    inside = np.array([token for token, span in enumerate(offsets) if span is not None])
    if not len(inside):
        return -np.inf, ""
    starts, stops = (inside[np.argsort(-values[inside], kind="stable")[:BEST]] for values in (begins, ends))
    scores = begins[starts][:, None] + ends[stops][None, :]
    length = stops[None, :] - starts[:, None]
    scores = np.where((length >= 0) & (length < LONGEST), scores, -np.inf)
    if not np.isfinite(scores).any():
        return -np.inf, ""
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    begin, end = offsets[starts[first]], offsets[stops[last]]
    assert begin is not None and end is not None
    return float(scores[first, last]), context[begin[0] : end[1]]
