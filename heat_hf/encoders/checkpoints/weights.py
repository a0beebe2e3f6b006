"""The weights files of a compressed checkpoint, looked at before and after Transformers loads them."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from heat_hf.encoders.checkpoints.reading import require_regular
from heat_hf.encoders.linears import base_prefix, block_of, factorized_embeddings, factorized_layers
from heat_hf.encoders.values import brief

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from heat_hf.formats.layer import FactorizedLinear

FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them


def checksum(files: Iterable[str | Path]) -> str:
    """XXH3 of weights files, one after the other by their names, as sixteen hexadecimal digits.

    It is to notice damage, as that of a disk, and costs a small part of loading. Whoever changes files on purpose can change
    it, too.
    """
    import xxhash

    value = xxhash.xxh3_64()
    for file in sorted(map(Path, files), key=lambda path: path.name):
        with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as content:
            value.update(content)
    return value.hexdigest()


def saved_names(model: PreTrainedModel, files: Sequence[str]) -> frozenset[str]:
    """Names of the tensors in weights files; their headers are checked against the model, nothing is loaded.

    Args:
        model: with the factorized layers in place.
        files: its weights files.

    Raises:
        OSError: if a file is not there, or no regular file.
        ValueError: if a file is no whole safetensors file inside the checkpoint, or a tensor's extents or type are not the
            model's.
    """
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in files:
        found.update(tensors_of(Path(file), Path(model.config.name_or_path or "")))
    for name, parameter in model.named_parameters():
        key = next((other for other in _spellings(model, name) if other in found), None)
        if key is None:
            continue
        extents, kind = found[key]
        if extents != tuple(parameter.shape) and name.startswith(base_prefix(model)):
            raise ValueError(f"{files[0]}: tensor {key} has extents {extents}, the model needs {tuple(parameter.shape)}")
        if parameter.is_floating_point() and kind not in FLOATS:
            raise ValueError(f"{files[0]}: tensor {key} is of type {kind}, the model needs one of {', '.join(FLOATS)}")
    return frozenset(found)


def require_unchanged(files: Sequence[str], saved: str | None) -> None:
    """Raise ValueError if weights files are not those whose `checksum` was saved; None: it is not known."""
    if saved is not None and files and checksum(files) != saved:
        raise ValueError(
            f"{files[0]}: the weights are not those that were saved (XXH3 {checksum(files)} instead of {brief(saved)}): they "
            "are damaged, or were changed without save_pretrained"
        )


def require_loaded(model: PreTrainedModel, names: Container[str]) -> None:
    """Make sure that tensors came from the checkpoint, where Transformers would make them up and only log it.

    Those of the factorized blocks always; all, where the class is the one that was saved. Others may have other heads, a
    decoder the cross attention that an encoder was saved without, and headless ones a pooler. A head whose tensors have other
    extents begins anew, where `ignore_mismatched_sizes` says so.

    Args:
        model: after loading.
        names: of the checkpoint's tensors: what is offloaded to the disk is judged by its name.

    Raises:
        ValueError: if one did not; the message names it.
    """
    layers = factorized_layers(model)
    for name, parameter, of_blocks in _owed(model, [*layers, *factorized_embeddings(model)], names):
        there = (parameter.is_meta or not of_blocks) and _known(model, name, names)
        if not there and not getattr(parameter, "_is_hf_initialized", False):
            raise _damaged(model, name)
    _require_orders(model, layers, names)


def _owed(
    model: PreTrainedModel, layers: Iterable[str], names: Container[str]
) -> Iterator[tuple[str, torch.nn.Parameter, bool]]:
    """Tensors that a checkpoint must have, and whether each is of a factorized block."""
    layers = list(layers)
    blocks = {_numberless(block_of(name)) for name in layers}
    same = type(model).__name__ in (model.config.architectures or ())
    for name, parameter in model.named_parameters():
        of_blocks = any(name.startswith(f"{layer}.") for layer in layers) or _numberless(block_of(name)) in blocks
        if of_blocks and not same and ".crossattention." in name and not _known(model, name, names):
            continue
        if of_blocks or (same and not name.startswith("pooler.")):
            yield name, parameter, of_blocks


def _known(model: PreTrainedModel, name: str, names: Container[str]) -> bool:
    return any(other in names for other in _spellings(model, name))


def _require_orders(model: PreTrainedModel, layers: Mapping[str, FactorizedLinear], names: Container[str]) -> None:
    """Pivoted layers hold a permutation, and it is the checkpoint's."""
    for layer, module in layers.items():
        for kind, order in module.named_buffers(recurse=False):
            name = f"{layer}.{kind}"
            if not _known(model, name, names):
                raise _damaged(model, name)
            whole = torch.arange(len(order), dtype=order.dtype, device=order.device)
            if not order.is_meta and not torch.equal(order.sort().values, whole):
                what = f"tensor {name} of {model.name_or_path} is no order of {len(order)} rows"
                raise ValueError(f"{what}: the compressed checkpoint is damaged")


def _damaged(model: PreTrainedModel, name: str) -> ValueError:
    return ValueError(f"{model.name_or_path} has no tensor {name}: the compressed checkpoint is damaged")


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _spellings(model: PreTrainedModel, name: str) -> tuple[str, str, str]:
    """A tensor's names in checkpoints with and without a head."""
    return name, f"{model.base_model_prefix}.{name}", name.removeprefix(base_prefix(model))


def tensors_of(file: Path, folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Extents and type of every tensor of a weights file, by its header alone.

    Args:
        file: of safetensors.
        folder: of the checkpoint, which the file must be in.

    Raises:
        OSError, ValueError: as `saved_names`.
    """
    from safetensors import SafetensorError, safe_open

    if ".." in file.parts or (folder.is_dir() and not file.absolute().is_relative_to(folder.absolute())):
        raise ValueError(f"the index of {folder} names {file}, which is outside the checkpoint's folder")
    require_regular(file)
    try:
        with safe_open(file, framework="pt") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from error


def require_finite(model: PreTrainedModel) -> None:
    """Raise ValueError, naming the tensor, if a loaded parameter holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.is_meta or not parameter.numel():
            continue
        # A sum shows NaN and infinity in half the time of extremes, but large numbers may sum to infinity, too. Asking every
        # number for itself takes thirty times as long.
        values = parameter.detach()
        if not math.isfinite(float(values.sum())) and not all(map(math.isfinite, torch.stack(torch.aminmax(values)).tolist())):
            raise ValueError(
                f"tensor {name} of {model.name_or_path} holds NaN or infinity: the compressed checkpoint is damaged"
            )
