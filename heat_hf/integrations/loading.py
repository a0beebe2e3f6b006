"""Loading what heat_hf saved: a damaged or hostile checkpoint ends in one sentence that names it, before its weights are read.

Transformers reads config.json, builds the model that it describes, and only then asks a quantizer to look. So its own methods
are wrapped, once, when it is imported. Of checkpoints of others, they give and raise what they always did.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME

from heat_hf.encoders.checkpoints.names import METHOD, MISSING_IMPORT
from heat_hf.encoders.checkpoints.reading import NOT_THE_FILE, named, require_readable, told, typed
from heat_hf.encoders.config import FactorizedConfig
from heat_hf.encoders.values import shown, whole

MOST_LAYERS = 1_000  # more than any encoder has; building them stays a matter of seconds
OTHER_EXTENTS = (
    "has tensors of other extents than the model, as those of a head with another num_labels: pass "
    "ignore_mismatched_sizes=True to begin them anew"
)
OLD_VERSION = (
    "has tensors of other extents than the model, which this version of Transformers cannot begin anew in a compressed model: "
    "install a newer one, or load it with the saved num_labels"
)
HUB = ("cache_dir", "token", "revision", "subfolder")
# Of what Transformers does not check itself, and heat_hf always saves.
SAVED: Mapping[str, type] = {"architectures": list, "dtype": str, "model_type": str}
KINDS: Mapping[str, type] = {
    **SAVED,
    "auto_map": dict,
    "id2label": dict,
    "label2id": dict,
    "chunk_size_feed_forward": int,
    "is_encoder_decoder": bool,
    "output_attentions": bool,
    "output_hidden_states": bool,
    "return_dict": bool,
    "tie_word_embeddings": bool,
}


def from_pretrained(load: Callable[..., Any], cls: type, source: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """`from_pretrained` of a model or of an `Auto…` class.

    Args:
        load: the method of Transformers, less its class.
        cls: the class.
        source: folder or Hub id.
        *args: of the method.
        **kwargs: likewise.

    Raises:
        OSError, ValueError: if a checkpoint that heat_hf saved cannot be loaded.
    """
    try:
        return load(cls, source, *args, **kwargs)
    except NOT_THE_FILE:
        raise
    except Exception as error:
        if not _is_ours(source, kwargs):
            raise
        other = OLD_VERSION if kwargs.get("ignore_mismatched_sizes") else OTHER_EXTENTS
        reason: Exception = ValueError(f"{source} {other}") if "ignore_mismatched_sizes" in str(error) else error
        sentence = named(reason, source)
        if sentence is error:
            raise
        raise sentence from error


def get_config_dict(read: Callable[..., Any], cls: type, source: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """`PreTrainedConfig.get_config_dict`; what heat_hf saved is checked before anything is built from it.

    Args:
        read: the method of Transformers, less its class.
        cls: the class.
        source: folder, file or Hub id.
        *args: of the method.
        **kwargs: likewise.

    Raises:
        OSError: if there is no config.json.
        ValueError: if it is none, or heat_hf did not save it as it is.
    """
    file = Path(source, kwargs.get("subfolder") or "", kwargs.get("_configuration_file") or CONFIG_NAME)
    if os.path.lexists(file):
        require_readable(file)
    try:
        found, unused = read(cls, source, *args, **kwargs)
    except (*NOT_THE_FILE, OSError, ValueError):
        raise
    except Exception as error:
        raise named(error, file, "is damaged") from error
    if _describes_ours(found):
        with told(file, "is damaged"):
            _require_sound(found)
    return found, unused


def _describes_ours(config: Any) -> bool:  # noqa: ANN401
    if not isinstance(config, Mapping):
        return False
    quantization = config.get("quantization_config")
    ours = isinstance(quantization, Mapping) and quantization.get("quant_method") == METHOD
    return ours or config.get("transformers_weights") == MISSING_IMPORT


def _is_ours(source: Any, options: Mapping[str, Any]) -> bool:  # noqa: ANN401
    """Whether heat_hf saved a checkpoint that cannot be loaded, as far as can be told."""
    from transformers import PreTrainedConfig

    if not isinstance(source, (str, os.PathLike)):  # weights are given beside a configuration
        return False
    if any(Path(source, options.get("subfolder") or "").glob("heat_*")):
        return True
    hub = {name: options[name] for name in HUB if options.get(name) is not None}
    try:
        return _describes_ours(PreTrainedConfig.get_config_dict(source, local_files_only=True, **hub)[0])
    except Exception as error:  # of these, only the checks below raise ValueError
        return isinstance(error, ValueError)


def _require_sound(config: Mapping[str, Any]) -> None:
    """Raise whatever is raised by a config.json that describes no factorized model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping) or quantization.get("quant_method") != METHOD:
        raise ValueError(f"its quantization_config is not that of a factorized model: {shown(quantization)}")
    FactorizedConfig.from_dict(dict(quantization))
    json.dumps(config, allow_nan=False)  # raises for NaN and infinity
    for name, kind in KINDS.items():
        if typed(config, name, kind) is None and name in SAVED:
            raise ValueError(f"it has no {name}")
    if len(config["architectures"]) != 1 or not isinstance(config["architectures"][0], str):
        raise ValueError(f"architectures must name one class, got {shown(config['architectures'])}")
    if "/" in str([config.get(name) for name in ("_attn_implementation", "attn_implementation", "experts_implementation")]):
        raise ValueError("it names code on the Hub to compute attention with")
    if config["model_type"] in CONFIG_MAPPING:
        _require_few_layers(CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(dict(config))))


def _require_few_layers(config: Any) -> None:  # noqa: ANN401
    for name in ("num_hidden_layers", "num_hidden_groups", "inner_group_num"):
        if getattr(config, name, None) is not None:
            whole(name, getattr(config, name), 1, MOST_LAYERS)
