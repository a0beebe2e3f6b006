"""Second moments of layers' inputs, and of a model's gradients at their outputs, by hooks in forward and backward passes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from heat_hf.encoders.batches import Batch, model_inputs, sequences, tokens
from heat_hf.encoders.blocks import recomputing
from heat_hf.encoders.linears import by_block
from heat_hf.encoders.signals import output_signals, random_probe
from heat_hf.encoders.triangles import Moments, Triangle
from heat_hf.formats.tiles import cut_up, masked

if TYPE_CHECKING:
    from transformers import PreTrainedModel


PROBED_TOKENS = 24_576  # whose gradients say enough of any layer
PASS_TOKENS = 768  # that run at once


def run_watched(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    inputs: Inputs,
    outputs: Gradients,
    probed: Container[int],
    again: bool = False,
) -> None:
    """Run batches in evaluation mode, with hooks before and after layers.

    Parameters are frozen meanwhile: gradients go through them, none is taken of them, and so less of a forward pass is kept.

    Args:
        model: a dense model.
        modules: layers of the model, by name.
        batches: model inputs; an `attention_mask` marks padding.
        inputs: sees what goes into the layers.
        outputs: sees the gradients at what comes out.
        probed: numbers of the batches whose gradients are taken.
        again: whether blocks keep nothing of a forward pass, and run again in the backward pass.
    """
    training, device = model.training, model.device
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.callback(_require_gradients, learned, True)
        model.eval()
        _require_gradients(learned, False)
        if again:
            for name in by_block(modules):
                stack.enter_context(recomputing(model.get_submodule(name), outputs.passed_over))
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(outputs.at_first(inputs.hook(name))).remove)
            stack.callback(module.register_forward_hook(outputs.hook(name)).remove)
        for number, batch in enumerate(batches):
            for part in _parts(batch):
                given = model_inputs(part, device)
                inputs.mask = outputs.mask = padding_mask(given)
                with torch.set_grad_enabled(number in probed):
                    answer = _answer(model, given, number)
                    if number in probed:
                        outputs.add(output_signals(answer, given, model), sequences(part))
                inputs.clear()


def _require_gradients(parameters: Iterable[nn.Parameter], required: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(required)


def _parts(batch: Batch) -> list[Batch]:
    """A batch in as many parts as keep to `PASS_TOKENS`, padding included: what a backward pass needs of all layers is held."""
    rows = max(1, PASS_TOKENS // next(iter(batch.values())).shape[1:2].numel())
    starts = range(0, sequences(batch), rows)
    if len(starts) == 1:
        return [batch]
    return [{key: value[start : start + rows] for key, value in batch.items()} for start in starts]


def _answer(model: PreTrainedModel, given: Mapping[str, Tensor], number: int) -> Any:  # noqa: ANN401
    """The model's outputs; what it does not understand is an error of the data, as too many tokens or an unknown column."""
    try:
        return model(**given)
    except (IndexError, TypeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        what = ", ".join(f"{key} of {tuple(value.shape)}" for key, value in given.items())
        reason = " ".join(str(error).split())
        raise ValueError(f"the model does not run with batch {number} of the calibration data, {what}: {reason}") from error


def padding_mask(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """True for tokens that are not padding, rows × tokens; None where nothing is known of it."""
    mask = inputs.get("attention_mask")
    return mask.bool() if mask is not None and mask.dim() == 2 else None


def _counted(rows: Tensor, mask: Tensor | None) -> Tensor:
    """The rows that are not padding, a number × width, float32."""
    if mask is not None and rows.shape[:-1] == mask.shape:
        rows = rows[mask]
    return rows.reshape(-1, rows.shape[-1]).float()


class Inputs(Protocol):
    """Sees what goes into layers."""

    mask: Tensor | None

    def hook(self, name: str) -> Callable[..., None]:
        """To be called before the layer."""

    def clear(self) -> None:
        """A batch is done."""


class Unwatched:
    """Where only what comes out of layers has to be seen."""

    mask: Tensor | None = None

    def hook(self, _name: str) -> Callable[..., None]:
        """To be called before the layer."""
        return lambda *_: None

    def clear(self) -> None:
        """A batch is done."""


@dataclass
class InputMoments:
    """Adds up x xᵀ over the rows of every layer's inputs; layers fed the same tensor share one sum.

    Attributes:
        tile: t, to add up the same of tiles of t tokens × t features, too; 0 for none.
        disk: whether sums are in files, see `room`.
    """

    tile: int = 0
    disk: bool = False
    sums: dict[str, Triangle] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    leader: dict[str, str] = field(default_factory=dict)
    seen: dict[tuple[int, int], tuple[weakref.ref[Tensor], str]] = field(default_factory=dict)
    mask: Tensor | None = None
    tiles: dict[str, Tensor] = field(default_factory=dict)

    def hook(self, name: str) -> Callable[..., None]:
        """To be called before the layer."""

        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            if name not in self.leader:
                key = id(x), 0 if x.is_inference() else x._version  # changed in place, it is another input
                there = self.seen.get(key)
                if there is None or there[0]() is not x:  # an id may be another's, once a tensor is gone
                    there = self.seen[key] = weakref.ref(x), name
                self.leader[name] = there[1]
            if self.leader[name] == name:
                rows = _counted(x.detach(), self.mask)
                self.rows[name] = self.rows.get(name, 0) + len(rows)
                _sum(self.sums, name, rows, self.disk).add(rows)
                if self.tile:
                    self._add_tiles(name, x.detach())

        return add

    def _add_tiles(self, name: str, x: Tensor) -> None:
        """Tiles without any token count for nothing, so their number does not matter: moments are used up to a factor."""
        with masked(self.mask):
            tiles = cut_up(x, self.tile)
        flat = tiles.unflatten(-1, (-1, self.tile)).transpose(1, 2).flatten(2).flatten(0, 1).double()
        self.tiles[name] = self.tiles.get(name, 0.0) + flat.T @ flat

    def clear(self) -> None:
        """A batch is done."""
        self.seen.clear()

    def tile_moments(self, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Those of every layer's tiles, up to a factor; empty if none were asked for."""
        return {name: self.tiles[self.leader[name]] for name in modules} if self.tile else {}

    def moments(self, modules: Mapping[str, nn.Module]) -> Moments:
        """C of every layer; the sums are used up."""
        unused = [name for name in modules if name not in self.leader]
        if unused:
            raise ValueError(f"the calibration data never reaches {unused[0]!r} ({len(unused)} such layers)")
        for name, total in self.sums.items():
            total.elements.div_(self.rows[name])
            if not torch.isfinite(total.elements).all():
                raise ValueError(f"the calibration inputs of {name!r} are not finite")
        return Moments(self.sums, {name: self.leader[name] for name in modules})


class Gradients:
    """Takes the gradients of random directions in output space at every layer's outputs."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.sequences = 0
        self.mask: Tensor | None = None
        self.over = False

    def hook(self, name: str) -> Callable[..., Tensor | None]:
        """To be called after the layer."""

        def keep(_module: nn.Module, _args: object, output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            if not output.requires_grad:  # nothing before this has a graph; it starts here
                output.requires_grad_()
            if not self.over:
                output.register_hook(self.taker(name))
            return output.clone()  # the model may change it in place, and the gradient is asked for before that

        return keep

    @contextmanager
    def passed_over(self) -> Iterator[None]:
        """Layers that run meanwhile run again: their gradients are taken where they ran first."""
        self.over = True
        try:
            yield
        finally:
            self.over = False

    def at_first(self, hook: Callable[..., None]) -> Callable[..., None]:
        """A hook before layers that is passed over with them."""
        return lambda *args: None if self.over else hook(*args)

    def add(self, signals: Any, sequences: int) -> None:  # noqa: ANN401
        """Take the gradients of the forward pass that just ran."""
        probe = random_probe(signals, self.generator)
        if probe.requires_grad:  # else it depends on no layer
            probe.backward()
        self.sequences += sequences

    def taker(self, name: str) -> Callable[[Tensor], None]:
        """What takes the gradient at what a layer just answered, where the model's outputs depend on it."""
        raise NotImplementedError


class OutputMoments(Gradients):
    """Adds up g gᵀ over the rows of the gradients; with `disk`, in files."""

    def __init__(self, seed: int, disk: bool = False) -> None:
        super().__init__(seed)
        self.disk = disk
        self.sums: dict[str, Triangle] = {}

    def taker(self, name: str) -> Callable[[Tensor], None]:
        """Adds it."""

        def take(gradient: Tensor) -> None:
            rows = _counted(gradient, self.mask)
            _sum(self.sums, name, rows, self.disk).add(rows)

        return take

    def moments(self, modules: Mapping[str, nn.Module]) -> Moments:
        """G of every layer; the sums are used up."""
        lost = [name for name in modules if name not in self.sums or not torch.isfinite(self.sums[name].elements).all()]
        if lost:
            raise ValueError(f"the model's outputs have no finite gradient at {lost[0]!r} ({len(lost)} such layers)")
        for total in self.sums.values():
            total.elements.div_(self.sequences)
        return Moments({name: self.sums[name] for name in modules})


def _sum(sums: dict[str, Triangle], name: str, rows: Tensor, disk: bool) -> Triangle:
    """What rows of a layer are added to."""
    if name not in sums:
        sums[name] = Triangle.zeros(rows.shape[-1], rows.device, disk)
    return sums[name]


def spread(batches: Sequence[Batch], rows: int) -> frozenset[int]:
    """Numbers of batches with about so many rows, or `PROBED_TOKENS`, together, evenly spread: they are often sorted."""
    share = min(rows / max(1, sum(map(sequences, batches))), PROBED_TOKENS / max(1, sum(map(tokens, batches))))
    count = max(1, round(len(batches) * min(1.0, share)))
    return frozenset((2 * i + 1) * len(batches) // (2 * count) for i in range(count))
