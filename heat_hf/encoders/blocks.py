"""Transformer blocks one at a time: what a model feeds a block, given what the block before it answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heat_hf.encoders.batches import Batch, model_inputs
from heat_hf.encoders.linears import block_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN = "hidden_states"  # what blocks call their input where it is given by name


class _ReachedError(Exception):
    """Ends a forward pass at the block that was to be reached."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


@dataclass(frozen=True)
class Call:
    """What a model calls a block with: hidden states first, then masks, positions and whatever else its family has."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def hidden(self) -> Any:  # noqa: ANN401
        """The hidden states; None where they are in no known place."""
        return self.args[0] if self.args else self.kwargs.get(HIDDEN)


@dataclass
class _Seen:
    """What a forward pass did with a block."""

    runs: int = 0
    more: int | None = None  # values it answers beside the hidden states; None where it answers these alone
    plain: bool = True  # hidden states in, hidden states of the same extents out


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model that run once in a forward pass, in that order; each can be run alone.

    A block is reached by the model itself, with the blocks before it answering at once: the last of them what it is told to,
    the others anything. So masks, position biases and what a family does between two blocks are the model's own, none of
    them has to be known or kept, and memory holds the hidden states at one boundary.

    Attributes:
        model: with dense or factorized layers; what is in its blocks may be changed at any time.
        modules: block name → module.
        others: names of the blocks that cannot be run alone: they run more than once, as ALBERT's, or take or give something
            other than hidden states.
        more: block name → number of values that it answers beside the hidden states; None where it answers these alone.
    """

    model: PreTrainedModel
    modules: Mapping[str, nn.Module]
    others: tuple[str, ...]
    more: Mapping[str, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PreTrainedModel, names: Iterable[str], batch: Batch) -> Blocks:
        """Find the blocks that modules are in, by a forward pass over two rows.

        Args:
            model: in evaluation mode.
            names: of modules; those outside any numbered block have none.
            batch: model inputs.
        """
        modules = dict(model.named_modules())
        wanted = dict.fromkeys(block for name in names if (block := block_of(name)) != name)
        seen: dict[str, _Seen] = {}
        with ExitStack() as stack, torch.no_grad():
            for name in wanted:
                hook = _watch(name, seen)
                stack.callback(modules[name].register_forward_hook(hook, with_kwargs=True).remove)
            model(**model_inputs({key: value[:2] for key, value in batch.items()}, model.device))
        alone = {name: modules[name] for name, found in seen.items() if found.runs == 1 and found.plain}
        return cls(model, alone, tuple(name for name in wanted if name not in alone), {n: seen[n].more for n in alone})

    def call(self, name: str, batch: Batch, before: Tensor | None) -> Call:
        """What the model calls a block with.

        Args:
            name: of the block.
            batch: model inputs.
            before: what the block before it answered, rows × tokens × hidden size; None for the first block.
        """
        names = list(self.modules)
        number = names.index(name)
        with ExitStack() as stack, torch.no_grad():
            for other in names[:number]:
                answer = before if other == names[number - 1] else None
                stack.enter_context(_answering(self.modules[other], answer, self.more[other]))
            stack.callback(self.modules[name].register_forward_pre_hook(_stop, with_kwargs=True).remove)
            try:
                self.model(**model_inputs(batch, self.model.device))
            except _ReachedError as reached:
                return reached.call
        raise ValueError(f"the calibration data never reaches {name!r}")

    def run(self, name: str, call: Call) -> Tensor:
        """The hidden states that a block answers, rows × tokens × hidden size."""
        answer: Tensor = hidden_states(self.modules[name](*call.args, **call.kwargs))
        return answer

    @contextmanager
    def skipped(self, names: Iterable[str]) -> Iterator[None]:
        """Let blocks answer what they read, as if they were not there."""
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(_answering(self.modules[name], None, self.more[name]))
            yield


def hidden_states(answer: Any) -> Any:  # noqa: ANN401
    """Those of a block's answer."""
    return answer[0] if isinstance(answer, tuple) else answer


def _watch(name: str, seen: dict[str, _Seen]) -> Any:  # noqa: ANN401
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], answer: Any) -> None:  # noqa: ANN401
        found = seen.setdefault(name, _Seen())
        found.runs += 1
        found.more = len(answer) - 1 if isinstance(answer, tuple) else None
        given, got = Call(args, kwargs).hidden, hidden_states(answer)
        tensors = isinstance(given, Tensor) and isinstance(got, Tensor)
        found.plain &= tensors and given.is_floating_point() and given.dim() == 3 and given.shape == got.shape

    return hook


def _stop(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    raise _ReachedError(Call(args, kwargs))


@contextmanager
def _answering(module: nn.Module, answer: Tensor | None, more: int | None) -> Iterator[None]:
    """Let a block answer at once: hidden states, or its input for None."""

    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        hidden = Call(args, kwargs).hidden if answer is None else answer
        return hidden if more is None else (hidden, *[None] * more)

    with _forwarding(module, forward):
        yield


@contextmanager
def recomputing(module: nn.Module, again: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Let a block keep nothing for a backward pass but what it is called with; it then runs again, within `again()`."""
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if not torch.is_grad_enabled():
            return own(*args, **kwargs)
        return checkpoint(
            own, *args, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), again()), **kwargs
        )

    with _forwarding(module, forward):
        yield


@contextmanager
def _forwarding(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module's forward pass be another function."""
    own = module.__dict__.get("forward")  # another library's, where there is one
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
