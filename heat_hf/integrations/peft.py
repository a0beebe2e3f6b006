"""Low-rank adapters (PEFT's LoRA) on factorized layers."""

from __future__ import annotations

import os
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from heat_hf.encoders.linears import factorized_layers
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.setting import TensorSetting


class LoraFactorizedLinear(Linear):
    """A factorized layer with low-rank adapters beside it.

    Merging is exact, not an approximation: the adapter's factors become further slices of a low-rank layer's cores. The layer
    as it was is kept, so unmerging gives back the same numbers. Other formats cannot take in an adapter.
    """

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Make adapters part of the cores; the layer's rank grows by theirs.

        Args:
            safe_merge: refuse adapters that are not finite.
            adapter_names: which; default: the active ones.

        Raises:
            ValueError: if the format is not low rank, an adapter is of another kind than plain LoRA, the sum of the ranks
                exceeds the matrix's, or an adapter is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_A]
        if not names:
            return
        base = self.get_base_layer()
        assert isinstance(base, FactorizedLinear)
        if base.setting.format != "low_rank":
            raise ValueError(
                f"a {base.setting.format} layer cannot take in an adapter exactly: keep it beside, "
                "or call model.dequantize() first"
            )
        odd = [name for name in names if name in self.lora_variant or self.lora_bias[name]]
        if odd:
            raise ValueError(f"adapter {odd[0]!r} is a variant of LoRA, or has a bias; only plain LoRA can be merged")
        merged = self._merged(base, names)
        if safe_merge and not all(torch.isfinite(core).all() for core in merged.cores):
            raise ValueError(f"an adapter of {', '.join(names)} is not finite")
        self._before = getattr(self, "_before", None) or (base,)  # in a tuple: a submodule would be saved
        self.base_layer = merged
        self.merged_adapters.extend(names)

    def _merged(self, base: FactorizedLinear, names: list[str]) -> FactorizedLinear:
        left, right = base.cores
        lefts = [left, *(self.lora_B[name].weight * self.scaling[name] for name in names)]
        rights = [right, *(self.lora_A[name].weight for name in names)]
        rank = sum(core.shape[1] for core in lefts)
        setting = TensorSetting("low_rank", base.setting.shape, (rank,), base.setting.execution)
        layer = FactorizedLinear(setting, base.bias is not None, base.tokens, left.device, left.dtype)
        with torch.no_grad():
            for core, parts, axis in zip(layer.cores, (lefts, rights), (1, 0), strict=True):
                core.copy_(torch.cat([part.to(left) for part in parts], axis))
            if layer.bias is not None and base.bias is not None:
                layer.bias.copy_(base.bias)
        return layer.requires_grad_(False).train(base.training)

    def unmerge(self) -> None:
        """Take the adapters out again; the cores are those from before, bit by bit."""
        if self.merged:
            (self.base_layer,) = self._before
            del self._before
            self.merged_adapters.clear()


def lora_config(model: nn.Module, **kwargs: Any) -> LoraConfig:
    """PEFT's configuration of adapters for a compressed model.

    Args:
        model: a compressed model.
        **kwargs: of `peft.LoraConfig`; `target_modules` is by default every factorized layer.

    Raises:
        ValueError: if the model has no factorized layers.
    """
    layers = list(factorized_layers(model))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no factorized layers: compress it first, or use LoraConfig")
    config = LoraConfig(**{"target_modules": layers, **kwargs})
    config._register_custom_module({FactorizedLinear: LoraFactorizedLinear})
    return config


def load_adapter(model: nn.Module, folder: str | os.PathLike[str], **kwargs: Any) -> PeftModel:
    """Put saved adapters onto a compressed model; PEFT does not save that they are for factorized layers.

    Args:
        model: the compressed model that they were trained on.
        folder: Hub id or folder of the adapters.
        **kwargs: of `PeftModel.from_pretrained`.

    Raises:
        ValueError: if the model has no factorized layers, or the adapters are of another kind.
    """
    config = LoraConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{folder} has no LoRA adapters, but {type(config).__name__}")
    if not factorized_layers(model):
        raise ValueError(f"{type(model).__name__} has no factorized layers: load the adapters with PeftModel.from_pretrained")
    config._register_custom_module({FactorizedLinear: LoraFactorizedLinear})
    return PeftModel.from_pretrained(model, folder, config=config, **kwargs)
