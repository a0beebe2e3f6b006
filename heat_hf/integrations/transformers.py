"""Loading, saving and dequantizing factorized models with plain Transformers.

The quantization method "heat" is registered when heat_hf is imported, so that `AutoModel….from_pretrained` builds factorized
layers where config.json has it. A program that does not import heat_hf must not get random dense weights in their place: the
weights are saved under a name of their own, for which only this quantizer makes Transformers look.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from heat_hf.encoders.checkpoints.names import METHOD
from heat_hf.encoders.config import FactorizedConfig
from heat_hf.encoders.linears import factorized_layers, resolve_names, swap_module
from heat_hf.formats.layer import FactorizedLinear

if TYPE_CHECKING:  # at run time these would load the modeling code, twice what registration needs
    from transformers import PreTrainedConfig, PreTrainedModel

WEIGHTS_NAME = "heat_model.safetensors"
WEIGHTS_INDEX_NAME = "heat_model.safetensors.index.json"
ALIGNMENT = 64  # bytes, as torch allocates
_TRAINER_CHECKPOINT = re.compile(r"checkpoint-\d+")


class HeatQuantizer(HfQuantizer):
    """Builds, and takes down, the factorized layers of a model being loaded."""

    requires_calibration = False
    quantization_config: Any  # a FactorizedConfig of a saved model; a HeatConfig of a dense one that is to be factorized

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Point Transformers to the weights file (this hook is the last to see the config before files are looked up)."""
        if self.pre_quantized and self.quantization_config.weights_file:
            config.transformers_weights = self.quantization_config.weights_file
        return config

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if not self.pre_quantized:
            return model
        tensors = self.quantization_config.tensors
        for saved, name in resolve_names(model, tensors).items():
            linear = cast(nn.Linear, model.get_submodule(name))
            setting = tensors[saved]
            setting.shape.require(linear.out_features, linear.in_features)
            with torch.device("meta"):
                layer = FactorizedLinear(
                    setting, linear.bias is not None, self.quantization_config.tokens, dtype=linear.weight.dtype
                )
            swap_module(model, linear, layer)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.pre_quantized:
            _require_loaded(model)
            _align(model)
            self.attach(model)
        else:
            from heat_hf.compression.factorize import factorize

            factorize(model, self.quantization_config)
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        for layer in factorized_layers(model).values():
            swap_module(model, layer, layer.to_linear())
        model.__dict__.pop("save_pretrained", None)
        return model

    def attach(self, model: PreTrainedModel) -> None:
        """Make a model with factorized layers one that Transformers saves, dequantizes and trains as such."""
        attributes = {
            "hf_quantizer": self,
            "is_quantized": True,
            "quantization_method": METHOD,
            "save_pretrained": MethodType(save_pretrained, model),
        }
        for name, value in attributes.items():
            setattr(model, name, value)
        model.config.quantization_config = self.quantization_config

    def is_serializable(self) -> bool:
        """Factorized models are saved by `save_pretrained`."""
        return True

    @property
    def is_trainable(self) -> bool:
        """The cores are ordinary parameters."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Trainer accepts the model without adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """`torch.compile` captures the layers without graph breaks."""
        return True


def _require_loaded(model: PreTrainedModel) -> None:
    """Raise if a core was not in the checkpoint: Transformers would only log that it is uninitialized."""
    for name, layer in factorized_layers(model).items():
        for parameter_name, parameter in layer.named_parameters():
            if not (parameter.is_meta or getattr(parameter, "_is_hf_initialized", False)):  # meta: offloaded
                raise ValueError(f"the checkpoint has no weights for {name}.{parameter_name}: it is damaged")


def _align(model: PreTrainedModel) -> None:
    """Copy cores to aligned memory: as views into a mapped file they are slower, and their products differ in the last bit."""
    for layer in factorized_layers(model).values():
        for parameter in layer.parameters():
            if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNMENT:
                parameter.data = parameter.data.clone()


def save_pretrained(model: PreTrainedModel, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
    """`PreTrainedModel.save_pretrained`, with the weights under a name that loads only where heat_hf is imported.

    Trainer's `checkpoint-N` folders keep the usual name, by which Trainer resumes from them.

    Raises:
        ValueError: for a `variant`, which names weights files in a way of its own.
    """
    if kwargs.get("variant"):
        raise ValueError(f"variant={kwargs['variant']!r} is not supported for factorized models; save to another folder")
    config: FactorizedConfig = model.config.quantization_config
    push = kwargs.pop("push_to_hub", False)
    folder = Path(save_directory)
    only_adapter = getattr(model, "_hf_peft_config_loaded", False)
    own_name = not (only_adapter or _TRAINER_CHECKPOINT.fullmatch(folder.name))
    config.weights_file = None
    if not only_adapter:  # ranks may have grown, by merged adapters
        config.tensors = {name: layer.setting for name, layer in factorized_layers(model).items()}
    type(model).save_pretrained(model, save_directory, **kwargs)
    if own_name and kwargs.get("is_main_process", True):
        config.weights_file = _rename_weights(folder)
        model.config.save_pretrained(save_directory)
    if push:
        hub = {key: kwargs[key] for key in ("commit_message", "private", "token", "revision", "create_pr") if key in kwargs}
        model.push_to_hub(kwargs.get("repo_id", folder.name), **hub)


def _rename_weights(folder: Path) -> str:
    """Rename saved weights, sharded or not, and return the name to load them by."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        (folder / SAFE_WEIGHTS_NAME).replace(folder / WEIGHTS_NAME)
        return WEIGHTS_NAME
    content = json.loads(index.read_text())
    for shard in sorted(set(content["weight_map"].values())):
        (folder / shard).replace(folder / f"heat_{shard}")
    content["weight_map"] = {tensor: f"heat_{shard}" for tensor, shard in content["weight_map"].items()}
    (folder / WEIGHTS_INDEX_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    index.unlink()
    return WEIGHTS_INDEX_NAME
