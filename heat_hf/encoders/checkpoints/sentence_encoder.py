"""What sentence-transformers keeps beside a Transformer, such as pooling and normalization, stays with a compressed model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from heat_hf.encoders.checkpoints.reading import parse_json, read_json, require_regular, told, typed
from heat_hf.encoders.values import shown

MODULES = "modules.json"
ABOUT = "config_sentence_transformers.json"
ROOT_FILES = (ABOUT, "sentence_*_config.json")


@dataclass(frozen=True)
class SentenceEncoder:
    """A checkpoint of sentence-transformers, without its Transformer.

    Attributes:
        subfolder: where its Transformer is; "" for the checkpoint itself.
        files: name → content of everything else, for a folder whose Transformer is in the folder itself.
    """

    subfolder: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


def sentence_encoder(model: str | os.PathLike[str], **hub: Any) -> SentenceEncoder:
    """Look for what sentence-transformers needs in a checkpoint; empty for any other checkpoint.

    Args:
        model: Hub id or folder; of an adapter, the dense model's is taken where it has none of its own.
        **hub: revision, token, cache_dir, local_files_only.

    Raises:
        OSError: if one of its files is no regular file.
        ValueError: if modules.json is damaged, lost, or names files outside the checkpoint, or the checkpoint's first module is
            no Transformer.
    """
    folder = _folder(model, hub)
    adapter = Path(model) / "adapter_config.json"
    if folder is None and adapter.exists():
        base = typed(read_json(adapter), "base_model_name_or_path", str)
        folder = _folder(base, {}) if base else None
    if folder is None:
        return SentenceEncoder()
    modules = read_json(folder / MODULES, list)
    with told(folder / MODULES, "is damaged"):
        for number, module in enumerate(modules):
            _require_module(module, folder, nested=number > 0)
    if not modules or not modules[0]["type"].endswith("Transformer"):
        raise ValueError(f"the first module of {model} must be a Transformer, got {modules[0]['type'] if modules else 'none'}")
    first, *rest = modules
    files = {MODULES: json.dumps([{**first, "path": ""}, *rest], indent=2).encode()}
    for place in (folder, folder / first["path"]):  # in older checkpoints, inside the Transformer's folder
        for pattern in ROOT_FILES:
            files |= {path.name: _content(path) for path in sorted(place.glob(pattern))}
    for module in rest:
        for path in sorted((folder / module["path"]).rglob("*")):
            if not path.is_dir():
                files[str(path.relative_to(folder))] = _content(path)
    return SentenceEncoder(first["path"], files)


def as_given(texts: Sequence[str], encoder: SentenceEncoder) -> list[str]:
    """Texts as the Transformer is given them: also behind each of the checkpoint's prompts, and in lower case if it says so."""
    settings: dict[str, Any] = {}
    for name, content in encoder.files.items():
        if name == ABOUT or fnmatch(name, ROOT_FILES[1]):
            settings |= parse_json(content, name)
    prompts = ["", *(prompt for prompt in (settings.get("prompts") or {}).values() if prompt)]
    given = [f"{prompt}{text}" for prompt in prompts for text in texts]
    return [*given, *map(str.lower, given)] if settings.get("do_lower_case") else given


def _require_module(module: Any, folder: Path, nested: bool) -> None:  # noqa: ANN401
    """An entry of modules.json names a class, and a folder of the checkpoint; only the first may have the checkpoint itself."""
    if not isinstance(module, dict) or not all(type(module.get(name)) is str for name in ("type", "path")):
        raise ValueError(f"a module must have a type and a path, got {shown(module)}")
    root, place = folder.resolve(), (folder / module["path"]).resolve()
    if not place.is_relative_to(root) or (nested and place == root):
        raise ValueError(f"a module must be in a folder of the checkpoint, got {shown(module['path'])}")


def _content(path: Path) -> bytes:
    require_regular(path)
    return path.read_bytes()


def encoder_of(model: Any) -> SentenceEncoder:  # noqa: ANN401
    """What is beside the Transformer in the checkpoint that a model was loaded from; empty for a model made in Python.

    Args:
        model: of Transformers, or of `OnnxModel`.
    """
    config = getattr(model, "config", None)
    name, revision = getattr(config, "_name_or_path", ""), getattr(config, "_commit_hash", None)
    return sentence_encoder(name, **({"revision": revision} if revision else {})) if name else SentenceEncoder()


def _folder(model: str | os.PathLike[str], hub: Mapping[str, Any]) -> Path | None:
    """Where the files are; None if the checkpoint has no modules."""
    folder = Path(model)
    if folder.is_dir():
        if os.path.lexists(folder / MODULES):
            return folder
        if (folder / ABOUT).exists():
            raise ValueError(f"{folder} has {ABOUT}, but no {MODULES}: how tokens are pooled is lost")
        return None
    from transformers.utils.hub import cached_file

    missing = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo", "connection_errors")}
    if cached_file(str(model), MODULES, **missing, **hub) is None:
        return None
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(model), allow_patterns=["*.json", "[0-9]*_*/*"], **hub))
