"""Adapters of PEFT on factorized layers: which modules a configuration's target names stand for.

PEFT's methods know `nn.Linear`. A low-rank layer holds two of them, so whoever targets the layer gets adapters on both, by any
method; merging them keeps the rank. The other formats have no linear inside. LoRA is put beside such a layer, by PEFT's own way
for layers it does not know; other methods are refused.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

from peft import LoraConfig
from peft.tuners.ia3 import IA3Config, IA3Model
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule, _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn

from heat_hf.encoders.linears import factorized_layers
from heat_hf.formats.layer import FactorizedLinear

_NEEDS_WEIGHT = ("pissa", "olora", "corda", "loftq", "eva")  # ways to begin that take a dense weight apart


class LoraFactorizedLinear(Linear):  # type: ignore[misc]
    """A layer of a format without linears inside, with LoRA beside it.

    Raises:
        ValueError: for variants of LoRA that need a dense weight, which there is not.
    """

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        """Add an adapter."""
        begin = str(config.init_lora_weights).lower()
        needs = "DoRA" if config.use_dora else begin if begin.startswith(_NEEDS_WEIGHT) else None
        if needs is not None:
            raise ValueError(f"{needs} needs a dense weight: {_hint(self.get_base_layer())}, or plain LoRA")
        super().update_layer(adapter_name, r, lora_alpha, config=config, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused.

        Raises:
            ValueError: always: the cores cannot take in an adapter exactly.
        """
        format = self.get_base_layer().setting.format
        raise ValueError(
            f"a {format} layer cannot take in an adapter exactly: keep it beside, or call model.dequantize() before adding it"
        )


def install(tuners: Any) -> None:  # noqa: ANN401
    """Make every PEFT method find the linears of factorized layers, whoever adds or loads an adapter.

    Args:
        tuners: the module `peft.tuners.tuners_utils`.
    """
    inject = tuners.BaseTuner.inject_adapter
    if hasattr(inject, "__wrapped__"):
        return

    @functools.wraps(inject)
    def inject_adapter(self: BaseTuner, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if factorized_layers(model):
            resolve_targets(self, self.peft_config[adapter_name], model)
        inject(self, model, adapter_name, *args, **kwargs)

    tuners.BaseTuner.inject_adapter = inject_adapter
