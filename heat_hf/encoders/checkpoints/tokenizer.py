"""A checkpoint's tokenizer: what its library raises for a damaged one, bare exceptions too, is one sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heat_hf.encoders.checkpoints.reading import require_readable, told

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("tokenizer.json", "tokenizer_config.json")


def load_tokenizer(model: str | os.PathLike[str], **options: Any) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer.

    Args:
        model: folder or Hub id.
        **options: for `AutoTokenizer.from_pretrained`.

    Raises:
        OSError, ValueError: if it has none, or one that is damaged.
    """
    from transformers import AutoTokenizer

    for path in (Path(model, options.get("subfolder") or "", name) for name in FILES):
        if os.path.lexists(path):
            require_readable(path)
    with told(model, "has a tokenizer that cannot be used"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model, **options)
        tokenizer(["a", "b c"], padding=tokenizer.pad_token is not None, truncation=True)
    return tokenizer
