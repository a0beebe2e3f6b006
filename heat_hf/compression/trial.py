"""Whether a model runs with factorized layers in the place of its linears: some code reads a linear's weight itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heat_hf.encoders.batches import Batch, model_inputs
from heat_hf.encoders.linears import swap_modules
from heat_hf.formats import LowRank, StrassenTile, TensorShape
from heat_hf.formats.decomposition import require_finite
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.strassen_tile import tiled

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require_parameters(model: PreTrainedModel) -> None:
    """Make sure that all of a model's parameters are in memory, and finite.

    Raises:
        ValueError: naming one that is not.
    """
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        if parameter.is_meta:
            raise ValueError(f"the {kind} of {module} is not in memory: load the model without offloading")
        require_finite(f"the {kind} of {module}", parameter)


def require_runs(model: PreTrainedModel, linears: Mapping[str, nn.Linear], batch: Batch | None = None, tile: int = 0) -> None:
    """Run one forward pass with factorized layers of rank 1 in the place of linears; the model is not changed.

    Args:
        model: a dense model.
        linears: what is to be factorized, by name.
        batch: model inputs, of which two rows are run; default: Transformers' dummy inputs. Where the dense model does not run
            with these, nothing is found out.
        tile: t, if the layers are to take tiles of tokens; 0 else.

    Raises:
        ValueError: naming the layer that the model uses for more than its output.
    """
    inputs = _inputs(model, batch)
    training = model.training
    model.eval()
    try:
        if not _runs(model, inputs):
            return
        layers = {name: _stand_in(linear, tile) for name, linear in linears.items()}
        try:
            swap_modules(model, {linear: layers[name] for name, linear in linears.items()})
            with torch.no_grad():
                model(**inputs)
        except Exception as error:
            raise ValueError(_reason(type(model).__name__, layers, error)) from error
        finally:
            swap_modules(model, {layers[name]: linear for name, linear in linears.items()})
    finally:
        model.train(training)


def _inputs(model: PreTrainedModel, batch: Batch | None) -> dict[str, Tensor]:
    given: dict[str, Any] = dict(model.dummy_inputs) if batch is None else {key: value[:2] for key, value in batch.items()}
    if "input_ids" in given and "attention_mask" not in given:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    return model_inputs(given, model.device)


def _runs(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> bool:
    try:
        with torch.no_grad():
            model(**inputs)
    except Exception:  # whatever it is: these inputs are not for this model
        return False
    return True


def _stand_in(linear: nn.Linear, tile: int) -> FactorizedLinear:
    """A factorized layer of the same size, with cores of zeros."""
    size = linear.out_features, linear.in_features
    codec, shape = (StrassenTile, tiled(*size, tile)) if tile else (LowRank, TensorShape.matrix(*size))
    setting = TensorSetting(codec.name, shape, (1,))
    layer = FactorizedLinear(setting, linear.bias is not None, device=linear.weight.device, dtype=linear.weight.dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    return layer.eval()


def _reason(model: str, layers: Mapping[str, FactorizedLinear], error: Exception) -> str:
    reader = getattr(error, "obj", None)
    name = next((name for name, layer in layers.items() if layer is reader), None)
    if name is None:
        return f"{model} does not run with factorized layers: {' '.join(str(error).split())}"
    kind = re.escape(name.rpartition(".")[2]) + "$"
    return (
        f"{model} cannot run with {name} factorized, it reads the layer's {getattr(error, 'name', 'weight')} itself: "
        f"leave such layers dense with exclude=[{kind!r}]"
    )
