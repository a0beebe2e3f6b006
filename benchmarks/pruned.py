"""Models of BERT's family without some of their heads and neurons, and least squares for what is left."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.alternatives import encoder_of
from heat_hf.encoders.batches import Batch
from heat_hf.encoders.blocks import Blocks
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.moments import padding_mask

LARGEST = 10.0  # a layer with a tuned mask beyond this keeps its masks as they were
RIDGE = 1e-4  # of the mean diagonal of the normal equations: masks that hardly matter stay near 1
Masks = list[list[Tensor]]  # of every block, of its heads and of its neurons


def blocks_of(model: Any) -> nn.ModuleList:
    """The Transformer blocks of a model of BERT's family."""
    layers: nn.ModuleList = encoder_of(model).layer
    return layers


class NoHeads(nn.Module):
    """Attention of a block that has lost all heads: it answers nothing, and what reads it adds its bias alone."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        return hidden_states[..., :0], None


def _part(linear: nn.Linear, places: Tensor, axis: int) -> nn.Linear:
    """Some outputs (axis 0) or inputs (axis 1) of a layer."""
    part = copy.deepcopy(linear)
    part.weight = nn.Parameter(linear.weight.detach().index_select(axis, places))
    if axis == 0:
        part.bias = nn.Parameter(linear.bias.detach()[places])
    part.out_features, part.in_features = part.weight.shape
    return part


def remove(model: Any, masks: Masks) -> None:
    """Take away, in place, the heads and neurons whose masks are 0."""
    for block, (heads, neurons) in zip(blocks_of(model), masks, strict=True):
        own = block.attention.self
        columns = heads.repeat_interleave(own.attention_head_size).nonzero().flatten()
        for name in ("query", "key", "value"):
            setattr(own, name, _part(getattr(own, name), columns, 0))
        block.attention.output.dense = _part(block.attention.output.dense, columns, 1)
        if not len(columns):
            block.attention.self = NoHeads()
        left = neurons.nonzero().flatten()
        block.intermediate.dense = _part(block.intermediate.dense, left, 0)
        block.output.dense = _part(block.output.dense, left, 1)


class Tuning:
    """Least squares, layer by layer: what the removed model has before each normalization is to be what the dense model has.

    A layer is attention, or a feed-forward network; it is fed what the model tuned so far feeds it.
    """

    def __init__(self, model: Any, dense: Any, batches: Sequence[Batch]) -> None:
        names = encoder_linears(dense)
        self.dense, self.model = (Blocks.of(one, names, batches[0]) for one in (dense, model))
        self.batches = batches
        # Last part of each layer → columns of its matrix that a mask stands for.
        self.parts = {"attention.output": model.config.hidden_size // model.config.num_attention_heads, "output": 1}

    @torch.no_grad()
    def run(self) -> None:
        """Tune all layers in place."""
        theirs, ours = dict[int, Tensor](), dict[int, Tensor]()
        for name in self.dense.modules:
            goals: list[dict[str, Tensor]] = []
            for number in range(len(self.batches)):
                answer, seen = self._seen(self.dense, name, number, theirs.get(number))
                goals.append({part: x @ self._weight(self.dense, name, part).T + more for part, (x, more) in seen.items()})
                theirs[number] = answer
            for part, size in self.parts.items():
                self._layer(name, part, size, [goal[part] for goal in goals], ours)
            ours = {number: self._seen(self.model, name, number, ours.get(number))[0] for number in range(len(self.batches))}

    def _weight(self, blocks: Blocks, name: str, part: str) -> Tensor:
        weight: Tensor = blocks.modules[name].get_submodule(part).dense.weight
        return weight

    def _layer(self, name: str, part: str, size: int, goals: Sequence[Tensor], before: Mapping[int, Tensor]) -> None:
        """Masks of so many columns each, multiplied into the weight that reads them."""
        weight = self._weight(self.model, name, part)
        rows, wide = weight.shape
        if not wide:
            return
        moment, cross = torch.zeros(wide, wide).double(), torch.zeros(rows, wide).double()
        for number, goal in enumerate(goals):
            inputs, more = self._seen(self.model, name, number, before.get(number))[1][part]
            moment += (inputs.T @ inputs).double()
            cross += ((goal - more).T @ inputs).double()
        exact = weight.double()
        normal = (exact.T @ exact * moment).view(wide // size, size, -1, size).sum((1, 3))
        lost = (exact * cross).sum(0).view(-1, size).sum(1) - normal.sum(1)
        ridge = RIDGE * normal.diagonal().mean() * torch.eye(len(normal))
        tuned = 1 + torch.linalg.solve(normal + ridge, lost)
        if tuned.abs().max() <= LARGEST:  # False also for NaN
            weight *= tuned.repeat_interleave(size).to(weight.dtype)

    def _seen(
        self, blocks: Blocks, name: str, number: int, before: Tensor | None
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """What a block answers; by part, what the last matrix reads, and what is added to its answer: tokens × width."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        mask = padding_mask(self.batches[number])

        def keep(part: str) -> Callable[..., None]:
            def hook(_module: nn.Module, args: tuple[Tensor, Tensor]) -> None:
                first, second = (x.flatten(0, 1) if mask is None else x[mask] for x in args)
                seen[part] = first, second

            return hook

        with ExitStack() as stack:
            for part in self.parts:
                module = blocks.modules[name].get_submodule(part)
                stack.callback(module.register_forward_pre_hook(keep(part)).remove)
            answer = blocks.run(name, blocks.call(name, self.batches[number], before))
        return answer, seen
