"""Adapters of PEFT on factorized layers: which modules a configuration's target names stand for.

PEFT's methods know `nn.Linear`. A low-rank layer holds two of them, so whoever targets the layer gets adapters on both, by any
method; merging them keeps the rank. The other formats have no linear inside. LoRA is put beside such a layer, by PEFT's own way
for layers it does not know; other methods are refused.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping
from typing import Any, cast

from peft import LoraConfig, TrainableTokensConfig
from peft.tuners.ia3 import IA3Model
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer, _ExcludedModule, _maybe_include_all_linear_layers
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.other import get_pattern_key
from torch import nn

from heat_hf.encoders.linears import factorized_layers
from heat_hf.formats.layer import FactorizedLinear

_NEEDS_WEIGHT = ("pissa", "olora", "corda", "loftq", "eva")  # ways to begin that take a dense weight apart


class LoraFactorizedLinear(Linear):
    """A layer of a format without linears inside, with LoRA beside it.

    Raises:
        ValueError: for variants of LoRA that need a dense weight, which there is not.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():  # of a layer of unknown type, which is the one that this class is for
            warnings.filterwarnings("ignore", "Unsupported layer type")
            super().__init__(*args, **kwargs)

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        """Add an adapter."""
        begin = str(config.init_lora_weights).lower()
        needs = "DoRA" if config.use_dora else begin if begin.startswith(_NEEDS_WEIGHT) else None
        if needs is not None:
            raise ValueError(f"{needs} needs a dense weight, but this is a {_hint(self.get_base_layer())}, or use plain LoRA")
        super().update_layer(adapter_name, r, lora_alpha, config=config, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused.

        Raises:
            ValueError: always: the cores cannot take in an adapter exactly.
        """
        setting = cast(FactorizedLinear, self.get_base_layer()).setting
        other = ", or call model.dequantize() before adding it" if setting.codec.tokenwise else ""
        raise ValueError(f"a {setting.format} layer cannot take in an adapter exactly: keep it beside{other}")


def resolve_targets(tuner: Any, config: Any, model: nn.Module) -> None:  # noqa: ANN401
    """Rewrite a configuration's targets as full module names, as PEFT does for "all-linear", where they mean factorized layers.

    A low-rank layer becomes its two linears; another format's layer stays, and gets a LoRA layer of ours. Saved configurations
    hold the result, so a saved adapter says exactly where it belongs.

    Args:
        tuner: PEFT's model, as `LoraModel`.
        config: its configuration, changed in place.
        model: which the adapter is injected into; left alone if it has no factorized layers.

    Raises:
        ValueError: if the method cannot adapt a layer of another format than low rank, or a loaded adapter was made for a
            dense layer where there is a low-rank one.
    """
    layers = _layers(model)
    if not layers or not hasattr(config, "target_modules") or isinstance(config, TrainableTokensConfig):
        return
    found = _matches(tuner, config, model, layers)
    left_out = {name: layer for name, layer in layers.items() if isinstance(found[name], _ExcludedModule)}
    chosen = {name: layer for name, layer in layers.items() if found[name]}
    if not chosen and not left_out:
        return
    _refuse(config, chosen)
    owners, hidden = _linears(chosen), _linears(left_out)
    names = {name for name, match in found.items() if match} | set(owners)
    _rewrite(config, names - set(owners.values()) - set(hidden), owners)


def _matches(tuner: Any, config: Any, model: nn.Module, layers: Mapping[str, FactorizedLinear]) -> dict[str, Any]:  # noqa: ANN401
    """What PEFT says of each module's name; "all-linear" means the layers without linears inside, too."""
    every = str(config.target_modules).lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND
    config = tuner._prepare_adapter_config(config, tuner.get_model_config(model))
    _maybe_include_all_linear_layers(config, model)
    if every:
        config.target_modules |= layers.keys() - set(_linears(layers).values())
    return {name: tuner._check_target_module_exists(config, name) for name in _outer_names(model)}


def _rewrite(config: Any, names: set[str], owners: Mapping[str, str]) -> None:  # noqa: ANN401
    """Put full names where a configuration has patterns; `owners` are the layers that named linears are in."""
    _resolve_patterns(config, names, owners)
    if config.peft_type == "IA3":
        forward = functools.partial(IA3Model._check_target_module_feedforward, config)
        config.feedforward_modules = {name for name in names if forward(owners.get(name, name))}
    config.target_modules = names
    if config.peft_type == "LORA":
        config._register_custom_module({FactorizedLinear: LoraFactorizedLinear})


def _layers(model: nn.Module) -> dict[str, FactorizedLinear]:
    """Factorized layers by the names that PEFT knows them by: those of the adapters around them, if there are any."""
    return {re.sub(r"(\.base_layer)+$", "", name): layer for name, layer in factorized_layers(model).items()}


def _outer_names(model: nn.Module) -> list[str]:
    """Names of all modules but those inside an adapter's layer."""
    adapters = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return [name for name, _ in model.named_modules() if name and not name.startswith(adapters)]


def _linears(layers: Mapping[str, FactorizedLinear]) -> dict[str, str]:
    """Full names of the linears inside layers, and the layer's name for each."""
    return {f"{name}.{child}": name for name, layer in layers.items() for child, _ in layer.named_children()}


def _refuse(config: Any, chosen: Mapping[str, FactorizedLinear]) -> None:  # noqa: ANN401
    """Raise where adapters cannot work, before the model is touched."""
    low_rank = set(_linears(chosen).values())
    for name, layer in chosen.items():
        if name not in low_rank and config.peft_type != "LORA":
            raise ValueError(f"{config.peft_type.value} needs linears, but {name} is a {_hint(layer)}, or use LoRA")
        if name in low_rank and config.inference_mode:  # so PEFT and Transformers mark what they load
            raise ValueError(
                f"the adapter was made for a dense {name}, which is a low-rank layer here, so it fits nowhere: merge it "
                "into the dense model before compressing, or train a new adapter"
            )


def _resolve_patterns(config: Any, names: set[str], owners: Mapping[str, str]) -> None:  # noqa: ANN401
    """Ranks and scales given by a layer's name hold for its linears."""
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, field, None)
        if patterns:
            keys = {child: get_pattern_key(patterns.keys(), name) for child, name in owners.items()}
            inside = {re.escape(child): patterns[key] for child, key in keys.items() if key in patterns}
            used = {get_pattern_key(patterns.keys(), name) for name in names}
            setattr(config, field, {**inside, **{key: value for key, value in patterns.items() if key in used}})


def _hint(layer: Any) -> str:  # noqa: ANN401
    other = ", call model.dequantize() first" if layer.setting.codec.tokenwise else ""
    return f"{layer.setting.format} layer: compress with decomposition='low_rank'{other}"
