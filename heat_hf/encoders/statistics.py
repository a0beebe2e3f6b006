"""Second moments of linear layers on calibration data: C of their inputs, and G of the model's gradients at their outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from heat_hf.encoders.batches import Batch, model_inputs
from heat_hf.encoders.signals import output_signals, random_probe

GRADIENT_ROWS = 1024  # a backward pass costs as much as two forward passes, and G needs fewer rows than C


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
