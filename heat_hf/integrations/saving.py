"""Saving and pushing any model of Transformers that has factorized layers.

What is saved follows from the layers that a model has at that moment: whether it was compressed, loaded, unpickled, put into
another model or built from a configuration does not matter. `PreTrainedModel`'s own methods are wrapped for that, once, when
Transformers is imported.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from heat_hf.encoders.checkpoints.hub import push_saved
from heat_hf.encoders.checkpoints.names import (
    CARD_NAME,
    METHOD,
    MISSING_IMPORT,
    REPORT_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    package_version,
)
from heat_hf.encoders.checkpoints.storage import atomic_directory
from heat_hf.encoders.checkpoints.weights import checksum as weights_checksum
from heat_hf.encoders.config import FactorizedConfig
from heat_hf.encoders.linears import embedding_ranks, factorized_embeddings, factorized_layers
from heat_hf.encoders.tiles import shared_encoders, unshared
from heat_hf.formats.layer import DEFAULT_TOKENS, FactorizedLinear

_TRAINER_CHECKPOINT = re.compile(r"checkpoint-\d+")
_WEIGHTS = re.compile(r"(heat_|pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


def save_pretrained(
    save: Callable[..., None], model: PreTrainedModel, folder: str | os.PathLike[str], *args: Any, **kwargs: Any
) -> None:
    """`PreTrainedModel.save_pretrained`; with factorized layers, their settings go to config.json, and the folder is whole.

    Trainer's `checkpoint-N` folders keep the usual name of the weights, by which Trainer resumes from them.

    Args:
        save: the method of Transformers.
        model: any model.
        folder: where; other files there stay, weights of before do not.
        *args: of the method.
        **kwargs: likewise.

    Raises:
        ValueError: for a `variant`, which names weights files in a way of its own; or for layers that could not be loaded
            from the folder, as quantized ones.
        OSError: if the folder cannot be written; what was there is then as it was.
    """
    given = inspect.signature(save).bind(model, folder, *args, **kwargs).arguments
    quantization = None if getattr(model, "_hf_peft_config_loaded", False) else _settings_of(model)
    if quantization is None:
        keep = bool(factorized_layers(model) or factorized_embeddings(model))
        return save(model, folder, *args, **kwargs) if keep else _save_dense(save, model, folder, *args, **kwargs)
    if given.get("variant"):
        raise ValueError(f"variant={given['variant']!r} is not supported for factorized models; save to another folder")
    if not given.get("is_main_process", True):
        return save(model, folder, *args, **kwargs)
    tensors = given.get("state_dict") or model.state_dict()
    _require_plain(factorized_layers(model), factorized_embeddings(model), tensors)
    options = {**{name: value for name, value in given.items() if name not in ("self", "kwargs")}, **given.get("kwargs", {})}
    push = options.pop("push_to_hub", False)
    options.pop("save_directory")
    if quantization.shared_encoders is not None:
        options["state_dict"] = unshared(tensors)
    checkpoint = _TRAINER_CHECKPOINT.fullmatch(Path(folder).name)
    with atomic_directory(folder, overwrite=True) as scratch:
        with _ordinary(model):
            save(model, scratch, **options)
        quantization.weights_file = _weights_name(scratch, rename=not checkpoint)
        quantization.checksum = weights_checksum(path for path in scratch.iterdir() if path.suffix == ".safetensors")
        _describe(scratch, quantization)
        for name, content in ({} if checkpoint else _known_files(model, Path(folder).name)).items():
            (scratch / name).write_bytes(content)
        _keep_others(Path(folder), scratch)
    model.config.quantization_config = quantization  # so that a configuration saved by itself still fits the folder
    if push:
        hub = {key: options[key] for key in ("commit_message", "private", "token", "revision", "create_pr") if key in options}
        model.push_to_hub(options.get("repo_id", Path(folder).name), **hub)
    return None


def push_to_hub(push: Callable[..., Any], model: PreTrainedModel, repo_id: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """`PreTrainedModel.push_to_hub`; a factorized model whose report is known brings report and card along.

    Args:
        push: the method of Transformers.
        model: any model.
        repo_id: "name" or "owner/name".
        *args: of the method.
        **kwargs: likewise.
    """
    if _settings_of(model) is None or REPORT_NAME not in _known_files(model, repo_id.rsplit("/", 1)[-1]):
        return push(model, repo_id, *args, **kwargs)
    given = inspect.signature(push).bind(model, repo_id, *args, **kwargs).arguments
    names = ("private", "token", "revision", "create_pr", "commit_message")
    hub = {name: given[name] for name in names if given.get(name) is not None}
    sizes = {"max_shard_size": given["max_shard_size"]} if given.get("max_shard_size") else {}
    return push_saved(lambda folder: model.save_pretrained(folder, **sizes), repo_id, **hub)


def _settings_of(model: PreTrainedModel) -> FactorizedConfig | None:
    """What config.json is to say of a model's layers; None if it has no factorized ones, or is not the one to save them."""
    layers = factorized_layers(model)
    embeddings = embedding_ranks(model)
    if not (layers or embeddings) or any(".base_layer" in name for name in layers):
        return None
    known = next((held["quantization_config"] for _, held in _held(model.config) if "quantization_config" in held), None)
    return FactorizedConfig(
        tensors={name: layer.setting for name, layer in layers.items()},
        tokens=next((layer.tokens for layer in layers.values()), DEFAULT_TOKENS),
        accelerator=_field(known, "accelerator"),
        embeddings=embeddings,
        blocks=_field(known, "blocks"),
        heat_version=_field(known, "heat_version") or package_version(),
        shared_encoders=shared_encoders(model, _field(known, "shared_encoders")),
    )


def _require_plain(layers: Mapping[str, FactorizedLinear], embeddings: Iterable[str], tensors: Mapping[str, Any]) -> None:
    """Make sure that factorized layers have the tensors that a folder is loaded with: no masks, no quantized ones.

    Args:
        layers: by name.
        embeddings: names of word embeddings of low rank.
        tensors: of the whole model, that are to be saved.

    Raises:
        ValueError: naming layer and tensor.
    """
    wanted = {name: {f"{name}.low.weight", f"{name}.up.weight"} for name in embeddings}
    for name, layer in layers.items():
        with torch.device("meta"):
            wanted[name] = {f"{name}.{key}" for key in FactorizedLinear(layer.setting, layer.bias is not None).state_dict()}
    for name, keys in wanted.items():
        odd = min(keys ^ {key for key in tensors if key.startswith(f"{name}.")}, default=None)
        quantized = (key for key in keys if odd is None and type(tensors[key]).dequantize is not torch.Tensor.dequantize)
        odd = odd or next(quantized, None)
        if odd is not None:
            raise ValueError(
                f"{name} cannot be saved as it is, see {odd}: make pruning and parametrizations permanent "
                "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations), and quantize after loading"
            )


def _field(config: Any, name: str) -> Any:  # noqa: ANN401
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _held(config: PreTrainedConfig) -> list[tuple[PreTrainedConfig, dict[str, Any]]]:
    """A configuration and those inside it, each with what it says of factorized weights."""
    found = []
    for inner in [config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))]:
        ours = _field(vars(inner).get("quantization_config"), "quant_method") == METHOD
        names = ("quantization_config", "transformers_weights") if ours else ()
        found.append((inner, {name: vars(inner)[name] for name in names if name in vars(inner)}))
    return found


@contextmanager
def _ordinary(model: PreTrainedModel) -> Iterator[None]:
    """A model that Transformers saves as any other, with the weights that it is given; as before when the block ends."""
    before, quantizer = _held(model.config), vars(model).pop("hf_quantizer", None)  # for one, a `state_dict` is left out
    for inner, held in before:
        for name in held:
            del vars(inner)[name]
    try:
        yield
    finally:
        for inner, held in before:
            vars(inner).update(held)
        if quantizer is not None:
            model.hf_quantizer = quantizer


def _save_dense(save: Callable[..., None], model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
    """A model without factorized layers, whatever the configuration says that it was built from."""
    with _ordinary(model):
        save(model, *args, **kwargs)


def _weights_name(folder: Path, rename: bool) -> str:
    """Rename saved weights, sharded or not, if asked to, and return the name to load them by."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not rename:
        return SAFE_WEIGHTS_INDEX_NAME if index.exists() else SAFE_WEIGHTS_NAME
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


def _describe(folder: Path, quantization: FactorizedConfig) -> None:
    """Say in config.json which weights there are to those who can read them, and to others what to do."""
    path = folder / CONFIG_NAME
    content = json.loads(path.read_text())
    content |= {"quantization_config": quantization.to_dict(), "transformers_weights": MISSING_IMPORT}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _keep_others(old: Path, new: Path) -> None:
    """What else lies in a folder that is about to be replaced stays there; weights do not."""
    for path in old.iterdir() if old.is_dir() else ():
        if (new / path.name).exists() or _WEIGHTS.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def _known_files(model: PreTrainedModel, name: str) -> dict[str, bytes]:
    """Report and card of a model that was compressed in this process, or loaded from a folder that has them."""
    report = getattr(getattr(model, "hf_quantizer", None), "report", None)
    if report is not None:
        from heat_hf.evaluation.tasks import task_of
        from heat_hf.reports.card import model_card, origin_of, saved_files

        return saved_files(report, model_card(report, origin_of(report, name, task_of(model))))
    source = Path(str(getattr(model.config, "_name_or_path", "")))
    files = [source / name for name in (REPORT_NAME, CARD_NAME)]
    return {file.name: file.read_bytes() for file in files if source.name and file.is_file()}
