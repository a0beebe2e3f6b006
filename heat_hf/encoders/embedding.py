"""A model's word embeddings: which module they are, how often tokens come in calibration data, and the ones of low rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from heat_hf.encoders.batches import Batch
from heat_hf.encoders.linears import resolve_names
from heat_hf.encoders.moments import OutputMoments, Unwatched, padding_mask, run_watched, spread
from heat_hf.encoders.statistics import GRADIENT_ROWS
from heat_hf.encoders.values import shown
from heat_hf.formats.embedding import FactorizedEmbedding, project_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IDS = "input_ids"


class Embedded(NamedTuple):
    """Word embeddings of low rank.

    Attributes:
        name: of the module.
        module: that takes the place of the dense one.
        error: see `Projected`.
    """

    name: str
    module: FactorizedEmbedding
    error: float


def word_embeddings(model: PreTrainedModel, rank: int) -> tuple[str, nn.Embedding]:
    """The module of a model's word embeddings, with its name.

    Args:
        model: dense.
        rank: that they are to get.

    Raises:
        ValueError: if they are no plain table, an output layer shares them, or that rank would not make them smaller.
    """
    try:
        found: Any = model.get_input_embeddings()
    except NotImplementedError as error:
        raise ValueError(f"embedding_rank is for models of words, {type(model).__name__} says of no embeddings") from error
    if type(found) is not nn.Embedding or found.max_norm is not None:
        raise ValueError(f"embedding_rank is for a plain nn.Embedding of words, {type(model).__name__} has {shown(found)}")
    output: Any = model.get_output_embeddings()
    if output is not None and output.weight is found.weight:
        raise ValueError(f"embedding_rank: {type(model).__name__} shares its word embeddings with its output layer")
    rows, width = found.weight.shape
    most = rows * width // (rows + width)
    if not rank <= most:
        raise ValueError(f"embedding_rank must be at most {most}, else {rows} × {width} embeddings get larger, got {rank}")
    return next(name for name, module in model.named_modules() if module is found), found


def tables_of(model: PreTrainedModel, ranks: Mapping[str, int]) -> dict[nn.Module, nn.Module]:
    """Dense word embeddings of a model → those of low rank, without memory, that a saved model has in their places.

    Args:
        model: with dense embeddings.
        ranks: name in the saved model → rank.

    Raises:
        ValueError: if the model has no such embeddings.
    """
    tables: dict[nn.Module, nn.Module] = {}
    for saved, name in resolve_names(model, ranks, kind=nn.Embedding).items():
        dense: Any = model.get_submodule(name)
        tables[dense] = FactorizedEmbedding(dense, ranks[saved], "meta")
    return tables


def token_counts(batches: Sequence[Batch], tokens: int) -> Tensor:
    """How often each token comes, padding left out; tokens that never do share what those that come once have (Good–Turing).

    Args:
        batches: model inputs.
        tokens: of the vocabulary.

    Raises:
        ValueError: if there are no token ids, or one that the vocabulary has not.
    """
    counts = torch.zeros(tokens, dtype=torch.float64)
    for batch in batches:
        if IDS not in batch:
            raise ValueError(f"embedding_rank needs calibration data with {IDS}, it has {', '.join(batch)}")
        mask, ids = padding_mask(batch), batch[IDS].cpu()
        read = ids.reshape(-1) if mask is None else ids[mask.cpu()]
        wrong = read[(read < 0) | (read >= tokens)]
        if len(wrong):
            raise ValueError(f"the calibration data has the token {int(wrong[0])}; the model has 0 to {tokens - 1}")
        counts += torch.bincount(read, minlength=tokens)
    once, never = float((counts == 1).sum()), int((counts == 0).sum())
    counts[counts == 0] = max(once, 1.0) / max(never, 1)
    return counts


def embed(model: PreTrainedModel, batches: Sequence[Batch], rank: int, gradients: bool = True, seed: int = 0) -> Embedded:
    """Word embeddings of low rank that fit calibration data; the model is not changed.

    Args:
        model: dense.
        batches: model inputs; an `attention_mask` marks padding.
        rank: r.
        gradients: whether errors that the model's outputs do not see cost little.
        seed: of the random directions in output space.

    Raises:
        ValueError: as `word_embeddings` and `token_counts`.
    """
    name, dense = word_embeddings(model, rank)
    counts, moment = token_counts(batches, dense.num_embeddings), None
    if gradients:
        chosen = [batches[number] for number in sorted(spread(batches, GRADIENT_ROWS))]
        outputs = OutputMoments(seed)
        run_watched(model, {name: dense}, chosen, Unwatched(), outputs, range(len(chosen)))
        moment = outputs.moments({name: dense})[name].cpu()
    projected = project_embeddings(dense.weight.cpu(), counts, moment, rank)
    module = FactorizedEmbedding(dense, rank)
    with torch.no_grad():
        module.low.weight.copy_(projected.low)
        module.up.weight.copy_(projected.up)
    return Embedded(name, module.train(dense.training), projected.error)
