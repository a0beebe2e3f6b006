"""A compressed model's folder: weights, configuration, tokenizer and whatever else belongs there, all or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heat_hf.encoders.checkpoints.names import WEIGHTS_NAME
from heat_hf.encoders.checkpoints.reading import read_json, require_regular, told
from heat_hf.encoders.checkpoints.storage import atomic_directory
from heat_hf.encoders.checkpoints.weights import require_unchanged, tensors_of
from heat_hf.encoders.config import FactorizedConfig


def save_compressed(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    save_directory: str | os.PathLike[str],
    files: Mapping[str, Path | bytes],
    overwrite: bool = False,
    **kwargs: Any,
) -> None:
    """Save a compressed model; the directory appears whole or not at all.

    Args:
        model: the model.
        tokenizer: its tokenizer, or None.
        save_directory: where.
        files: name in the directory → file to copy there, or content: report, card, the card's pictures.
        overwrite: whether to replace a non-empty directory there.
        **kwargs: for `save_pretrained`, for example `max_shard_size`.

    Raises:
        OSError: if the directory cannot be written.
    """
    with atomic_directory(save_directory, overwrite) as folder:
        model.save_pretrained(folder, **kwargs)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.copyfile(content, folder / name)


def require_whole(folder: Path) -> None:
    """Make sure, without building the model, that a compressed model's folder is as it was saved, before others get it.

    Args:
        folder: as `save_compressed` made it; or one of the Hub's cache, whose files are links to its blobs.

    Raises:
        OSError: if something in it is no regular file.
        ValueError: if a link leads out of it, or configuration or weights are damaged.
    """
    for path in sorted(folder.rglob("*")):
        _require_inside(path, folder)
    with told(folder / "config.json", "is damaged"):
        config = FactorizedConfig.from_dict(read_json(folder / "config.json")["quantization_config"])
    file = folder / (config.weights_file or WEIGHTS_NAME)
    files = [file]
    if file.suffix == ".json":
        with told(file, "is damaged"):
            files = [folder / name for name in sorted(set(read_json(file)["weight_map"].values()))]
    for shard in files:
        tensors_of(shard, folder)
    require_unchanged([str(shard) for shard in files], config.checksum)


def _require_inside(path: Path, folder: Path) -> None:
    if not path.is_dir():
        require_regular(path)
    root = folder.resolve()
    if not any(path.resolve().is_relative_to(place) for place in (root, root.parent.parent / "blobs")):
        raise ValueError(f"{path} leads out of the folder, to {path.resolve()}")
