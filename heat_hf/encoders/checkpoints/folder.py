"""A compressed model's folder: weights, configuration, tokenizer and whatever else belongs there, all or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heat_hf.encoders.checkpoints.storage import atomic_directory


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
