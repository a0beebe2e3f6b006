"""The weights files of a compressed checkpoint, looked at before and after Transformers loads them."""

from __future__ import annotations

import re
import stat
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from heat_hf.encoders.linears import base_prefix, block_of, factorized_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def saved_names(model: PreTrainedModel, files: Sequence[str]) -> frozenset[str]:
    """Names of the tensors in weights files; their headers are checked against the model, nothing is loaded.

    Args:
        model: with the factorized layers in place.
        files: its weights files.

    Raises:
        ValueError: if a file is no whole safetensors file inside the checkpoint, or a tensor's extents are not the model's.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes.update(_shapes(Path(file), Path(model.config.name_or_path or "")))
    for name, parameter in model.named_parameters():
        saved = next((other for other in _spellings(model, name) if other in shapes), name)
        extents = shapes.get(saved, tuple(parameter.shape))
        if extents != tuple(parameter.shape) and name.startswith(base_prefix(model)):
            raise ValueError(f"{files[0]}: tensor {saved} has extents {extents}, the model needs {tuple(parameter.shape)}")
    return frozenset(shapes)


def require_loaded(model: PreTrainedModel, names: Container[str]) -> None:
    """Make sure that every tensor of the factorized blocks came from the checkpoint: Transformers would only log it.

    Args:
        model: after loading.
        names: of the checkpoint's tensors: what is offloaded to the disk is judged by its name.

    Raises:
        ValueError: if one did not; the message names it.
    """
    layers = factorized_layers(model)
    blocks = {_numberless(block_of(name)) for name in layers}
    for name, parameter in model.named_parameters():
        if not any(name.startswith(f"{layer}.") for layer in layers) and _numberless(block_of(name)) not in blocks:
            continue
        there = any(other in names for other in _spellings(model, name)) if parameter.is_meta else False
        if not there and not getattr(parameter, "_is_hf_initialized", False):
            raise ValueError(f"{model.name_or_path} has no tensor {name}: the compressed checkpoint is damaged")


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _spellings(model: PreTrainedModel, name: str) -> tuple[str, str, str]:
    """A tensor's names in checkpoints with and without a head."""
    return name, f"{model.base_model_prefix}.{name}", name.removeprefix(base_prefix(model))


def _shapes(file: Path, folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    if ".." in file.parts or (folder.is_dir() and not file.absolute().is_relative_to(folder.absolute())):
        raise ValueError(f"the index of {folder} names {file}, which is outside the checkpoint's folder")
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError(f"{file} is no regular file")
    try:
        with safe_open(file, framework="pt") as content:
            return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from error


def require_finite(model: PreTrainedModel) -> None:
    """Raise ValueError, naming the tensor, if a loaded parameter holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            raise ValueError(
                f"tensor {name} of {model.name_or_path} holds NaN or infinity: the compressed checkpoint is damaged"
            )
