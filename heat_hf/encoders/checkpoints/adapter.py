"""Adapters of PEFT on dense models, as LoRA: merged into the model they are for, before it is compressed."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from heat_hf.encoders.linears import model_class_of, swap_modules

logger = logging.getLogger(__name__)
WEIGHTS = "adapter_model.safetensors"
_HEADS = ("classifier", "classifier.out_proj", "score")
_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}  # fmt: skip


def has_adapter(model: str | os.PathLike[str], **hub: Any) -> bool:
    """Whether a checkpoint is that of an adapter.

    Args:
        model: folder or Hub id.
        **hub: revision, token, cache_dir, local_files_only.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    return find_adapter_config_file(str(model), **hub) is not None


@dataclass(frozen=True)
class Source:
    """Where a part of a checkpoint is: a folder or Hub id, and what to ask the Hub with."""

    name: str
    hub: Mapping[str, Any]


def load_merged(
    model: str | os.PathLike[str],
    model_class: Any,  # noqa: ANN401
    hub: Mapping[str, Any],
    **kwargs: Any,
) -> tuple[Any, Source, Source]:
    """Load the dense model that an adapter is for, and merge the adapter into it.

    Args:
        model: folder or Hub id of the adapter.
        model_class: default: the one the adapter was made for.
        hub: revision, token, cache_dir, local_files_only; the dense model's revision is the one its adapter names.
        **kwargs: for the dense model's `from_pretrained`.

    Returns:
        The merged model, where the dense one is, and where the tokenizer: beside the adapter, or else the dense model.

    Raises:
        ImportError: if PEFT is not installed.
        OSError: if there is no such checkpoint, or the adapter's weights are not safetensors.
        ValueError: if the adapter cannot be merged.
    """
    from transformers import AutoConfig
    from transformers.utils.hub import cached_file
    from transformers.utils.import_utils import is_peft_available

    if not is_peft_available():
        raise ImportError(f"{model} is an adapter: install peft to merge it into its dense model")
    from peft import PeftConfig, PeftModel

    weights = cached_file(str(model), WEIGHTS, **hub)
    config = PeftConfig.from_pretrained(str(model), **hub)
    base = str(config.base_model_name_or_path)
    base_hub = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
    base_hub |= {} if config.revision is None else {"revision": config.revision}
    labels = _labels(str(weights)) if "num_labels" not in kwargs else None
    options = {**kwargs, **base_hub, **({} if labels is None else {"num_labels": labels})}
    code = {key: kwargs[key] for key in ("trust_remote_code", "code_revision") if key in kwargs}
    loader = model_class or _class_of(config) or model_class_of(AutoConfig.from_pretrained(base, **base_hub, **code))
    dense = loader.from_pretrained(base, use_safetensors=True, **options)
    merged = merge(PeftModel.from_pretrained(dense, model, config=config, **hub), str(model))
    logger.warning("the adapter %s was merged into %s; what is compressed is the merged model", model, base)
    merged.config._name_or_path = str(model)
    missing = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    tokenizer = cached_file(str(model), "tokenizer_config.json", **missing, **hub)
    dense_source = Source(base, base_hub)
    return merged, dense_source, dense_source if tokenizer is None else Source(str(model), hub)


def merge(model: Any, name: str = "the model's adapter") -> Any:  # noqa: ANN401
    """Make adapters part of a model's weights; a model without any is returned as it is.

    Args:
        model: a PEFT model, or a model of Transformers with adapters added to it.
        name: of the adapter, for messages.

    Raises:
        ValueError: for adapters that cannot become part of weights, as prompts.
    """
    if not hasattr(model, "peft_config"):
        return model
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if isinstance(model, PeftModel):
        if not hasattr(model, "merge_and_unload") or model.active_peft_config.is_prompt_learning:
            raise ValueError(f"{name} is {model.active_peft_config.peft_type.value}, which cannot be merged: LoRA can")
        return model.merge_and_unload(safe_merge=True)
    swapped: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            swapped[module] = module.get_base_layer()  # type: ignore[index]
        elif isinstance(module, AuxiliaryTrainingWrapper):
            swapped[module] = module.modules_to_save[module.active_adapters[0]]
    swap_modules(model, swapped)
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model


def _class_of(config: Any) -> Any:  # noqa: ANN401
    """The class that an adapter's configuration names; None if it names none."""
    import transformers

    name = _CLASSES.get(str(getattr(config.task_type, "value", config.task_type)))
    name = name or (config.auto_mapping or {}).get("base_model_class", "")
    return getattr(transformers, name, None) if name else None


def _labels(weights: str) -> int | None:
    """Number of classes of the head that was trained with an adapter; None if there is none."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            if name.removesuffix(".weight").endswith(_HEADS) and name.endswith(".weight"):
                return int(file.get_slice(name).get_shape()[0])
    return None
