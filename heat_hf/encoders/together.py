"""Matrices that get their settings together or not at all: those on either side of neurons or heads, those on one basis.

Which they are follows from the family of the encoder that they are in, whatever model may be around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from heat_hf.encoders.bases import require_groups
from heat_hf.encoders.linears import BERT_BLOCKS, BLOCKS, base_prefix, dense_linears
from heat_hf.formats import PAIRED
from heat_hf.formats.setting import Settings, TensorSetting
from heat_hf.formats.shape import TensorShape
from heat_hf.formats.size import MatrixSize

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Of a block's feed-forward network, the linear that widens and the one that reads it, with an activation between them that
# takes each neuron by itself. ModernBERT's multiplies neurons with each other.
INNER = {
    "distilbert": ("ffn.lin1", "ffn.lin2"),
    "albert": ("ffn", "ffn_output"),
    **{family: ("intermediate.dense", "output.dense") for family, blocks in BLOCKS.items() if blocks == BERT_BLOCKS},
}

# Of a block's attention, the query, key and value of a module that does nothing else with its input. ALBERT's adds it to the
# result, DeBERTa's has relative positions go through the same linears, and ModernBERT's three are one linear already.
ATTENTION = {
    "distilbert": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "mpnet": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra"),
        ("attention.self.query", "attention.self.key", "attention.self.value"),
    ),
}

# Of a block's attention, its query, key, value and output, where the number of heads is read from what the first three answer.
# MPNet adds a bias of all heads, DeBERTa names their number, and ModernBERT's three are one linear.
_BERT_HEADS = (*ATTENTION["bert"], "attention.output.dense")
HEADS = {
    "distilbert": (*ATTENTION["distilbert"], "attention.out_lin"),
    "albert": ("attention.query", "attention.key", "attention.value", "attention.dense"),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT_HEADS),
}


def inner_pairs(model: PreTrainedModel, names: Iterable[str]) -> list[tuple[str, ...]]:
    """Of the named linears, those that widen a feed-forward network, each with the one that reads it."""
    return _together(model, names, INNER)


def attention_groups(model: PreTrainedModel, names: Iterable[str]) -> list[tuple[str, ...]]:
    """Of the named linears, the query, key and value of attention modules that can have a basis together."""
    return _together(model, names, ATTENTION)


def head_groups(model: PreTrainedModel, names: Iterable[str]) -> dict[tuple[str, ...], int]:
    """Of the named linears, the query, key, value and output of attentions that can lose heads → the outputs of a head."""
    groups = _together(model, names, HEADS)
    owners: dict[tuple[str, ...], Any] = {group: model.get_submodule(group[0].rpartition(".")[0]) for group in groups}
    return {group: owner.attention_head_size for group, owner in owners.items()}


def width_groups(model: PreTrainedModel, names: Iterable[str]) -> dict[tuple[str, ...], int]:
    """Of the named linears, those that can get narrower together → neurons that only go together: 1, or those of a head."""
    known = list(names)
    return dict.fromkeys(inner_pairs(model, known), 1) | head_groups(model, known)


def _together(model: PreTrainedModel, names: Iterable[str], members: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Those of the names that are a family's members within a block, where all of these are there."""
    known, groups = dict.fromkeys(names), dict[tuple[str, ...], None]()
    for before, config in encoders(model):
        first, *others = members.get(config.model_type, ("",))
        found = (match for name in known if first and (match := re.fullmatch(f"({before}){re.escape(first)}", name)))
        groups |= dict.fromkeys((match[0], *(match[1] + other for other in others)) for match in found)
    return [group for group in groups if known.keys() >= set(group)]


def encoders(model: PreTrainedModel) -> Iterator[tuple[str, PreTrainedConfig]]:
    """What names in blocks match, and the configuration, of the model and of every model inside it, if its family is known."""
    for name, module in model.named_modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "model_type", None) in BLOCKS and hasattr(module, "base_model_prefix"):
            prefix = f"{name}." if name else ""
            yield re.escape(prefix + base_prefix(module)) + BLOCKS[config.model_type], config


def narrowed(sizes: Sequence[MatrixSize], width: int) -> tuple[TensorSetting, ...]:
    """Settings of matrices with so many neurons between the last one and all others."""
    names = (*["fewer_outputs"] * (len(sizes) - 1), "fewer_inputs")
    return tuple(TensorSetting(name, TensorShape.matrix(*size), (width,)) for name, size in zip(names, sizes, strict=True))


def require_together(model: PreTrainedModel, settings: Settings) -> None:
    """Make sure that neurons or heads go from all matrices beside them, or from none, and likewise that a basis is shared.

    Args:
        model: dense.
        settings: by name.

    Raises:
        ValueError: if a matrix with fewer inputs or outputs lacks partners of the same width, or a part of a head stays; and
            as `require_groups`.
    """
    linears = dense_linears(model)
    _require_widths(width_groups(model, linears), settings)
    require_groups(attention_groups(model, linears), settings)


def _require_widths(groups: Mapping[tuple[str, ...], int], settings: Settings) -> None:
    left = {name: setting for name, setting in settings.items() if setting is not None and setting.format in PAIRED}
    for names, size in groups.items():
        members = [left[name] for name in names if name in left]
        width = members[-1].rank[0] if members else 0
        whole = len(members) == len(names) and width % size == 0
        if whole and tuple(members) == narrowed([setting.size for setting in members], width):
            left = {name: setting for name, setting in left.items() if name not in names}
    for name, setting in left.items():
        size = next((size for names, size in groups.items() if name in names), 1)
        others = (
            "the other matrix of its feed-forward network must get the same width"
            if size == 1
            else f"query, key, value and output of an attention must get the same width together, a multiple of {size}"
        )
        raise ValueError(f"{name} cannot get {setting.format} of width {setting.rank[0]}: {others}")
