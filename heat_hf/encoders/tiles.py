"""Tiles of tokens in a model: its base model says to the layers inside which tokens are padding, in every forward pass.

The base model alone is given the attention mask as rows × tokens; blocks and linears see it in other forms, or not at all. Two
hooks, functions that pickle, tell `heat_hf.formats.tiles` of it before the forward pass, and that it is over after.

Layers may share what encodes and decodes tiles: it is then one parameter of all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.strassen_tile import ENCODERS, SCOPES, sharing
from heat_hf.formats.tiles import begin, end

MASK = "attention_mask"  # what base models call it; the second argument of all families


def begin_tokens(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a base model.

    Raises:
        ValueError: if padding comes first, the mask is not rows × tokens, or the forward pass will be run again in parts.
    """
    tokens: Tensor | None = None
    try:
        if module.training and any(getattr(child, "gradient_checkpointing", False) for child in module.modules()):
            raise ValueError(
                "strassen_tile layers do not work with gradient checkpointing: call gradient_checkpointing_disable()"
            )
        tokens = _tokens(kwargs.get(MASK, args[1] if len(args) > 1 else None))
    finally:
        begin(tokens)  # what is called after errors, too, ends it


def end_tokens(_module: nn.Module, _args: tuple[Any, ...], _output: object) -> None:
    """Forward hook of a base model, called after errors, too."""
    end()


def _tokens(mask: Tensor | None) -> Tensor | None:
    """True for tokens that are no padding; None where all count."""
    if mask is None:
        return None
    if mask.dim() != 2:
        raise ValueError(f"strassen_tile layers need an attention_mask of rows × tokens, got extents {tuple(mask.shape)}")
    tokens = mask.bool()
    if torch.compiler.is_compiling():  # what follows looks at values
        return tokens
    if not tokens[:, :1].all():
        raise ValueError(
            "strassen_tile layers need padding at the right, so that a sequence's tiles do not depend on it: set the "
            "tokenizer's padding_side to 'right'"
        )
    return tokens


def hook_tokens(model: nn.Module) -> None:
    """Let a model of Transformers tell its layers of padding if one takes tiles, else not; doing it again changes nothing."""
    if not hasattr(model, "base_model_prefix"):
        return
    base: Any = getattr(model, str(model.base_model_prefix), model)
    tiled = bool(_tiled(base))
    hooked = [key for key, hook in base._forward_pre_hooks.items() if hook is begin_tokens]
    if tiled and not hooked:
        base.register_forward_pre_hook(begin_tokens, with_kwargs=True)
        base.register_forward_hook(end_tokens, always_call=True)
    elif hooked and not tiled:
        for hooks in (base._forward_pre_hooks, base._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (begin_tokens, end_tokens)]:
                hooks.pop(key)
                for kind in (base._forward_pre_hooks_with_kwargs, base._forward_hooks_always_called):
                    kind.pop(key, None)


def encoded_weights(model: nn.Module) -> set[nn.Parameter]:
    """The encoded weights of a model's layers on tiles: what is trained in the place of a matrix, less what encodes tokens."""
    return {layer.get_parameter(f"core_{layer.setting.codec.scalable}") for layer in _tiled(model)}


def share_encoders(model: nn.Module, scope: str | None) -> None:
    """Make E_X and D one parameter of all layers on tiles that share them; what is offloaded stays as it is.

    Args:
        model: whose layers on tiles have the same values there already.
        scope: "size", "model", or None, which shares nothing.

    Raises:
        ValueError: if values differ.
    """
    first: dict[tuple[int, ...], FactorizedLinear] = {}
    for layer in _tiled(model) if scope is not None else ():
        source = first.setdefault(sharing(layer.setting.shape, layer.setting.rank, str(scope)), layer)
        for place in ENCODERS:
            name, (own, shared) = f"core_{place}", (part.get_parameter(f"core_{place}") for part in (layer, source))
            if own.is_meta or shared.is_meta:
                continue
            if not torch.equal(own, shared):
                raise ValueError(f"layers that share encoders differ in {name}: the compressed checkpoint is damaged")
            layer.register_parameter(name, shared)


def shared_encoders(model: nn.Module, known: str | None = None) -> str | None:
    """The widest scope in which all layers on tiles share E_X and D; None if they share nothing.

    Args:
        model: whose layers they are.
        known: what its configuration says, which counts where some are offloaded.
    """
    layers = _tiled(model)
    if any(parameter.is_meta for layer in layers for parameter in layer.parameters()):
        return known
    for scope in reversed(SCOPES):
        groups: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
        for layer in layers:
            held = tuple(id(layer.get_parameter(f"core_{place}")) for place in ENCODERS)
            groups.setdefault(sharing(layer.setting.shape, layer.setting.rank, scope), set()).add(held)
        if len(groups) < len(layers) and all(len(held) == 1 for held in groups.values()):
            return scope
    return None


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which layers have encoders of their own: files hold every tensor once for each name."""
    names = tuple(f".core_{place}" for place in ENCODERS)
    return {name: tensor.clone() if name.endswith(names) else tensor for name, tensor in tensors.items()}


def _tiled(model: nn.Module) -> list[FactorizedLinear]:
    layers = (module for module in model.modules() if isinstance(module, FactorizedLinear))
    return [layer for layer in layers if not layer.setting.codec.tokenwise]
