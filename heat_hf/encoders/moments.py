"""Second moments of layers' inputs, and of a model's gradients at their outputs, by hooks in forward and backward passes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from heat_hf.encoders.batches import Batch, model_inputs, sequences, tokens
from heat_hf.encoders.signals import output_signals, random_probe
from heat_hf.formats.tiles import cut_up, masked

if TYPE_CHECKING:
    from transformers import PreTrainedModel


STRIP = 384  # columns of a product XᵀX that are computed together
PROBED_TOKENS = 24_576  # whose gradients say enough of any layer
PASS_TOKENS = 768  # that run at once


def run_watched(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    inputs: Inputs,
    outputs: Gradients,
    probed: Container[int],
) -> None:
    """Run batches in evaluation mode, with hooks before and after layers.

    Args:
        model: a dense model.
        modules: layers of the model, by name.
        batches: model inputs; an `attention_mask` marks padding.
        inputs: sees what goes into the layers.
        outputs: sees the gradients at what comes out.
        probed: numbers of the batches whose gradients are taken.
    """
    training, device = model.training, model.device
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(inputs.hook(name)).remove)
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


def _add_products(sums: dict[str, Tensor], name: str, rows: Tensor, mask: Tensor | None) -> int:
    """Add x xᵀ of the rows that are not padding to a sum in float64, its upper triangle; returns how many they are.

    In strips that leave out most of the lower triangle; `_whole` fills it.
    """
    if mask is not None and rows.shape[:-1] == mask.shape:
        rows = rows[mask]
    flat = rows.reshape(-1, rows.shape[-1]).float()
    width = flat.shape[1]
    if name not in sums:
        sums[name] = flat.new_zeros(width, width, dtype=torch.float64)
    for start in range(0, width, STRIP):
        sums[name][start : start + STRIP, start:] += flat[:, start : start + STRIP].T @ flat[:, start:]
    return len(flat)


def _whole(upper: Tensor) -> Tensor:
    """A symmetric matrix of its upper triangle, in its place."""
    upper.triu_()
    return upper.add_(upper.triu(1).T)


class Inputs(Protocol):
    """Sees what goes into layers."""

    mask: Tensor | None

    def hook(self, name: str) -> Callable[..., None]:
        """To be called before the layer."""

    def clear(self) -> None:
        """A batch is done."""


@dataclass
class InputMoments:
    """Adds up x xᵀ over the rows of every layer's inputs; layers fed the same tensor share one sum.

    Attributes:
        tile: t, to add up the same of tiles of t tokens × t features, too; 0 for none.
    """

    tile: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    leader: dict[str, str] = field(default_factory=dict)
    seen: dict[tuple[int, int], tuple[Tensor, str]] = field(
        default_factory=dict
    )  # keeps tensors alive, so that their ids stay theirs
    mask: Tensor | None = None
    tiles: dict[str, Tensor] = field(default_factory=dict)

    def hook(self, name: str) -> Callable[..., None]:
        """To be called before the layer."""

        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            if name not in self.leader:
                version = 0 if x.is_inference() else x._version  # changed in place, it is another input
                self.leader[name] = self.seen.setdefault((id(x), version), (x, name))[1]
            if self.leader[name] == name:
                self.rows[name] = self.rows.get(name, 0) + _add_products(self.sums, name, x.detach(), self.mask)
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

    def moments(self, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """C of every layer; the sums are used up."""
        unused = [name for name in modules if name not in self.leader]
        if unused:
            raise ValueError(f"the calibration data never reaches {unused[0]!r} ({len(unused)} such layers)")
        means = {}
        for name in list(self.sums):
            # In place: sums and means side by side would take twice the memory.
            moment = _whole(self.sums.pop(name)).div_(self.rows[name])
            if not torch.isfinite(moment).all():
                raise ValueError(f"the calibration inputs of {name!r} are not finite")
            means[name] = moment
        return {name: means[self.leader[name]] for name in modules}


class Gradients:
    """Takes the gradients of random directions in output space at every layer's outputs."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.sequences = 0
        self.reached: list[tuple[str, Tensor]] = []
        self.mask: Tensor | None = None

    def hook(self, name: str) -> Callable[..., Tensor | None]:
        """To be called after the layer."""

        def keep(_module: nn.Module, _args: object, output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            # Where parameters are frozen, nothing before this has a graph; it starts here.
            self.reached.append((name, output if output.requires_grad else output.requires_grad_()))
            return output.clone()  # the model may change it in place, and the gradient is asked for before that

        return keep

    def add(self, signals: Any, sequences: int) -> None:  # noqa: ANN401
        """Take the gradients of the forward pass that just ran."""
        probe = random_probe(signals, self.generator)
        outputs = [output for _, output in self.reached]
        gradients = torch.autograd.grad(probe, outputs, allow_unused=True) if outputs else ()
        self.take([(name, gradient) for (name, _), gradient in zip(self.reached, gradients, strict=True)])
        self.reached.clear()
        self.sequences += sequences

    def take(self, gradients: Sequence[tuple[str, Tensor | None]]) -> None:
        """Gradients at the outputs of layers in the order in which these ran; None where the model's outputs do not depend."""
        raise NotImplementedError


class OutputMoments(Gradients):
    """Adds up g gᵀ over the rows of the gradients."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.sums: dict[str, Tensor] = {}

    def take(self, gradients: Sequence[tuple[str, Tensor | None]]) -> None:
        """Add them."""
        for name, gradient in gradients:
            if gradient is not None:
                _add_products(self.sums, name, gradient, self.mask)

    def moments(self, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """G of every layer; the sums are used up."""
        lost = [name for name in modules if name not in self.sums or not torch.isfinite(self.sums[name]).all()]
        if lost:
            raise ValueError(f"the model's outputs have no finite gradient at {lost[0]!r} ({len(lost)} such layers)")
        return {name: _whole(self.sums.pop(name)).div_(self.sequences) for name in modules}


def spread(batches: Sequence[Batch], rows: int) -> frozenset[int]:
    """Numbers of batches with about so many rows, or `PROBED_TOKENS`, together, evenly spread: they are often sorted."""
    share = min(rows / max(1, sum(map(sequences, batches))), PROBED_TOKENS / max(1, sum(map(tokens, batches))))
    count = max(1, round(len(batches) * min(1.0, share)))
    return frozenset((2 * i + 1) * len(batches) // (2 * count) for i in range(count))
