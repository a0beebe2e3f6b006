"""How far a compressed model is from the dense one: what the search expects, and what calibration rows say in the end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from heat_hf.compression.config import HeatConfig
from heat_hf.compression.refined_rows import held_out
from heat_hf.encoders.batches import Batch, model_inputs, sequences
from heat_hf.encoders.linears import swap_modules
from heat_hf.encoders.moments import padding_mask
from heat_hf.evaluation.quality import Quality
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.tiles import masked
from heat_hf.reports.compression import CompressionReport
from heat_hf.reports.fidelity import Fidelity
from heat_hf.search.ranks.methods import Solution
from heat_hf.search.ranks.variants import Variant

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WITHIN = 1.5  # by which factor it may differ on other rows, either way: a classifier's outputs move a lot on few of them


def with_output_errors(
    report: CompressionReport,
    model: PreTrainedModel,
    linears: Mapping[str, nn.Linear],
    layers: Mapping[str, FactorizedLinear],
    batches: Sequence[Batch] | None,
) -> CompressionReport:
    """A report with errors of outputs as they are measured, where tokens depend on each other and no formula gives them.

    Args:
        report: without them.
        model: with its linears, or some of the layers, in their places; afterwards with the linears, if anything is measured.
        linears: by name.
        layers: that take their place, by the same names.
        batches: model inputs; None if there are none.
    """
    if not batches or all(layer.setting.codec.tokenwise for layer in layers.values()):
        return report
    swap_modules(model, {layer: linears[name] for name, layer in layers.items()})
    errors = _output_errors(model, linears, layers, batches)
    tensors = (dataclasses.replace(tensor, output_error=errors.get(tensor.name)) for tensor in report.tensors)
    return dataclasses.replace(report, tensors=tuple(tensors))


def _output_errors(
    model: PreTrainedModel, linears: Mapping[str, nn.Linear], layers: Mapping[str, FactorizedLinear], batches: Sequence[Batch]
) -> dict[str, float]:
    """‖Y − Y′‖_F / ‖Y‖_F of layers on the inputs that their linears get in the dense model, padding left out."""
    sums = {name: [0.0, 0.0] for name in layers}
    mask: Tensor | None = None

    def compare(name: str) -> Any:  # noqa: ANN401
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            apart = layers[name](args[0]) - output
            for place, value in enumerate((apart, output)):
                sums[name][place] += float((value if mask is None else value[mask]).double().square().sum())

        return hook

    with ExitStack() as stack, torch.no_grad():
        stack.callback(model.train, model.training)
        model.eval()
        for name in layers:
            stack.callback(linears[name].register_forward_hook(compare(name)).remove)
        for batch in tqdm(batches, desc="Measuring", unit="batch"):
            given = model_inputs(batch, model.device)
            mask = padding_mask(given)
            with masked(mask):
                model(**given)
    return {name: math.sqrt(lost / whole) for name, (lost, whole) in sums.items() if whole}


def answers(model: PreTrainedModel, batches: Sequence[Batch] | None, config: HeatConfig) -> Quality | None:
    """What the dense model answers to the calibration rows that refinement does not learn from; without one, to all.

    None without such rows, or where no gradients are used: outputs need not be of a known kind then.
    """
    if not batches or not config.uses_gradients:
        return None
    return Quality(model, [batches[number] for number in held_out(len(batches))] if config.refine_steps else batches)


def expected(chosen: Variant | Solution) -> Fidelity | None:
    """What a search expects of a projected model, with bounds; None where it expects nothing."""
    divergence = None if isinstance(chosen, Solution) else chosen.expected_divergence
    return None if divergence is None else Fidelity(divergence, divergence / WITHIN, divergence * WITHIN)


def measured(model: PreTrainedModel, dense: Quality | None, before: Fidelity | None) -> Fidelity | None:
    """The same with what a finished model is measured at, beside the dense model's answers."""
    if dense is None:
        return before
    apart = dense.both(model)[1]
    return dataclasses.replace(before or Fidelity(), measured=apart, rows=sum(map(sequences, dense.batches)))
