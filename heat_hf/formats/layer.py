"""The factorized layer: cores, bias and a frozen contraction plan in place of a dense weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from heat_hf.formats import SHARED, get_format
from heat_hf.formats.decomposition import Factorization
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.spectra import even_factors

DEFAULT_TOKENS = 128
PIVOTED = "pivoted"
# The linear inside that has the bias.
BIASED = {"low_rank": "left", "shared_basis": "left", "on_basis": "left", "fewer_outputs": "kept", "fewer_inputs": "kept"}


class FactorizedLinear(nn.Module):
    """y = x·W′ᵀ + b, with W′ held as the cores of a factorization (paper, section 2.1).

    Other libraries find in it what they know. A low-rank layer is two plain linears, `left(right(x))`: quantizers, adapters,
    pruning and offloading take them as any other. A pivoted layer is two as well: `right(x)` are the outputs of the pivots,
    `left(right(x))` all others, and `order` puts each in its place. A layer with fewer inputs or outputs is one smaller
    linear, `kept`. Of layers that share a basis, the first is two linears as well, and the others have `left` alone, which
    reads what the first one's `right` answers: see `heat_hf.encoders.bases`. The other formats hold their cores as the layer's
    own parameters, `core_0` and so on, and `bias`. Nothing is kept between forward passes, so weights may change in any way at
    any time.

    There is no `weight`: code that asks a dense layer for one fails instead of silently working on a copy. `reconstruct`
    returns W′.

    Attributes:
        setting: format, tensorization shape, rank and execution.
        active: the setting less the slices that `set_rank` leaves out.
        right, left: of a low-rank layer, linears from N to r without a bias, and from r to M; of a pivoted one from N to r and
            from r to M − r, both without; of a layer `on_basis`, the second alone.
        kept: of a layer with fewer outputs, a linear from N to k; with fewer inputs, from k to M.
        order: of a pivoted layer, which of these outputs is which row's; M integers.

    Args:
        setting: format, tensorization shape, rank and execution.
        bias: whether there is a bias of M elements.
        tokens: number of input rows for which the contraction path is chosen; any number can be run.
        device: of the parameters, as for `nn.Linear`.
        dtype: likewise.
    """

    def __init__(
        self,
        setting: TensorSetting,
        bias: bool = True,
        tokens: int = DEFAULT_TOKENS,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.setting = setting
        self.tokens = tokens
        self.in_features = setting.shape.columns
        self.out_features = setting.shape.rows
        linears = _linears(setting)
        for name, (rows, columns) in linears.items():
            self.add_module(name, _empty_linear(columns, rows, bias and name == BIASED.get(setting.format), device, dtype))
        if setting.format == PIVOTED:
            self.register_buffer("order", torch.arange(self.out_features, dtype=torch.int32, device=device))
        for number, extents in enumerate(() if linears else setting.core_shapes):
            self.register_parameter(f"core_{number}", nn.Parameter(torch.empty(extents, device=device, dtype=dtype)))
        if setting.format not in BIASED:
            self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        self.set_rank(None)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, setting: TensorSetting, factorization: Factorization, tokens: int = DEFAULT_TOKENS
    ) -> FactorizedLinear:
        """Take over a dense layer's bias, device and dtype, and the cores found for its weight."""
        layer = cls(setting, linear.bias is not None, tokens, linear.weight.device, linear.weight.dtype)
        with torch.no_grad():
            for parameter, core in zip(layer.cores, factorization.cores, strict=True):
                parameter.copy_(core)
            if layer.bias is not None:
                whole = len(layer.bias) == len(linear.bias)
                layer.bias.copy_(linear.bias if whole else linear.bias[list(factorization.kept or ())])
        layer.train(linear.training)
        return layer

    def converted(self, format: str) -> FactorizedLinear:
        """The same W′ and bias in a format of the same matrices: low_rank as pivoted, and back, then in `even_factors`.

        Raises:
            ValueError: if the formats stand for different matrices.
        """
        old, new = self.setting.codec, get_format(format)
        if old.solved_as.name != new.solved_as.name:
            raise ValueError(f"a {old.name} layer cannot be converted to {format!r}: decompose the dense weight instead")
        setting = TensorSetting(format, self.setting.shape, self.setting.rank, self.setting.execution)
        first = self.cores[0]
        layer = FactorizedLinear(setting, self.bias is not None, self.tokens, first.device, first.dtype)
        cores = [core.double() if core.is_floating_point() else core for core in self.cores]
        with torch.no_grad():
            factors = old.solved(cores)
            stored = new.stored(factors if format == PIVOTED else even_factors(*factors))
            for core, value in zip(layer.cores, stored, strict=True):
                core.copy_(value)
            if layer.bias is not None and self.bias is not None:
                layer.bias.copy_(self.bias)
        return layer.train(self.training)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """The bias may be that of a linear inside."""
        setting = self.__dict__.get("setting") if name == "bias" else None
        inside = None if setting is None else self.__dict__["_modules"].get(BIASED.get(setting.format))
        return super().__getattr__(name) if inside is None else inside.bias

    @property
    def cores(self) -> tuple[Tensor, ...]:
        """The cores, in the format's order; of quantized linears, the numbers that these compute with.

        Raises:
            ValueError: if a linear inside was replaced by something that is none, as an adapter.
        """
        inside = {name: self._modules[name] for name in _linears(self.setting)}
        if not inside:
            return tuple(getattr(self, f"core_{number}") for number in range(len(self.setting.core_shapes)))
        for name, child in inside.items():
            if not isinstance(child, nn.Linear):
                raise ValueError(
                    f"the linear {name!r} of a {self.setting.format.replace('_', '-')} layer is now a "
                    f"{type(child).__name__}, which has no plain weight: merge or remove adapters first, and quantize last"
                )
        cores = tuple(_dense(cast(nn.Linear, child).weight) for child in reversed(inside.values()))
        return (*cores, self.order) if self.setting.format == PIVOTED else cores

    def set_rank(self, rank: Sequence[int] | int | None, slices: Mapping[str, Tensor] | None = None, gain: float = 1.0) -> None:
        """Use only some slices of the cores from now on, as a SubNet of the Rank SuperNet does (section 2.2.2).

        Args:
            rank: a rank no larger than the setting's; None for all slices.
            slices: which slices, for einsum indices of ranks; default: the first ones.
            gain: factor of W′.

        Raises:
            ValueError: if it is not a valid rank of the shape, exceeds the setting's, or the format has one rank only.
        """
        active = self.setting
        if not self.setting.codec.sliceable and (rank, slices, gain) != (None, None, 1.0):
            raise ValueError(
                f"set_rank: a {self.setting.format} layer has one rank, {self.setting.rank}: use low_rank to cut ranks"
            )
        if rank is not None:
            active = TensorSetting(active.format, active.shape, rank, active.execution)  # type: ignore[arg-type]
            if any(new > old for new, old in zip(active.rank, self.setting.rank, strict=True)):
                raise ValueError(f"rank {active.rank} exceeds the layer's rank {self.setting.rank}")
        self.active = active
        self.slices = slices
        self.gain = gain
        self.plan = active.plan(self.tokens)
        for step in self.plan.steps + self.plan.precomputed:
            _ = step.groups  # sorted out here: a compiler cannot follow how these properties are kept

    def active_cores(self) -> tuple[Tensor, ...]:
        """The cores, cut to the active rank, the gain in the first one."""
        cores, codec, shape = self.cores, self.setting.codec, self.setting.shape
        if self.slices is not None:
            for position, indices in enumerate(codec.subscripts(shape).cores):
                for axis, index in enumerate(indices):
                    if index in self.slices:
                        cut = cores[position].index_select(axis, self.slices[index])
                        cores = (*cores[:position], cut, *cores[position + 1 :])
        elif self.active is not self.setting:
            cores = codec.truncate(cores, shape, self.active.rank)
        return cores if self.gain == 1.0 else (cores[0] * self.gain, *cores[1:])

    def reconstruct(self, basis: Tensor | None = None) -> Tensor:
        """The dense W′ of extents (M, N) at the active rank.

        Of a layer on tiles of t tokens, it is the matrix that takes a tile to its outputs, of extents (t·M, t·N).

        Args:
            basis: R, r×N, for a layer `on_basis`.
        """
        cores = self.active_cores()
        return self.setting.codec.reconstruct(cores if basis is None else (*cores, basis), self.setting.shape)

    def to_linear(self, basis: Tensor | None = None) -> nn.Linear:
        """A dense layer with the weight W′ and the same bias; `basis` as for `reconstruct`.

        Raises:
            ValueError: if there is no W′, because tokens depend on each other.
        """
        if not self.setting.codec.tokenwise:
            raise ValueError(
                f"a {self.setting.format} layer takes several tokens at once, so no dense layer does the same: keep it as it is"
            )
        with torch.no_grad():
            weight = self.reconstruct(basis)
            linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, weight.device, weight.dtype)
            linear.weight.copy_(weight)
            if self.bias is not None:
                linear.bias.copy_(nn.functional.pad(self.bias, (0, self.out_features - len(self.bias))))
        return linear.train(self.training)

    def forward(self, x: Tensor, inner: bool = False) -> Tensor:
        """Apply the layer to x of extents (…, N); the result has extents (…, M), or k in the place of either.

        Args:
            x: inputs. A layer with a shared basis also takes what its `right` makes of them, of extents (…, r); one `on_basis`
                takes this alone.
            inner: of a layer with a shared basis, answer what its `right` makes of x.

        Raises:
            ValueError: if only some slices are active (`set_rank`), and the linears of a low-rank layer are not plain ones.
        """
        if "kept" in self._modules:
            return self.kept(x)  # type: ignore[no-any-return]
        if inner:
            return self.right(x)  # type: ignore[no-any-return]
        if self.setting.format in SHARED:
            return self.left(self.right(x) if "right" in self._modules and x.shape[-1] == self.in_features else x)  # type: ignore[no-any-return]
        if self.setting.format == PIVOTED:
            return self._pivoted(self.right(x))
        if "left" in self._modules and self._through_linears():
            return self.left(self.right(x))  # type: ignore[no-any-return]
        return self.setting.codec.apply(self.plan, x, self.active_cores(), self.setting.shape, self.bias)

    def _pivoted(self, kept: Tensor) -> Tensor:
        """All outputs of a pivoted layer, of those of its pivots."""
        if _is_plain(self.left):
            # An identity is multiplied with in less time than it takes to move the products to their places, in PyTorch and
            # in the runtimes that models are exported to: these put it together once, when they load the file.
            eye = torch.eye(kept.shape[-1], dtype=self.left.weight.dtype, device=kept.device)
            return nn.functional.linear(kept, torch.cat((eye, self.left.weight)).index_select(0, self.order), self.bias)
        y = torch.cat((kept, self.left(kept)), -1).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias

    def _through_linears(self) -> bool:
        """Whether a low-rank layer calls its linears; it may read their weights itself only where calling does no more."""
        whole = self.active is self.setting and self.slices is None and self.gain == 1.0
        if whole and len(self.plan.steps) == 2 and not any(step.static for step in self.plan.steps):
            return True
        plain = _is_plain(self.right) and _is_plain(self.left)
        if not (whole or plain):
            raise ValueError(
                f"set_rank({list(self.active.rank)}) needs plain linears in a low-rank layer, without hooks, adapters or "
                "quantization: take these off, or call set_rank(None)"
            )
        return not plain

    def extra_repr(self) -> str:
        """Format, shape, rank and compression ratio."""
        s = self.active
        rank = "x".join(map(str, s.rank))
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"format={s.format}, shape={s.shape}, rank={rank}, execution={s.execution}, ratio={s.ratio:.3f}"
        )


def _linears(setting: TensorSetting) -> dict[str, tuple[int, int]]:
    """The linears inside a layer and the extents of their weights, in the order in which they run."""
    if setting.format in ("fewer_outputs", "fewer_inputs"):
        return {"kept": setting.core_shapes[0]}  # type: ignore[dict-item]
    if setting.format == "on_basis":
        return {"left": setting.core_shapes[0]}  # type: ignore[dict-item]
    if setting.format not in ("low_rank", "shared_basis", PIVOTED):
        return {}
    left, right = setting.core_shapes
    return {"right": right, "left": left}  # type: ignore[dict-item]


def _empty_linear(
    columns: int, rows: int, bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Linear:
    """A linear whose weights are not initialized: that would take time and random numbers."""
    linear = nn.Linear(columns, rows, bias, "meta", dtype)
    for name, parameter in list(linear.named_parameters()):  # registered anew: accelerate may want them without memory
        setattr(linear, name, nn.Parameter(torch.empty(parameter.shape, device=device, dtype=dtype)))
    return linear


def _dense(weight: Tensor) -> Tensor:
    """The weight itself, or the numbers that a quantized one (torchao's, quanto's) stands for."""
    own = type(weight).dequantize is not Tensor.dequantize
    return weight.dequantize() if own else weight


def _is_plain(linear: nn.Module) -> bool:
    """Whether calling a linear does no more than to multiply with its weight."""
    hooks = linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks or linear._backward_pre_hooks
    if type(linear) is not nn.Linear or hooks or "forward" in linear.__dict__:
        return False
    return type(linear.weight) in (nn.Parameter, Tensor, FakeTensor)  # the last while it is exported; quantized ones are none
