"""Loading and dequantizing factorized models with plain Transformers.

The quantization method "heat" is registered when heat_hf is imported, so that `AutoModel….from_pretrained` builds factorized
layers where config.json has it. A program that does not import heat_hf must not get random dense weights in their place:
config.json names a weights file that is not there, in words that say what to do (see `saving`). Only this quantizer puts the
name of the real one in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer

from heat_hf.encoders.bases import basis_of
from heat_hf.encoders.checkpoints.weights import require_finite, require_loaded, require_unchanged, saved_names
from heat_hf.encoders.embedding import tables_of
from heat_hf.encoders.linears import factorized_embeddings, factorized_layers, resolve_names, swap_modules
from heat_hf.encoders.tiles import share_encoders
from heat_hf.encoders.together import require_together
from heat_hf.formats.layer import FactorizedLinear

if TYPE_CHECKING:  # at run time these would load the modeling code, twice what registration needs
    from transformers import PreTrainedConfig, PreTrainedModel

    from heat_hf.reports.compression import CompressionReport

ALIGNMENT = 64  # bytes, as torch allocates


class HeatQuantizer(HfQuantizer):
    """Builds, and takes down, the factorized layers of a model being loaded."""

    requires_calibration = False
    quantization_config: Any  # a FactorizedConfig of a saved model; a HeatConfig of a dense one that is to be factorized
    _files: Sequence[str] = ()  # of the checkpoint's weights
    _names: frozenset[str] = frozenset()  # of their tensors
    report: CompressionReport | None = None  # of a model that was compressed in this process

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Point Transformers to the weights file (this hook is the last to see the config before files are looked up)."""
        if self.pre_quantized:
            config.transformers_weights = self.quantization_config.weights_file
        return config

    update_tp_plan = update_attn_implementation  # the hook of older Transformers

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if not self.pre_quantized:
            return model
        from transformers.initialization import no_init_weights

        tensors = self.quantization_config.tensors
        settings = {name: tensors[saved] for saved, name in resolve_names(model, tensors).items()}
        require_together(model, settings)
        swapped: dict[nn.Module, nn.Module] = {}
        with torch.device("meta"), no_init_weights():
            for name, setting in settings.items():
                linear = cast(nn.Linear, model.get_submodule(name))
                setting.shape.require(linear.out_features, linear.in_features)
                tokens, dtype = self.quantization_config.tokens, linear.weight.dtype
                swapped[linear] = FactorizedLinear(setting, linear.bias is not None, tokens, dtype=dtype)
        swap_modules(model, swapped | tables_of(model, self.quantization_config.embeddings or {}))
        self._files = kwargs.get("checkpoint_files") or ()
        self._names = saved_names(model, self._files)
        self._extents = {name: parameter.shape for name, parameter in model.named_parameters()}
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.pre_quantized:
            if any(own.shape != self._extents.get(name, own.shape) for name, own in model.named_parameters()):
                # As Transformers says it, whose older versions let a quantized model have the file's extents.
                raise ValueError("ignore_mismatched_sizes")
            require_loaded(model, self._names)
            require_finite(model)
            require_unchanged(self._files, self.quantization_config.checksum)  # last: it says least of what is wrong
            _align(model)
            share_encoders(model, self.quantization_config.shared_encoders)
            self.attach(model)
        else:
            from heat_hf.compression.factorize import factorize

            factorize(model, self.quantization_config)
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        layers = factorized_layers(model)
        dense: dict[nn.Module, nn.Module] = {layer: layer.to_linear(basis_of(layers, name)) for name, layer in layers.items()}
        swap_modules(model, dense | {module: module.to_dense() for module in factorized_embeddings(model).values()})
        return model

    def attach(self, model: PreTrainedModel) -> None:
        """Make a model with factorized layers one that Transformers dequantizes, and else takes for an ordinary one."""
        model.hf_quantizer = self  # type: ignore[assignment]
        model.config.quantization_config = self.quantization_config
        for module in model.modules():  # of a quantized one, Transformers refuses `half` and `float`
            if "is_quantized" in vars(module):
                module.is_quantized = False  # type: ignore[assignment]

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


def _align(model: PreTrainedModel) -> None:
    """Copy cores to aligned memory: as views into a mapped file they are slower, and their products differ in the last bit."""
    for layer in (*factorized_layers(model).values(), *factorized_embeddings(model).values()):
        for parameter in layer.parameters():
            if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNMENT:
                parameter.data = parameter.data.clone()
