"""Where a model's encoder linears are: model families, name patterns, and swapping layers in place."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heat_hf.encoders.bases import hook_projection
from heat_hf.encoders.tiles import hook_tokens
from heat_hf.formats.embedding import FactorizedEmbedding
from heat_hf.formats.layer import FactorizedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_CALLED: dict[type[nn.Module], str] = {nn.Linear: "linear layer", nn.Embedding: "embedding"}
# Names of a family's Transformer blocks, relative to the base model. Their linears are factorized; embeddings, poolers and
# heads are not (paper, section 4).
BERT_BLOCKS = r"encoder\.layer\.\d+\."
BLOCKS = {
    "bert": BERT_BLOCKS,
    "distilbert": r"transformer\.layer\.\d+\.",
    "roberta": BERT_BLOCKS,
    "xlm-roberta": BERT_BLOCKS,
    "camembert": BERT_BLOCKS,
    "electra": BERT_BLOCKS,
    "mpnet": BERT_BLOCKS,
    "deberta-v2": BERT_BLOCKS,
    "albert": r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+\.",
    "modernbert": r"layers\.\d+\.",
}


def base_prefix(model: PreTrainedModel) -> str:
    """What the base model's module names start with inside this model: "bert." under a head, "" in a headless model."""
    prefix = model.base_model_prefix
    return f"{prefix}." if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""


def block_pattern(model: PreTrainedModel) -> str:
    """Regular expression for the names of modules in the model's Transformer blocks.

    Raises:
        ValueError: for an unknown family.
    """
    family = model.config.model_type
    if family not in BLOCKS:
        raise ValueError(
            f"unknown model family {family!r}: name its linears with modules=[pattern, …] (known families: {', '.join(BLOCKS)})"
        )
    return f"^{re.escape(base_prefix(model))}{BLOCKS[family]}"


def encoder_linears(
    model: PreTrainedModel, modules: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> dict[str, nn.Linear]:
    """The linear layers to factorize, by module name, shared layers once.

    Args:
        model: a Transformers model, with or without a head.
        modules: regular expressions searched in module names; default: the blocks of the model's family.
        exclude: regular expressions of linears to leave out.

    Raises:
        ValueError: for an unknown family without `modules`, an invalid pattern, one that matches no linear, or if nothing is
            left to factorize.
    """
    # Subclasses are left alone: their owners (as nn.MultiheadAttention does) may read `weight` without calling them.
    linears = {name: module for name, module in dense_linears(model).items() if type(module) is nn.Linear}
    if not linears:
        raise ValueError(f"{type(model).__name__} has no linear layers to factorize")
    if modules is None:
        modules = [block_pattern(model)]
    chosen = {name for pattern in modules for name in _matching("modules", pattern, linears)}
    chosen -= {name for pattern in exclude for name in _matching("exclude", pattern, linears)}
    if not chosen:
        raise ValueError("no linear layer is left to factorize: every match of `modules` is also in `exclude`")
    return {name: linear for name, linear in linears.items() if name in chosen}


def dense_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """All linear layers by module name, shared ones once, less those that are the cores of a layer or of word embeddings."""
    factorized = (module for module in model.modules() if isinstance(module, (FactorizedLinear, FactorizedEmbedding)))
    cores = {child for module in factorized for child in module.children()}
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module not in cores}


def _matching(argument: str, pattern: str, names: Iterable[str]) -> list[str]:
    try:
        matching = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise ValueError(f"{argument} has an invalid regular expression {pattern!r}: {error}") from error
    if not matching:
        examples = ", ".join(list(names)[:3])
        raise ValueError(f"{argument} pattern {pattern!r} matches no linear layer; their names look like {examples}")
    return matching


def weights_digest(linears: Mapping[str, nn.Linear]) -> str:
    """Digest of the weights of several layers, in their order; names do not matter."""
    return tensors_digest(linear.weight for linear in linears.values())


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """Digest of tensors' extents, types and bytes, in their order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def runs(config: PreTrainedConfig, name: str) -> int:
    """How often a forward pass runs a module: ALBERT's groups of layers are shared by its blocks."""
    groups = getattr(config, "num_hidden_groups", None)
    return config.num_hidden_layers // groups if groups and "albert_layer_groups" in name else 1


def block_of(name: str) -> str:
    """Name of the Transformer block a module is in; modules outside any numbered block are their own."""
    match = re.match(r".*?\.?\d+(?=\.)", name)
    return match.group() if match else name


def by_block(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of modules by the block that they are in."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(block_of(name), []).append(name)
    return blocks


def kind_of(name: str) -> str:
    """What a module is within its block."""
    return name[len(block_of(name)) :].lstrip(".") or name


def swap_modules(model: nn.Module, pairs: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules wherever others are in the model, shared uses included; modules around them do for them what they need.

    Those beside a basis project their input, and a base model of layers on tiles says which tokens are padding.

    Args:
        model: in which `pairs` are swapped in one walk.
        pairs: old module → new one; old ones that are not there are passed over.
    """
    for parent in list(model.modules()):
        swapped = {child: pairs[module] for child, module in parent._modules.items() if module is not None and module in pairs}
        for child, new in swapped.items():
            setattr(parent, child, new)
        if any(isinstance(new, FactorizedLinear) for new in swapped.values()):
            # Some models initialize a child's `weight` from its parent; loaded cores need no initialization. What holds word
            # embeddings does: positions are no part of a checkpoint.
            parent._is_hf_initialized = True  # type: ignore[assignment]
        if swapped:
            hook_projection(parent)
    hook_tokens(model)


def resolve_names(
    model: PreTrainedModel,
    names: Iterable[str],
    what: str = "the compressed checkpoint",
    kind: type[nn.Module] = nn.Linear,
) -> dict[str, str]:
    """Map tensor names of a saved model to module names of this one.

    The classes may differ: a checkpoint saved with a head loads headless and the other way round, so names are tried with and
    without the base model's prefix. Names outside the base model that this class lacks belong to another head.

    Args:
        model: with dense layers.
        names: of modules in a saved model.
        what: has these names, for the message.
        kind: of these modules, `nn.Linear` or `nn.Embedding`.

    Returns:
        Saved name → name here, without names of other heads.

    Raises:
        ValueError: if a name of the base model is not found.
    """
    known = dense_linears(model) if kind is nn.Linear else dict(model.named_modules())
    there = {name for name, module in known.items() if type(module) is kind}
    prefix = f"{model.base_model_prefix}."
    here = base_prefix(model)
    resolved, missing = {}, []
    for name in names:
        candidates = (name, here + name.removeprefix(prefix), name.removeprefix(prefix))
        match = next((candidate for candidate in candidates if candidate in there), None)
        if match:
            resolved[name] = match
        else:
            missing.append(name)
    blocks = BLOCKS.get(model.config.model_type, r"(?!)")  # without a prefix in what was saved headless
    lost = [name for name in missing if name.startswith(prefix) or re.match(blocks, name) or not resolved]
    if lost:
        raise ValueError(
            f"{what} does not fit {type(model).__name__}: it has no {_CALLED[kind]} {lost[0]!r} ({len(lost)} such names)"
        )
    return resolved


def factorized_embeddings(model: nn.Module) -> dict[str, FactorizedEmbedding]:
    """All word embeddings of low rank by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FactorizedEmbedding)}


def embedding_ranks(model: nn.Module) -> dict[str, int] | None:
    """Their ranks by module name, as a saved model carries them; None where there are none."""
    return {name: module.rank for name, module in factorized_embeddings(model).items()} or None


def factorized_layers(model: nn.Module) -> dict[str, FactorizedLinear]:
    """All factorized layers by module name, shared ones once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FactorizedLinear)}


def model_class_of(config: Any) -> Any:  # noqa: ANN401
    """The Transformers class that a checkpoint's configuration names; `AutoModel` if it names none that is known.

    A class of the checkpoint's own code is loaded by the `Auto…` class that its configuration says.
    """
    import transformers

    name = (getattr(config, "architectures", None) or ["AutoModel"])[0]
    own = {str(place).rpartition(".")[2]: auto for auto, place in (getattr(config, "auto_map", None) or {}).items()}
    found = getattr(transformers, own.get(name, name), None)
    models = isinstance(found, type) and (issubclass(found, transformers.PreTrainedModel) or hasattr(found, "_model_mapping"))
    return found if models else transformers.AutoModel
