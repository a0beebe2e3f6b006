"""Heads and neurons pruned after training by Fisher information: what Kwon et al. (2022) describe, made anew as a baseline.

A mask stands for every attention head and every inner neuron of BERT's blocks. As in "A Fast Post-Training Pruning Framework
for Transformers", the diagonal of the masks' Fisher information says what goes within the budget, its blocks rearrange what
goes within a layer, and least squares tunes what stays, layer by layer. Four choices are made here. The Fisher information is
that of the model's own outputs, by random directions: no label is read, as by the structures beside it. The budget is the EDP
of the matrices that remain. What is pruned is removed, and tuned masks are multiplied into the weights: size and time are real.
Of the three stages, the one nearest to the dense model's outputs on calibration rows is kept: tuning can do harm.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.pruned import Masks, Tuning, blocks_of, remove
from heat_hf.encoders.batches import Batch, model_inputs, sequences
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.signals import output_signals, random_probe
from heat_hf.evaluation.quality import Quality
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import CostModel, cost_model
from heat_hf.hardware.cost import Cost

if TYPE_CHECKING:
    from benchmarks.untrained import Bench

STRUCTURE = "heads and neurons by Fisher (Kwon et al.)"
TOKENS = 128  # of the products that EDP is counted for
COMPARED = 4  # one batch of so many tells which stage is the best
SMALL = 1e-7  # of the trace: less is rounding


def ones(model: Any, *extents: int) -> Masks:
    """Masks that change nothing, with extents before those of heads and of neurons."""
    counts = model.config.num_attention_heads, model.config.intermediate_size
    return [[torch.ones(*extents, count) for count in counts] for _ in blocks_of(model)]


@contextmanager
def masked(model: Any, masks: Masks) -> Iterator[None]:
    """Let heads and neurons count as much as their masks say: one number for all sequences, or for each one of its own."""

    def hook(mask: Tensor) -> Callable[..., tuple[Tensor]]:
        return lambda _module, args: (args[0] * mask.repeat_interleave(args[0].shape[-1] // mask.shape[-1], -1),)

    with ExitStack() as stack:
        for block, pair in zip(blocks_of(model), masks, strict=True):
            for linear, mask in zip((block.attention.output.dense, block.output.dense), pair, strict=True):
                stack.callback(linear.register_forward_pre_hook(hook(mask)).remove)
        yield


def fisher(model: Any, batches: Sequence[Batch], seed: int) -> Masks:
    """Second moments of the gradients at the masks, over sequences: of every block, heads × heads and neurons × neurons."""
    generator = torch.Generator().manual_seed(seed)
    sums = [[torch.zeros(len(mask), len(mask)) for mask in pair] for pair in ones(model)]
    for batch in batches:
        given = model_inputs(batch, model.device)
        masks = ones(model, sequences(batch), 1)
        flat = [mask.requires_grad_() for pair in masks for mask in pair]
        with masked(model, masks):
            probe = random_probe(output_signals(model(**given), given, model), generator)
        gradients = iter(torch.autograd.grad(probe, flat))
        for pair in sums:
            for total in pair:
                gradient = next(gradients)[:, 0]
                total += gradient.T @ gradient
    count = sum(map(sequences, batches))
    return [[total / count for total in pair] for pair in sums]


class Price:
    """Cost of the matrices that remain; those of one width are costed once."""

    def __init__(self, model: Any, costs: CostModel) -> None:
        hidden, self.head_size = model.config.hidden_size, model.config.hidden_size // model.config.num_attention_heads

        @cache
        def products(width: int, into: int) -> Cost:
            if width == 0:
                return Cost(0.0, 0.0)
            inner, outer = (costs.linear(MatrixSize(*size), TOKENS) for size in ((width, hidden), (hidden, width)))
            return inner * into + outer

        self.products = products

    def of(self, masks: Masks) -> Cost:
        """Of what masks leave."""
        counts = [[int(mask.sum()) for mask in pair] for pair in masks]
        parts = [
            part for heads, neurons in counts for part in (self.products(heads * self.head_size, 3), self.products(neurons, 1))
        ]
        return Cost.total(parts)


def search(information: Masks, price: Price, limit: float) -> Masks:
    """What stays: for every number of heads, as many neurons as an EDP in J·s allows; of these, what loses least.

    Raises:
        ValueError: if nothing but an empty network keeps the limit.
    """
    diagonals = [torch.cat([pair[kind].diagonal() for pair in information]) for kind in (0, 1)]
    orders = [diagonal.argsort(descending=True) for diagonal in diagonals]

    def kept(*counts: int) -> list[Tensor]:
        flat = [torch.zeros(len(order)) for order in orders]
        for mask, order, count in zip(flat, orders, counts, strict=True):
            mask[order[:count]] = 1
        return flat

    def fits(*counts: int) -> bool:
        return price.of(_split(kept(*counts), information)).edp <= limit

    found = []
    for heads in range(len(orders[0]) + 1):
        low, high = 0, len(orders[1]) + 1  # the first fits, the last does not
        while fits(heads, 0) and high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(heads, middle) else (low, middle)
        if low:
            masks = kept(heads, low)
            lost = sum(float(diagonal @ (1 - mask)) for diagonal, mask in zip(diagonals, masks, strict=True))
            found.append((lost, heads, low))
    if not found:
        raise ValueError(f"an EDP of {limit} J·s cannot be reached")
    _, heads, neurons = min(found)
    return _split(kept(heads, neurons), information)


def _split(flat: Sequence[Tensor], information: Masks) -> Masks:
    """Masks of the whole network, by block."""
    parts = [mask.split([len(pair[kind]) for pair in information]) for kind, mask in enumerate(flat)]
    return [list(pair) for pair in zip(*parts, strict=True)]


def rearranged(mask: Tensor, information: Tensor) -> Tensor:
    """As many kept as before: what goes and what stays are swapped, two at a time, as long as that loses less."""
    gone, diagonal = mask == 0, information.diagonal()
    for _ in range(len(mask)):  # it ends long before
        pull = information @ gone.float()
        leaves, goes = gone.nonzero().flatten(), (~gone).nonzero().flatten()
        if not (len(leaves) and len(goes)):
            break
        change = (diagonal - 2 * pull)[leaves, None] + (diagonal + 2 * pull)[goes] - 2 * information[leaves][:, goes]
        best = int(change.argmin())
        if change.flatten()[best] >= -SMALL * diagonal.sum():
            break
        gone[leaves[best // len(goes)]], gone[goes[best % len(goes)]] = False, True
    return (~gone).float()


def pruned(bench: Bench, found: Masks, information: Masks) -> tuple[str, Masks, Any]:
    """The stages of pruning, one after the other: the name of the best, its masks, and the model without what went."""
    masks = [[rearranged(*both) for both in zip(*pair, strict=True)] for pair in zip(found, information, strict=True)]
    stages = {"found": (found, copy.deepcopy(bench.dense)), "rearranged": (masks, copy.deepcopy(bench.dense))}
    for kept, model in stages.values():
        remove(model, kept)
    stages["tuned"] = masks, copy.deepcopy(stages["rearranged"][1])
    Tuning(stages["tuned"][1], bench.dense, bench.batches).run()
    quality = Quality(bench.dense, bench.batches[::COMPARED])
    apart = {name: quality.both(model)[1] for name, (_, model) in stages.items()}
    best = min(apart, key=lambda name: apart[name])
    return best, *stages[best]


def add_rows(bench: Bench) -> None:
    """A row for every EDP gain that there is none for yet."""
    missing = [gain for gain in bench.gains if bench.missing(STRUCTURE, gain)]
    if not missing:
        return
    started = time.process_time()
    information, price = fisher(bench.dense, bench.batches, bench.seed), Price(bench.dense, cost_model("simba-l"))
    once, dense = time.process_time() - started, price.of(ones(bench.dense)).edp
    for gain in missing:
        started = time.process_time()
        stage, masks, model = pruned(bench, search(information, price, dense / gain), information)
        seconds = once + time.process_time() - started
        sizes = [sum(linear.weight.numel() for linear in encoder_linears(one).values()) for one in (model, bench.dense)]
        bench.keep(
            STRUCTURE, gain, model, edp_ratio=price.of(masks).edp / dense, params_ratio=sizes[0] / sizes[1], stage=stage,
            kept=[[int(mask.sum()) for mask in pair] for pair in masks], seconds=round(seconds, 1),
        )  # fmt: skip
