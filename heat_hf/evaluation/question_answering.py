"""Extractive question answering: long contexts as overlapping windows, and the best span over all windows of a question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        Model inputs, `row`, and `offsets`: places in the context of its tokens, None for others.

    Raises:
        ValueError: if the tokenizer is slow, or the lengths cannot work.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"question answering needs a fast tokenizer, got {type(tokenizer).__name__}")
    if not 0 <= stride < max_length:
        raise ValueError(f"stride must be at least 0 and below max_length={max_length}, got {stride}")
    found = tokenizer(
        [question.strip() for question in questions],
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows = []
    for place, row in enumerate(found["overflow_to_sample_mapping"]):
        offsets = [
            own if side == 1 else None
            for own, side in zip(found["offset_mapping"][place], found.sequence_ids(place), strict=True)
        ]
        names = [name for name in tokenizer.model_input_names if name in found]
        window: dict[str, Any] = {name: found[name][place] for name in names} | {"row": row, "offsets": offsets}
        if answers is not None:
            window["start_positions"], window["end_positions"] = _span(offsets, answers[row])
        windows.append(window)
    return windows


def _span(offsets: Sequence[tuple[int, int] | None], answer: dict[str, Any]) -> tuple[int, int]:
    """First and last token of the answer; the first token of all if it is not completely there."""
    start = int(answer["answer_start"][0])
    end = start + len(answer["text"][0])
    inside = [place for place, own in enumerate(offsets) if own is not None and own[1] > start and own[0] < end]
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
    order = sorted(range(len(windows)), key=lambda place: len(windows[place]["input_ids"]))
    training = model.training
    model.eval()
    try:
        for start in tqdm(range(0, len(order), batch_size), desc="Answering", unit="batch"):
            own = [windows[place] for place in order[start : start + batch_size]]
            plain = [{key: value for key, value in window.items() if key not in ("row", "offsets")} for window in own]
            with torch.inference_mode():
                outputs = model(**tokenizer.pad(plain, return_tensors="pt").to(model.device))
            for window, begins, ends in zip(own, *_numpy(outputs), strict=True):
                score, text = _best_span(window["offsets"], begins, ends, contexts[window["row"]])
                best[window["row"]] = max(best[window["row"]], (score, text), key=lambda pair: pair[0])
    finally:
        model.train(training)
    return [text for _, text in best]


def _numpy(outputs: Any) -> tuple[Any, Any]:  # noqa: ANN401
    return outputs.start_logits.float().cpu().numpy(), outputs.end_logits.float().cpu().numpy()


def _best_span(
    offsets: Sequence[tuple[int, int] | None], begins: np.ndarray, ends: np.ndarray, context: str
) -> tuple[float, str]:
    """Score and text of the best pair of likely starts and ends inside the context."""
    inside = np.array([place for place, own in enumerate(offsets) if own is not None])
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
