"""Second moments of linear layers on calibration data: C of their inputs, and G of the model's gradients at their outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from heat_hf.encoders.signals import output_signals, random_probe

Batch = Mapping[str, Tensor]
GRADIENT_ROWS = 1024  # a backward pass costs as much as two forward passes, and G needs fewer rows than C
TEXT_COLUMNS = ("text", "sentence", "sentence1", "sentence2", "question", "context", "premise", "hypothesis")


def calibration_batches(
    dataset: Any,  # noqa: ANN401
    tokenizer: PreTrainedTokenizerBase | None,
    batch_size: int = 32,
    max_length: int = 128,
) -> list[Batch]:
    """Bring calibration data to batches of model inputs, sorted by length so that little is padded.

    Args:
        dataset: sentences; or rows (for example a `datasets.Dataset`) with text columns or with `input_ids`; or batches of
            tensors (for example a `DataLoader`), which are taken as they are.
        tokenizer: needed for everything but batches of tensors.
        batch_size: rows in a batch.
        max_length: tokens after which a row is cut.

    Raises:
        ValueError: if the data is empty, has none of these forms, or needs a tokenizer that is not there.
    """
    rows = list(dataset)
    if not rows:
        raise ValueError("calibration_dataset is empty")
    if all(
        isinstance(row, Mapping) and isinstance(row.get("input_ids"), Tensor) and row["input_ids"].dim() == 2 for row in rows
    ):
        return [{key: value for key, value in row.items() if isinstance(value, Tensor)} for row in rows]
    if tokenizer is None:
        raise ValueError("calibration_dataset needs a tokenizer, and the checkpoint has none: pass batches of tensors")
    if all(isinstance(row, Mapping) and "input_ids" in row for row in rows):
        return pad_batches(encode_rows(rows, tokenizer, max_length), tokenizer, batch_size)
    texts = [text for row in rows for text in _texts(row)]
    return pad_batches(encode_rows(texts, tokenizer, max_length), tokenizer, batch_size)


def encode_rows(dataset: Any, tokenizer: PreTrainedTokenizerBase, max_length: int = 128) -> list[dict[str, Any]]:  # noqa: ANN401
    """Tokenize rows, each as one input: a sentence, the one or two text columns of a row, or its `input_ids`.

    Args:
        dataset: sentences or rows; a whole number in a column `label` or `labels` is kept as `labels`.
        tokenizer: the model's.
        max_length: tokens after which a row is cut.

    Raises:
        ValueError: if there are no rows, or one has neither text nor `input_ids`.
    """
    rows = list(dataset)
    if not rows:
        raise ValueError("the dataset is empty")
    encoded = []
    for row in rows:
        if isinstance(row, Mapping) and "input_ids" in row:
            own: dict[str, Any] = {"input_ids": [int(i) for i in row["input_ids"]][:max_length]}
        else:
            own = {"input_ids": tokenizer(*_texts(row)[:2], truncation=True, max_length=max_length)["input_ids"]}
        label = next((row[name] for name in ("label", "labels") if isinstance(row, Mapping) and name in row), None)
        encoded.append(own if not isinstance(label, int) else {**own, "labels": label})
    return encoded


def pad_batches(encoded: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, batch_size: int = 32) -> list[Batch]:
    """Encoded rows as batches of tensors, sorted by length so that little is padded."""
    ordered = sorted(encoded, key=lambda row: len(row["input_ids"]))
    return [dict(tokenizer.pad(ordered[i : i + batch_size], return_tensors="pt")) for i in range(0, len(ordered), batch_size)]


def _texts(row: Any) -> list[str]:  # noqa: ANN401
    if isinstance(row, str):
        return [row]
    texts = [row[name] for name in TEXT_COLUMNS if name in row] if isinstance(row, Mapping) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"calibration_dataset must hold strings, rows with a column of {', '.join(TEXT_COLUMNS)} or input_ids, "
            f"or batches of tensors; got {row!r:.200}"
        )
    return texts


class _Collector:
    """Adds up xᵀx over the rows of every layer's inputs; layers fed the same tensor share one sum."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.leader: dict[str, str] = {}
        self.mask: Tensor | None = None
        self.fed: dict[int, tuple[Tensor, str]] = {}  # keeps the tensors alive, so that their ids stay theirs

    def hook(self, name: str) -> Any:  # noqa: ANN401
        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            if name not in self.leader:
                self.leader[name] = self.fed.setdefault(id(x), (x, name))[1]
            if self.leader[name] == name:
                self._add(name, x)

        return add

    def _add(self, name: str, x: Tensor) -> None:
        if self.mask is not None and x.shape[:-1] == self.mask.shape:
            x = x[self.mask]
        flat = x.reshape(-1, x.shape[-1]).float()
        product = (flat.T @ flat).double()
        self.sums[name] = self.sums[name].add_(product) if name in self.sums else product
        self.rows[name] = self.rows.get(name, 0) + len(flat)

    def moments(self) -> dict[str, Tensor]:
        unused = [name for name in self.modules if name not in self.leader]
        if unused:
            raise ValueError(f"the calibration data never reaches {unused[0]!r} ({len(unused)} such layers)")
        means = {name: total / self.rows[name] for name, total in self.sums.items()}
        return {name: means[self.leader[name]] for name in self.modules}


def collect_second_moments(
    model: PreTrainedModel, modules: Mapping[str, nn.Module], batches: Sequence[Batch] | Iterable[Batch]
) -> dict[str, Tensor]:
    """Second moments of the inputs of `modules` over all tokens of the batches that are not padding.

    Args:
        model: runs the batches, in evaluation mode.
        modules: layers of the model, by name.
        batches: model inputs; an `attention_mask` marks padding.

    Returns:
        C = E[xxᵀ], float64, N×N, for every name; layers with the same input share one tensor.

    Raises:
        ValueError: if a layer is never reached, or a moment is not finite.
    """
    collector = _Collector(modules)
    training, device = model.training, model.device
    model.eval()
    with ExitStack() as stack, torch.no_grad():
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(collector.hook(name)).remove)
        stack.callback(model.train, training)
        for batch in tqdm(batches, desc="Calibrating", unit="batch"):
            inputs = model_inputs(batch, device)
            collector.mask = _padding_mask(inputs)
            model(**inputs)
            collector.fed.clear()
    moments = collector.moments()
    for name, moment in moments.items():
        if not torch.isfinite(moment).all():
            raise ValueError(f"the calibration inputs of {name!r} are not finite")
    return moments


def model_inputs(batch: Batch, device: torch.device | str) -> dict[str, Tensor]:
    """A batch on a device, without labels."""
    return {key: value.to(device) for key, value in batch.items() if key != "labels"}


def data_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """Digest of batches of tensors, or of encoded rows: results that depend on data are refused for other data."""
    digest = hashlib.sha256()
    for row in rows:
        for key in sorted(row):
            value = row[key].tolist() if isinstance(row[key], Tensor) else row[key]
            digest.update(f"{key}{value}".encode())
    return digest.hexdigest()[:16]


def _padding_mask(inputs: Mapping[str, Tensor]) -> Tensor | None:
    mask = inputs.get("attention_mask")
    return mask.bool() if mask is not None and mask.dim() == 2 else None


def collect_output_moments(
    model: PreTrainedModel, modules: Mapping[str, nn.Module], batches: Sequence[Batch], seed: int = 0
) -> dict[str, Tensor]:
    """Second moments of the gradients of the model's outputs at the outputs of `modules`: what the outputs mind.

    With g the gradient at one token of the square root of the divergence (`heat_hf.encoders.signals`), G = E Σ_tokens g gᵀ over
    sequences. If a layer's weight is off by Δ, the model's outputs diverge by ½ tr(G Δ C Δᵀ) on average, to second order
    and with inputs and gradients taken as independent. No labels are used.

    Args:
        model: a dense model; run in evaluation mode.
        modules: layers of the model, by name.
        batches: model inputs; about `GRADIENT_ROWS` sequences of them, evenly spread, are used.
        seed: of the random directions in output space.

    Returns:
        G, float64, M×M, for every name.

    Raises:
        ValueError: if a layer is never reached, or a moment is not finite.
    """
    batches = _spread(list(batches), GRADIENT_ROWS)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    training, device = model.training, model.device
    model.eval()
    outputs: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Any:  # noqa: ANN401
        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            # Where parameters are frozen, nothing before this has a graph; it starts here.
            outputs.append((name, output if output.requires_grad else output.requires_grad_()))

        return hook

    with ExitStack() as stack, torch.enable_grad():
        stack.callback(model.train, training)
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(keep(name)).remove)
        for batch in tqdm(batches, desc="Calibrating gradients", unit="batch"):
            inputs = model_inputs(batch, device)
            mask = _padding_mask(inputs)
            probe = random_probe(output_signals(model(**inputs), inputs, model.config), generator)
            reached = [output for _, output in outputs]
            gradients = torch.autograd.grad(probe, reached, allow_unused=True) if reached else ()
            for (name, _), gradient in zip(outputs, gradients, strict=True):
                if gradient is None:  # a layer that the outputs do not depend on
                    continue  # type: ignore[unreachable]
                rows = gradient[mask] if mask is not None and gradient.shape[:-1] == mask.shape else gradient
                flat = rows.reshape(-1, rows.shape[-1]).float()
                sums[name] = sums.get(name, 0) + (flat.T @ flat).double()
            outputs.clear()
    lost = [name for name in modules if name not in sums or not torch.isfinite(sums[name]).all()]
    if lost:
        raise ValueError(f"the model's outputs have no finite gradient at {lost[0]!r} ({len(lost)} such layers)")
    sequences = sum(len(next(iter(batch.values()))) for batch in batches)
    return {name: sums[name] / sequences for name in modules}


def _spread(batches: list[Batch], rows: int) -> list[Batch]:
    """Batches with about so many rows together, evenly spread: they are often sorted by length."""
    total = sum(len(next(iter(batch.values()))) for batch in batches)
    count = max(1, round(len(batches) * min(1.0, rows / max(1, total))))
    return [batches[(2 * i + 1) * len(batches) // (2 * count)] for i in range(count)]
