"""Query, key and value on one basis: an attention module projects its input once, and its three layers read that.

Nothing is kept between forward passes: the projection is a forward pre-hook of the attention module, a function that pickles,
and it calls the layer that holds the basis for what its `right` makes of the input. So whatever else is done to that layer or
linear (adapters, quantization, offloading, sharding) is done to the basis of all three. A forward hook on that layer sees both
calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from heat_hf.formats import SHARED
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.shared import MEMBERS

INPUT = "hidden_states"  # what attention modules call their input where it is given by name


def project_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Forward pre-hook of an attention module: its layers read the products of its input with their basis."""
    layer = _holder(module)
    if layer is None:
        return None
    if args:
        return (layer(args[0], inner=True), *args[1:]), kwargs
    return args, {**kwargs, INPUT: layer(kwargs[INPUT], inner=True)}


def hook_projection(module: nn.Module) -> None:
    """Let a module project its input if one of its own layers holds a basis, else not; doing it again changes nothing."""
    hooks = [key for key, hook in module._forward_pre_hooks.items() if hook is project_input]
    if _holder(module) is None:
        for key in hooks:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
    elif not hooks:
        module.register_forward_pre_hook(project_input, with_kwargs=True)


def _holder(module: nn.Module) -> FactorizedLinear | None:
    for child in module.children():
        if isinstance(child, FactorizedLinear) and child.setting.format == "shared_basis":
            return child
    return None


def basis_of(layers: Mapping[str, FactorizedLinear], name: str) -> Tensor | None:
    """The basis that a layer `on_basis` reads, r×N, which a layer beside it holds; None for layers of other formats.

    Args:
        layers: by module name.
        name: of one of them.

    Raises:
        ValueError: if the layer that holds the basis is not among them.
    """
    if layers[name].setting.format != "on_basis":
        return None
    owner = name.rpartition(".")[0]
    for other, layer in layers.items():
        if other.rpartition(".")[0] == owner and layer.setting.format == "shared_basis":
            return layer.cores[1]
    raise ValueError(f"{name} is on a basis that no layer beside it holds")


def require_groups(groups: Iterable[tuple[str, ...]], settings: Mapping[str, TensorSetting | None]) -> None:
    """Make sure that query, key and value share a basis together, or not at all.

    Args:
        groups: names of the query, key and value of the attention blocks that can.
        settings: of all matrices.

    Raises:
        ValueError: if a matrix shares a basis without the others of its group, with another rank, or is in no group.
    """
    left = {name: s for name, s in settings.items() if s is not None and s.format in SHARED}
    for names in groups:
        members = [left.get(name) for name in names]
        if [s and s.format for s in members] == list(MEMBERS) and len({s and (s.rank, s.shape.columns) for s in members}) == 1:
            left = {name: s for name, s in left.items() if name not in names}
    for name, setting in left.items():
        raise ValueError(
            f"{name} cannot get {setting.format} of rank {setting.rank[0]}: query, key and value of an attention block must "
            "get a basis together, of the same rank"
        )
