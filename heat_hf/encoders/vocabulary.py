"""A smaller vocabulary: the tokens that a corpus has, and the rows of embeddings and output layers that are theirs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from heat_hf.encoders.checkpoints.storage import temporary_directory
from heat_hf.encoders.config import require_dense
from heat_hf.encoders.values import brief

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 1000  # texts
TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
KINDS = ("WordPiece", "Unigram")
PIECES = "##▁"  # marks of a token inside a word, or at its beginning


def trim_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> PreTrainedTokenizerBase:
    """Leave a model with the tokens that some texts have, all special ones, and all of one character.

    Texts that have no others are tokenized as before, and the model answers as before, bit by bit. In other texts, a word whose
    token is gone is spelled with shorter ones.

    Args:
        model: dense; its embeddings, and its output layer if it has one, are made smaller in place.
        tokenizer: its own, of WordPiece or Unigram: byte-pair encoding builds tokens from others, which all have to stay.
        texts: as the model will be given, prompts included.

    Returns:
        The tokenizer with fewer tokens; the given one stays as it is.

    Raises:
        ValueError: if the model is compressed, the tokenizer is of another kind, there are no texts, or fewer tokens change how
            one of the texts is cut. The model is then as it was.
    """
    require_dense(model.config)
    content = _content(tokenizer)
    if not len(texts):
        raise ValueError("there are no texts: give some that have the tokens which are to stay")
    before = list(_ids(tokenizer, texts))
    kept = sorted(_always(tokenizer, content).union(*before))
    embeddings: Any = model.get_input_embeddings()
    rows = len(embeddings.weight)
    if kept[-1] >= rows:
        raise ValueError(f"the tokenizer has the token {kept[-1]}, the model has the tokens 0 to {rows - 1}")
    places = {old: new for new, old in enumerate(kept)}
    _require_same_padding(model, places)
    smaller = _rebuilt(tokenizer, content, places)
    for text, old, new in zip(texts, before, _ids(smaller, texts), strict=True):
        if [places[token] for token in old] != new:
            raise ValueError(f"with fewer tokens the tokenizer cuts {brief(text)!r} in another way: it cannot be trimmed")
    _trim(model, places)
    return smaller


def _content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What tokenizer.json has."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    kind = content.get("model", {}).get("type", type(tokenizer).__name__)
    if kind not in KINDS:
        raise ValueError(f"the vocabulary of a {' or '.join(KINDS)} tokenizer can be trimmed, this one is of {kind}")
    return content


def _always(tokenizer: PreTrainedTokenizerBase, content: Mapping[str, Any]) -> set[int]:
    """Tokens that stay whatever the texts are: special ones, and those of one character."""
    special = {token["id"] for token in content["added_tokens"]} | set(tokenizer.all_special_ids)
    return special | {number for token, number in _vocabulary(content).items() if len(token.strip(PIECES)) <= 1}


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[list[int]]:
    """Tokens of each text."""
    for first in range(0, len(texts), BATCH):
        yield from tokenizer(list(texts[first : first + BATCH]), truncation=False, verbose=False)["input_ids"]


def _vocabulary(content: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = content["model"]["vocab"]
    return {token: number for number, (token, _) in enumerate(vocabulary)} if isinstance(vocabulary, list) else vocabulary


def _require_same_padding(model: PreTrainedModel, places: Mapping[int, int]) -> None:
    """Some models number positions from the padding token's number on."""
    padding = model.config.pad_token_id
    if padding is not None and places.get(padding) != padding:
        raise ValueError(f"the padding token {padding} must keep its number, and tokens before it are not in the texts")


def _rebuilt(tokenizer: PreTrainedTokenizerBase, content: dict[str, Any], places: Mapping[int, int]) -> PreTrainedTokenizerBase:
    """The tokenizer with tokens at their new places, as it loads from a folder."""
    from transformers import AutoTokenizer

    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, list):
        content["model"]["vocab"] = [vocabulary[old] for old in places if old < len(vocabulary)]
        if content["model"].get("unk_id") is not None:
            content["model"]["unk_id"] = places[content["model"]["unk_id"]]
    else:
        content["model"]["vocab"] = {token: places[old] for token, old in vocabulary.items() if old in places}
    for token in content["added_tokens"]:
        token["id"] = places[token["id"]]
    for processor in _processors(content["post_processor"]):
        _renumber(processor, places)
    with temporary_directory() as folder:
        tokenizer.save_pretrained(folder)
        for file in folder.iterdir():
            if file.name not in (TOKENIZER, SETTINGS):
                file.unlink()
        (folder / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        _renumber_settings(folder / SETTINGS, places)
        smaller: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    smaller.name_or_path = tokenizer.name_or_path
    return smaller


def _processors(processor: dict[str, Any] | None) -> Iterable[dict[str, Any]]:
    return () if processor is None else processor.get("processors", [processor])


def _renumber(processor: dict[str, Any], places: Mapping[int, int]) -> None:
    """Tokens that are put around a text."""
    for name in ("sep", "cls"):  # of BERT's and RoBERTa's: token and number
        if isinstance(processor.get(name), list):
            processor[name][1] = places[processor[name][1]]
    for token in (processor.get("special_tokens") or {}).values():
        token["ids"] = [places[old] for old in token["ids"]]


def _renumber_settings(file: Path, places: Mapping[int, int]) -> None:
    settings = json.loads(file.read_text(encoding="utf-8"))
    if "added_tokens_decoder" in settings:
        decoder = settings["added_tokens_decoder"].items()
        settings["added_tokens_decoder"] = {str(places[int(old)]): token for old, token in decoder}
    file.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")


def _trim(model: PreTrainedModel, places: Mapping[int, int]) -> None:
    """Rows of kept tokens first, the others cut off; numbers of special tokens in the configuration follow."""
    order = torch.tensor(list(places))
    layers = {id(layer): layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None}
    moved: set[int] = set()  # weights that two layers share move once
    with torch.no_grad():
        for parameter in (own for layer in layers.values() for own in layer.parameters(recurse=False)):
            if parameter.data_ptr() not in moved:
                parameter[: len(order)] = parameter[order.to(parameter.device)]
                moved.add(parameter.data_ptr())
    model.resize_token_embeddings(len(places))
    for name, value in model.config.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(model.config, name, places.get(value))
    embeddings = model.get_input_embeddings()
    if isinstance(embeddings, nn.Embedding) and embeddings.padding_idx is not None:
        embeddings.padding_idx = places.get(embeddings.padding_idx)
