"""Loading what is to be compressed: a checkpoint, one of sentence-transformers, or an adapter and its dense model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from heat_hf.encoders.checkpoints.adapter import has_adapter, load_merged
from heat_hf.encoders.checkpoints.names import pickled_weights
from heat_hf.encoders.checkpoints.sentence_encoder import SentenceEncoder, sentence_encoder
from heat_hf.encoders.checkpoints.tokenizer import FILES, load_tokenizer
from heat_hf.encoders.config import require_dense
from heat_hf.encoders.linears import model_class_of

# Options that count for configuration and tokenizer, too: where files are, and whether their code may run.
PLACE = ("revision", "token", "cache_dir", "local_files_only")
CODE = ("trust_remote_code", "code_revision")


@dataclass(frozen=True)
class Loaded:
    """A dense model in evaluation mode, and what belongs to it.

    Attributes:
        model: the model.
        tokenizer: None if the checkpoint has none.
        encoder: what sentence-transformers keeps beside it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    encoder: SentenceEncoder


def load_dense(
    model: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    model_class: Any = None,  # noqa: ANN401
    use_safetensors: bool | None = True,
    subfolder: str = "",
    **kwargs: Any,
) -> Loaded:
    """Load a dense checkpoint.

    Args:
        model: folder or Hub id.
        tokenizer: default: the checkpoint's own, if it has one.
        model_class: default: the class named in the checkpoint's config.json.
        use_safetensors: False is refused.
        subfolder: where the Transformer is; default: where modules.json says, or the checkpoint itself.
        **kwargs: for the model's `from_pretrained`; those in `PLACE` and `CODE` also for configuration and tokenizer.

    Raises:
        OSError: if there is no such checkpoint, or its weights are pickled.
        ValueError: if it is compressed or quantized, an adapter that cannot be merged, or pickled weights are asked for.
    """
    if use_safetensors is not None and not use_safetensors:
        raise ValueError("use_safetensors=False asks for pickled weights, which can run code: heat_hf reads safetensors alone")
    hub = {key: kwargs[key] for key in PLACE if key in kwargs}
    code = {key: kwargs[key] for key in CODE if key in kwargs}
    options = {key: value for key, value in kwargs.items() if key not in hub}
    if not subfolder and has_adapter(model, **hub):
        merged, base, words = load_merged(model, model_class, hub, **options)
        words_of = tokenizer or _load_tokenizer(words.name, {**words.hub, **code})
        return Loaded(merged.eval(), words_of, sentence_encoder(base.name, **base.hub))
    encoder = SentenceEncoder(subfolder) if subfolder else sentence_encoder(model, **hub)
    place = {**hub, **({"subfolder": encoder.subfolder} if encoder.subfolder else {})}
    config = AutoConfig.from_pretrained(model, **place, **code)
    require_dense(config)
    loaded = load_weights(model_class or model_class_of(config), model, {**place, **options})
    return Loaded(loaded.eval(), tokenizer or _load_tokenizer(model, {**place, **code}), encoder)


def load_weights(loader: Any, model: str | os.PathLike[str], options: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """What a class's `from_pretrained` returns for a checkpoint of safetensors.

    Args:
        loader: a class of Transformers, or one of its `Auto…` classes.
        model: folder or Hub id.
        options: of `from_pretrained`.

    Raises:
        OSError: if there is no such checkpoint, or its weights are pickled.
    """
    if not hasattr(loader, "_model_mapping"):  # only the Auto classes take it: others load no code
        options = {key: value for key, value in options.items() if key != "code_revision"}
    try:
        return loader.from_pretrained(model, use_safetensors=True, **options)
    except OSError as error:
        pickled = pickled_weights(model, **{key: options[key] for key in (*PLACE, "subfolder") if key in options})
        if pickled is None:
            raise
        raise OSError(
            f"{model} has its weights in {pickled}, a pickle, which can run code: heat_hf reads safetensors alone; "
            "load it with Transformers where you trust it, and save it with save_pretrained"
        ) from error


def _load_tokenizer(model: str | os.PathLike[str], options: Mapping[str, Any]) -> PreTrainedTokenizerBase | None:
    folder = Path(model) / options.get("subfolder", "")
    if folder.is_dir() and not any(os.path.lexists(folder / name) for name in FILES):
        return None
    return load_tokenizer(model, **options)
