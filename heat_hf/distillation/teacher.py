"""The dense model as a teacher: no gradient, evaluation mode, and its answers kept where there is memory for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

GIB = 2**30
PLAIN = ("logits", "start_logits", "end_logits", "last_hidden_state")  # extents (sequences, classes) or (sequences, tokens, …)
BY_BLOCK = ("hidden_states", "attentions")


class Teacher:
    """Asks the dense model, unless its answers are kept.

    Args:
        model: the dense model; put into evaluation mode.
        cache_gib: memory for kept answers; what does not fit is asked again.
    """

    def __init__(self, model: PreTrainedModel, cache_gib: float = 0.0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.limit = cache_gib * GIB
        self.used = 0
        self.hits = 0
        self.kept: dict[int, dict[str, Tensor]] = {}
        self.kind: Any = None
        self._asked: Any = None

    def prepare(self, attention: bool) -> None:
        """Attention maps need the eager implementation, which is slower."""
        set_attention(self.model, attention)

    def fill(
        self,
        batches: Iterable[tuple[Sequence[int], Mapping[str, Tensor]]],
        *,
        hidden: bool,
        attention: bool,
        rows: Any,  # noqa: ANN401
    ) -> None:
        """Keep answers until the memory is full; those to other questions or on other data go first.

        Args:
            batches: rows' numbers and the model's inputs, padding on the right.
            hidden: whether hidden states are needed.
            attention: whether attention maps are needed.
            rows: what the numbers count, as its digest.
        """
        if self._asked != (asked := (hidden, attention, rows)):
            self.kept.clear()
            self.used, self._asked = 0, asked
        self.prepare(attention)
        for numbers, inputs in batches:
            if self.used >= self.limit:
                break
            if not all(number in self.kept for number in numbers):
                self._keep(self._ask(inputs, hidden, attention), inputs, numbers, _needed(hidden, attention))

    def __call__(
        self, inputs: Mapping[str, Tensor], rows: Sequence[int] | None = None, hidden: bool = False, attention: bool = False
    ) -> Any:  # noqa: ANN401
        """The dense model's outputs.

        Args:
            inputs: of the model; padding on the right, if rows are named.
            rows: numbers of the batch's rows, by which answers are kept; None: ask.
            hidden: whether hidden states are needed.
            attention: whether attention maps are needed.
        """
        needed = _needed(hidden, attention)
        if rows is not None and all(row in self.kept and all(name in self.kept[row] for name in needed) for row in rows):
            self.hits += len(rows)
            return self._recall([self.kept[row] for row in rows], needed)
        return self._ask(inputs, hidden, attention)

    def _ask(self, inputs: Mapping[str, Tensor], hidden: bool, attention: bool) -> Any:  # noqa: ANN401
        with torch.no_grad():
            return self.model(**inputs, output_hidden_states=hidden, output_attentions=attention)

    def _keep(self, outputs: Any, inputs: Mapping[str, Tensor], rows: Sequence[int], needed: Sequence[str]) -> None:  # noqa: ANN401
        """Every row's answers, without padding."""
        self.kind = type(outputs)
        ids = next(iter(inputs.values()))
        mask = inputs.get("attention_mask")
        lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
        whole = {name: outputs[name] for name in PLAIN if outputs.get(name) is not None}
        whole |= {name: torch.stack(tuple(outputs[name]), 1) for name in needed}
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            answer = {name: _cut(name, value[index], int(length), ids.shape[1]) for name, value in whole.items()}
            self.used += _size(answer) - _size(self.kept.get(row, {}))
            self.kept[row] = answer

    def _recall(self, kept: Sequence[Mapping[str, Tensor]], needed: Sequence[str]) -> Any:  # noqa: ANN401
        fields: dict[str, Any] = {}
        for name in kept[0]:
            if name in BY_BLOCK and name not in needed:
                continue
            values = _join(name, [answer[name] for answer in kept])
            fields[name] = tuple(values.unbind(1)) if name in BY_BLOCK else values
        return self.kind(**fields)


def _needed(hidden: bool, attention: bool) -> list[str]:
    return [name for name, asked in zip(BY_BLOCK, (hidden, attention), strict=True) if asked]


def _size(answer: Mapping[str, Tensor]) -> int:
    return sum(value.nbytes for value in answer.values())


def _cut(name: str, value: Tensor, length: int, tokens: int) -> Tensor:
    """One row's answer without padding, in memory of its own."""
    if name == "attentions":
        return value[:, :, :length, :length].clone()
    if name == "hidden_states":
        return value[:, :length].clone()
    by_token = name != "logits" or value.dim() == 2
    return (value[:length] if by_token and len(value) == tokens else value).clone()


def _join(name: str, values: list[Tensor]) -> Tensor:
    """Rows of different lengths as one batch, filled up with zeros."""
    if name == "attentions":
        longest = max(value.shape[-1] for value in values)
        return torch.stack([torch.nn.functional.pad(v, (0, longest - v.shape[-1], 0, longest - v.shape[-1])) for v in values])
    if name == "hidden_states":
        return pad_sequence([value.transpose(0, 1) for value in values], batch_first=True).transpose(1, 2)
    return torch.stack(values) if len({len(value) for value in values}) == 1 else pad_sequence(values, batch_first=True)


def set_attention(model: Any, maps: bool) -> None:  # noqa: ANN401
    """Eager attention where maps are needed, else the scaled dot product, which does not make them."""
    wanted = "eager" if maps else "sdpa"
    if model.config._attn_implementation != wanted:
        model.set_attn_implementation(wanted)
