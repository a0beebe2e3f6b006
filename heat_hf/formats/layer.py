"""The factorized layer: cores, bias and a frozen contraction plan in place of a dense weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from heat_hf.formats.decomposition import Factorization
from heat_hf.formats.setting import TensorSetting

DEFAULT_TOKENS = 128


class FactorizedLinear(nn.Module):
    """y = x·W′ᵀ + b, with W′ held as the cores of a factorization (paper, section 2.1).

    There is no `weight`: code that asks a dense layer for one fails instead of silently working on a copy. `reconstruct`
    returns W′.

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
        self.cores = nn.ParameterList(
            [nn.Parameter(torch.empty(extents, device=device, dtype=dtype)) for extents in setting.core_shapes]
        )
        self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        self._folded: tuple[object, dict[int, Tensor]] | None = None
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
                layer.bias.copy_(linear.bias)
        layer.train(linear.training)
        return layer

    def set_rank(self, rank: Sequence[int] | int | None, slices: Mapping[str, Tensor] | None = None, gain: float = 1.0) -> None:
        """Use only some slices of the cores from now on, as a SubNet of the Rank SuperNet does (section 2.2.2).

        Args:
            rank: a rank no larger than the setting's; None for all slices.
            slices: which slices, for einsum indices of ranks; default: the first ones.
            gain: factor of W′.

        Raises:
            ValueError: if it is not a valid rank of the shape, or exceeds the setting's.
        """
        active = self.setting
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
        cores, codec, shape = tuple(self.cores), self.setting.codec, self.setting.shape
        if self.slices is not None:
            for position, indices in enumerate(codec.subscripts(shape).cores):
                for axis, index in enumerate(indices):
                    if index in self.slices:
                        cut = cores[position].index_select(axis, self.slices[index])
                        cores = (*cores[:position], cut, *cores[position + 1 :])
        elif self.active is not self.setting:
            cores = codec.truncate(cores, shape, self.active.rank)
        return cores if self.gain == 1.0 else (cores[0] * self.gain, *cores[1:])

    def reconstruct(self) -> Tensor:
        """The dense W′ of extents (M, N) at the active rank."""
        return self.setting.codec.reconstruct(self.active_cores(), self.setting.shape)

    def to_linear(self) -> nn.Linear:
        """A dense layer with the weight W′ and the same bias."""
        device, dtype = self.cores[0].device, self.cores[0].dtype
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device, dtype)
        with torch.no_grad():
            linear.weight.copy_(self.reconstruct())
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def _operands(self) -> dict[int, Tensor]:
        """The cores after the plan's precomputed steps; these are kept between forward passes at inference."""
        cores = self.active_cores()
        if not self.plan.precomputed or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.plan.precompute(cores)
        key = (
            self.plan,
            self.gain,
            id(self.slices),
            *((core.data_ptr(), core._version) for core in self.cores if not core.is_inference()),
        )
        if self._folded is None or self._folded[0] != key:
            self._folded = key, self.plan.precompute(cores)
        return self._folded[1]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x of extents (…, N); the result has extents (…, M)."""
        folded = x.reshape(-1, *self.setting.shape.in_modes)
        y = self.plan.contract({0: folded}, self._operands(), self.bias)
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Format, shape, rank and compression ratio."""
        s = self.active
        rank = "x".join(map(str, s.rank))
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"format={s.format}, shape={s.shape}, rank={rank}, execution={s.execution}, ratio={s.ratio:.3f}"
        )
