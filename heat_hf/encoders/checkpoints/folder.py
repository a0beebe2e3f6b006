"""A compressed model's folder: weights, configuration, tokenizer, report and card, all or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heat_hf.encoders.checkpoints.storage import atomic_directory
from heat_hf.reports.card import CARD_NAME

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from heat_hf.reports.compression import CompressionReport


def save_compressed(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    report: CompressionReport,
    save_directory: str | os.PathLike[str],
    overwrite: bool = False,
    card: ModelCard | None = None,
    files: Mapping[str, Path | bytes] | None = None,
    **kwargs: Any,
) -> None:
    """Save a compressed model; the directory appears whole or not at all.

    Args:
        model: the model.
        tokenizer: its tokenizer, or None.
        report: of its compression.
        save_directory: where.
        overwrite: whether to replace a non-empty directory there.
        card: goes to README.md.
        files: name in the directory → file to copy there, as the card's pictures, or content.
        **kwargs: for `save_pretrained`, for example `max_shard_size`.

    Raises:
        OSError: if the directory cannot be written.
    """
    with atomic_directory(save_directory, overwrite) as folder:
        model.save_pretrained(folder, **kwargs)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        report.save(folder)
        if card is not None:
            card.save(folder / CARD_NAME)
        for name, content in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.copyfile(content, folder / name)
