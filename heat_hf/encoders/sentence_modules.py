"""The modules that sentence-transformers puts behind a Transformer, in plain torch: poolings, Dense, and what follows them.

Features go from module to module in a dictionary, as there: `token_embeddings`, `attention_mask`, `sentence_embedding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from heat_hf.encoders.checkpoints.reading import parse_json, told, typed

Features = dict[str, Any]
TINY = 1e-9
WIDTHS = ("word_embedding_dimension", "embedding_dimension")  # one of them is in the configuration of every pooling
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # how checkpoints named modes before sentence-transformers 6, in the order of their vectors


def _first(mask: Tensor) -> Tensor:
    return mask.int().argmax(1)


def _token(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens[torch.arange(len(tokens), device=tokens.device), index]


def _max(tokens: Tensor, mask: Tensor, _: Tensor) -> Tensor:
    return tokens.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)


def _weighted(tokens: Tensor, mask: Tensor, weights: Tensor | None = None, root: bool = False) -> Tensor:
    """Σ w x / Σ w over the tokens that count, or over the root of their number."""
    precise = torch.float32 if tokens.dtype in (torch.float16, torch.bfloat16) else tokens.dtype
    share = mask.to(precise) if weights is None else mask.to(precise) * weights
    total = share.sum(1, keepdim=True).clamp_min(TINY)
    return ((tokens * share[..., None]).sum(1) / (total.sqrt() if root else total)).to(tokens.dtype)


def _weightedmean(tokens: Tensor, mask: Tensor, whole: Tensor) -> Tensor:
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)[None] - _first(whole)[:, None]
    return _weighted(tokens, mask, places)


def _lasttoken(tokens: Tensor, mask: Tensor, _: Tensor) -> Tensor:
    last = mask.shape[1] - 1 - _first(mask.flip(1))
    last = torch.where(mask.sum(1) == 0, torch.zeros_like(last), last)  # an empty row: zeros, see the factor
    return _token(tokens * mask[..., None].to(tokens.dtype), last)


POOLINGS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cls": lambda tokens, mask, _: _token(tokens, _first(mask)),
    "max": _max,
    "mean": lambda tokens, mask, _: _weighted(tokens, mask),
    "mean_sqrt_len_tokens": lambda tokens, mask, _: _weighted(tokens, mask, root=True),
    "weightedmean": _weightedmean,
    "lasttoken": _lasttoken,
}  # (tokens, mask without the prompt, mask) → one vector for each row


class Pooling(nn.Module):
    """One or several poolings of the tokens, one beside the other."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        named = typed(config, "pooling_mode", str, list)
        if named is None:
            named = [mode for flag, mode in POOLING_FLAGS.items() if typed(config, flag, bool)] or "mean"
        self.modes = [named] if isinstance(named, str) else named
        unknown = [mode for mode in self.modes if mode not in POOLINGS]
        if unknown:
            raise ValueError(f"unknown pooling mode {unknown[0]!r}; known are {', '.join(POOLINGS)}")
        self.include_prompt: bool = typed(config, "include_prompt", bool, default=True)

    def forward(self, features: Features) -> Features:
        """Adds `sentence_embedding`."""
        tokens, whole = features["token_embeddings"], features["attention_mask"]
        mask = whole
        if features.get("prompt_length") and not self.include_prompt:
            places = torch.arange(whole.shape[1], device=whole.device)[None]
            mask = whole * (places >= _first(whole)[:, None] + features["prompt_length"])
        vectors = [POOLINGS[mode](tokens, mask, whole) for mode in self.modes]
        return {**features, "sentence_embedding": torch.cat(vectors, -1)}


class Dense(nn.Module):
    """A linear layer and an activation, of the embedding or of what its configuration names."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        inputs, outputs = int(config["in_features"]), int(config["out_features"])
        self.linear = nn.Linear(inputs, outputs, bias=typed(config, "bias", bool, default=True))
        self.activation = _activation(typed(config, "activation_function", str, default="torch.nn.modules.activation.Tanh"))
        self.source = typed(config, "module_input_name", str) or "sentence_embedding"
        self.target = typed(config, "module_output_name", str) or self.source
        self.adds_input = typed(config, "use_residual", bool, default=False)
        if self.adds_input:
            self.residual = nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs, bias=False)

    def forward(self, features: Features) -> Features:
        """Replaces the embedding."""
        x = features[self.source].to(self.linear.weight.dtype)
        y = self.activation(self.linear(x))
        return {**features, self.target: y + self.residual(x) if self.adds_input else y}


class _Applied(nn.Module):
    """A module of torch on the embedding, under the name that its weights have in the checkpoint."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, module)

    def forward(self, features: Features) -> Features:
        x = features["sentence_embedding"]
        module = getattr(self, self.name)
        return {**features, "sentence_embedding": module(x.to(next((p.dtype for p in module.parameters()), x.dtype)))}


class _Unit(nn.Module):
    """Vectors of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


KNOWN: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "Pooling": Pooling,
    "Dense": Dense,
    "Normalize": lambda _: _Applied("unit", _Unit()),
    "LayerNorm": lambda config: _Applied("norm", nn.LayerNorm(int(config["dimension"]))),
    "Dropout": lambda config: _Applied("dropout_layer", nn.Dropout(float(config.get("dropout", 0.2)))),
}


def _activation(name: str) -> nn.Module:
    """A module of torch.nn by its full name; no other code is imported."""
    module = getattr(nn, name.rsplit(".", 1)[-1], None) if name.startswith("torch.nn.") else None
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise ValueError(f"activation_function must be a module of torch.nn, got {name!r}")
    return module()


def make_module(entry: Mapping[str, Any], files: Mapping[str, bytes]) -> nn.Module:
    """A module as its entry in modules.json and its files say.

    Raises:
        ValueError: if it is not known, or its configuration or weights are missing or not what they should be.
    """
    kind, path = require_known(entry.get("type", ""), KNOWN), entry.get("path", "")
    name = str(PurePosixPath(path, "config.json"))
    # On no device: memory is that of the weights, not what the configuration says.
    with told(f"the checkpoint's {name}", "is damaged"), torch.device("meta"):
        config = read_json(files, name)
        module = KNOWN[kind](config)
        if kind == "Pooling" and not any(typed(config, width, int) for width in WIDTHS):
            raise ValueError(f"it has no {WIDTHS[0]}")
    if module.state_dict():
        _load(module, path, files)
    return module


def _load(module: nn.Module, path: str, files: Mapping[str, bytes]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    name = str(PurePosixPath(path, "model.safetensors"))
    if name not in files:
        raise ValueError(f"the checkpoint has no {name}: save it again with sentence-transformers, as safetensors")
    try:
        module.load_state_dict(load(files[name]), assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{name} does not hold the weights of the checkpoint's module {path!r}") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in module.parameters()):
        raise ValueError(f"{name} has weights that are not finite")
    module.float()


def require_known(kind: str, known: Iterable[str]) -> str:
    """The class that a module's type names; ValueError if it is none of sentence-transformers that is known."""
    name = kind.rsplit(".", 1)[-1]
    if not kind.startswith("sentence_transformers.") or name not in known:
        raise ValueError(
            f"the checkpoint's embeddings pass a module {kind!r} that heat_hf does not know; known are {', '.join(known)}"
        )
    return name


def read_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A file of the checkpoint; empty if it has none of this name."""
    return parse_json(files[name], f"the checkpoint's {name}") if name in files else {}
