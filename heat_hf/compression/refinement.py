"""Block-wise refinement: every factorized block learns, one after the other, to answer what the dense block answers.

A block is fed what the model compressed so far feeds it, and is to answer what the dense block answers in the dense model: so
it also makes up for what the blocks before it lost. There are no labels, and no gradient passes through more than one block.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from heat_hf.compression.config import HeatConfig
from heat_hf.compression.refined_rows import few_batches, some_rows
from heat_hf.compression.resuming import RefinedBlocks
from heat_hf.encoders.bases import basis_of
from heat_hf.encoders.batches import Batch
from heat_hf.encoders.blocks import Blocks
from heat_hf.encoders.embedding import Embedded
from heat_hf.encoders.linears import by_block, dense_linears, swap_modules
from heat_hf.encoders.moments import InputMoments, padding_mask
from heat_hf.encoders.statistics import Statistics
from heat_hf.formats.decomposition import narrowed_errors
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.projection import relative_error
from heat_hf.formats.tiles import masked
from heat_hf.reports.refinement import BlockError, Refinement

Kept = Mapping[str, Sequence[int]]  # name of a layer → neurons that stay, of layers that lose some
States = dict[int, Tensor]  # number of a batch → hidden states, rows × tokens × hidden size

logger = logging.getLogger(__name__)

RATE = 0.02  # of a core, in root mean squares of the core
BIAS_RATE = 1e-3  # of a bias, in what the layer makes of inputs whose root mean square is 1
LEAST_BATCHES = 2
WARMUP = 0.1  # part of the steps
STEP_PASSES = 3  # a step takes as long as so many forward passes of its rows: its own, and a backward pass of two


@dataclass(frozen=True)
class Refined:
    """What refinement reached.

    Attributes:
        refinement: of the blocks; None where none could be refined.
        errors: of every layer refined, ‖W − W′‖ / ‖W‖ and the same of its outputs, see `Factorization`.
    """

    refinement: Refinement | None
    errors: Mapping[str, tuple[float, float | None]]


def refine_blocks(
    model: PreTrainedModel,
    linears: Mapping[str, nn.Linear],
    layers: Mapping[str, FactorizedLinear],
    batches: Sequence[Batch] | None,
    config: HeatConfig,
    statistics: Statistics | None = None,
    kept: Kept | None = None,
    gone: Collection[str] = (),
    done: RefinedBlocks | None = None,
    embedded: Embedded | None = None,
) -> Refined:
    """Refine cores and biases of factorized layers, block by block; a block that would not get better stays as it was.

    Layers take the place of their linears on the way, those of blocks that are not refined do not. Blocks that a forward
    pass runs more than once, as ALBERT's, and layers outside the blocks, are not refined, and that is logged. The model's mode,
    its gradients and all random numbers but its own stay untouched.

    Args:
        model: dense.
        linears: of the model, by name.
        layers: that take their place, by the same names.
        batches: model inputs; an `attention_mask` marks padding, which does not count. Of more than `MOST_TOKENS` tokens, an
            even choice is used. One of eight is held out; with fewer than two batches nothing is refined, and that is logged.
        config: its `refine_steps` of AdamW are taken on each block, on a batch or a part of one each, in an order that its
            `seed` decides.
        statistics: of the linears, for the errors; None to take C of the tokens used, a block at a time.
        kept: neurons that stay, of layers that lose some.
        gone: names of blocks that answer what they read, as they will not be there; the block before such ones is refined
            towards what the last of them answers.
        done: where blocks are kept, and taken from that are there already.
        embedded: takes the place of the word embeddings, so that the first block makes up for what they lost.
    """
    few, out = few_batches(batches or ())
    if len(few) < LEAST_BATCHES:
        logger.warning(
            f"nothing is refined: that needs at least {LEAST_BATCHES} batches of calibration data, one of them held out"
        )
        return Refined(None, {})
    training = model.training
    model.eval()
    try:
        blocks = Blocks.of(model, [*layers, *(dense_linears(model) if gone else ())], few[0])
        inside = by_block(layers)
        groups = {name: inside.get(name, []) for name in blocks.modules}
        left = len(layers) - sum(map(len, groups.values()))
        if left:
            logger.warning(
                f"{left} of {len(layers)} factorized matrices are not refined: they are in no block that runs just once in a "
                "forward pass"
            )
        moments = None if statistics is None else statistics.second_moments
        generator = torch.Generator().manual_seed(config.seed)
        refiner = _Refiner(
            blocks, linears, layers, few, out, config.refine_steps, generator, moments, kept or {}, gone,
            done or RefinedBlocks(), embedded,
        )  # fmt: skip
        reached = refiner.run(groups)
        return Refined(Refinement(config.refine_steps, tuple(reached)) if reached else None, refiner.errors)
    finally:
        model.train(training)


@dataclass
class _Refiner:
    """Goes through the blocks once.

    Attributes:
        blocks: of a model that is dense in the blocks that are yet to come.
        linears: by name.
        layers: that take their place, by name.
        batches: of calibration data.
        held_out: numbers of the batches that errors are measured on; the steps are taken on the others.
        steps: for each block.
        generator: of the order of batches, and of rows where a batch has more than a step takes.
        moments: C of every linear's inputs, or None.
        kept: neurons that stay, of layers that lose some.
        gone: names of blocks that will not be there.
        done: blocks that an interrupted refinement left, and those of this one.
        embedded: word embeddings of low rank; None where they stay dense.
        errors: of the layers refined so far.
        dense: number of a batch → hidden states that the dense model has at the boundary reached; empty before the first block.
        now: the same of the model compressed so far.
    """

    blocks: Blocks
    linears: Mapping[str, nn.Linear]
    layers: Mapping[str, FactorizedLinear]
    batches: Sequence[Batch]
    held_out: Sequence[int]
    steps: int
    generator: torch.Generator
    moments: Mapping[str, Tensor] | None
    kept: Kept
    gone: Collection[str]
    done: RefinedBlocks
    embedded: Embedded | None
    errors: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    dense: States = field(default_factory=dict)
    now: States = field(default_factory=dict)

    def run(self, groups: Mapping[str, Sequence[str]]) -> list[BlockError]:
        """Refine all blocks.

        Args:
            groups: names of the layers of every block, in the order of a forward pass.
        """
        refined = sum(map(bool, groups.values()))
        total = refined * (2 * len(self.held_out) + STEP_PASSES * self.steps)
        total += (2 * len(groups) - len(self.gone)) * len(self.batches)
        reached = []
        with tqdm(total=total, desc="Refining", unit="pass", disable=not groups) as bar:
            for name, *behind in _spans(groups, self.gone):
                names = groups[name]
                moments = self._dense(name, names, bar)
                self._embed()
                for other in behind:
                    self.dense = self._replaced(other, self.dense, bar)
                if not names:  # it stays dense, or is gone
                    self.now = self.now if name in self.gone else self._replaced(name, self.now, bar)
                    continue
                swap_modules(self.blocks.modules[name], {self.linears[one]: self.layers[one] for one in names})
                reached.append(self._refine(name, names, bar))
                for one in names:
                    self.errors[one] = self._errors(one, moments[one])
        return reached

    def _embed(self) -> None:
        """Once it is known what the dense model reads at its first block, that of the compressed one comes of its own."""
        if self.embedded is not None:
            dense = self.blocks.model.get_submodule(self.embedded.name)
            swap_modules(self.blocks.model, {dense: self.embedded.module})
            self.embedded = None  # once

    def _dense(self, name: str, names: Sequence[str], bar: tqdm[None]) -> Mapping[str, Tensor]:
        """Run a block while it is dense; returns C of the inputs of its linears."""
        if self.moments is not None:
            self.dense = self._replaced(name, self.dense, bar)
            return self.moments
        inputs, modules = InputMoments(), {one: self.linears[one] for one in names}
        with ExitStack() as stack:
            for one, linear in modules.items():
                stack.callback(linear.register_forward_pre_hook(inputs.hook(one)).remove)
            self.dense = self._replaced(name, self.dense, bar, inputs)
        return inputs.moments(modules)

    def _refine(self, name: str, names: Sequence[str], bar: tqdm[None]) -> BlockError:
        pairs = (pair for one in names for pair in _rates(self.layers[one], basis_of(self.layers, one)))
        parameters, rates = zip(*pairs, strict=True)
        known = self.done.read(name)
        if known is None:
            error = self._learned(name, parameters, rates, bar)
            state = {"generator": self.generator.get_state(), "error": torch.tensor([error.before, error.after]).double()}
            self.done.write(name, {**state, **{str(place): parameter for place, parameter in enumerate(parameters)}})
        else:
            _put(parameters, [known[str(place)] for place in range(len(parameters))])
            self.generator.set_state(known["generator"])
            error = BlockError(name, *known["error"].tolist())
            bar.update(2 * len(self.held_out) + STEP_PASSES * self.steps)
        self.now = self._replaced(name, self.now, bar)
        return error

    def _learned(self, name: str, parameters: Sequence[Tensor], rates: Sequence[float], bar: tqdm[None]) -> BlockError:
        """Train a block; it stays as it was where it would not get better."""
        start = [parameter.detach().clone() for parameter in parameters]
        before = self._error(self._answers(name, self.now, self.held_out, bar))
        self._train(name, parameters, rates, bar)
        after = self._error(self._answers(name, self.now, self.held_out, bar))
        if not after < before:  # False also for NaN
            _put(parameters, start)
            after = before
        return BlockError(name, before, after)

    def _answers(self, name: str, before: States, numbers: Iterable[int], bar: tqdm[None]) -> States:
        """Hidden states behind a block, of those before it, for some batches."""
        answers = {}
        with torch.no_grad():
            for number in numbers:
                answers[number] = self._answer(name, self.batches[number], before.get(number))
                bar.update()
        return answers

    def _replaced(self, name: str, before: States, bar: tqdm[None], inputs: InputMoments | None = None) -> States:
        """The same for all batches; those before go one by one, so that memory holds them once. Adds up moments of inputs."""
        answers: States = {}
        for number in self.everything:
            if inputs is not None:
                inputs.clear()
                inputs.mask = padding_mask(self.batches[number])
            answers |= self._answers(name, before, [number], bar)
            before.pop(number, None)
        return answers

    def _answer(self, name: str, batch: Batch, before: Tensor | None) -> Tensor:
        with masked(padding_mask(batch)):
            return self.blocks.run(name, self.blocks.call(name, batch, before))

    def _error(self, answers: States) -> float:
        """How far hidden states are from the dense model's, relative to these, on the batches held out."""
        lost, whole = 0.0, torch.finfo(torch.float32).tiny
        for number in self.held_out:
            distance, norm = _compared(answers[number], self.dense[number], self.batches[number])
            lost, whole = lost + float(distance), whole + float(norm)
        return math.sqrt(lost / whole)

    def _train(self, name: str, parameters: Sequence[Tensor], rates: Sequence[float], bar: tqdm[None]) -> None:
        # Steps are far smaller than the spacing of a short dtype's numbers: they are taken in at least float32.
        masters = [p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in parameters]
        optimizer = torch.optim.AdamW([{"params": [master]} for master in masters], weight_decay=0.0)
        for step, number in enumerate(self._order()):
            rows = some_rows(self.batches[number], self.generator)
            batch = {key: value[rows.to(value.device)] for key, value in self.batches[number].items()}
            before = self.now[number][rows] if number in self.now else None  # the first block has none
            with torch.enable_grad():
                answer = self._answer(name, batch, before)
                distance, norm = _compared(answer, self.dense[number][rows], batch)
                gradients = torch.autograd.grad(distance / norm.clamp_min(torch.finfo(norm.dtype).tiny), parameters)
            for master, gradient in zip(masters, gradients, strict=True):
                master.grad = gradient.to(master.dtype)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _schedule(step, self.steps)
            optimizer.step()
            _put(parameters, masters)
            bar.update(STEP_PASSES)

    def _errors(self, name: str, moment: Tensor) -> tuple[float, float | None]:
        linear, layer = self.linears[name], self.layers[name]
        with torch.no_grad():
            if name in self.kept:
                rows = layer.setting.format == "fewer_outputs"
                return narrowed_errors(linear.weight, layer.cores[0], self.kept[name], rows, moment)
            restored, codec = layer.reconstruct(basis_of(self.layers, name)), layer.setting.codec
            output = relative_error(linear.weight, restored, moment) if codec.tokenwise else None
            return relative_error(codec.target(linear.weight, layer.setting.shape), restored), output

    @property
    def everything(self) -> range:
        """Numbers of all batches."""
        return range(len(self.batches))

    def _order(self) -> Iterator[int]:
        """Numbers of the batches to step on: in random order, again and again."""
        left: list[int] = []
        learned = [number for number in self.everything if number not in self.held_out]
        for _ in range(self.steps):
            left = left or torch.randperm(len(learned), generator=self.generator).tolist()
            yield learned[left.pop()]


def _spans(blocks: Iterable[str], gone: Collection[str]) -> list[list[str]]:
    """Each block with the gone ones behind it, the first ones by themselves."""
    spans: list[list[str]] = []
    for name in blocks:
        if name in gone and spans:
            spans[-1].append(name)
        else:
            spans.append([name])
    return spans


def _put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Give parameters their values."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _rates(layer: FactorizedLinear, basis: Tensor | None) -> Iterator[tuple[Tensor, float]]:
    """A layer's cores and bias, each with its learning rate: relative, so that they suit any format, model and scale."""
    with torch.no_grad():
        for core in layer.cores:
            if core.is_floating_point():  # an order of rows is not
                yield core, RATE * float(core.float().square().mean().sqrt())
        if layer.bias is not None:
            yield layer.bias, BIAS_RATE * float(layer.reconstruct(basis).float().square().sum(1).mean().sqrt())


def _schedule(step: int, steps: int) -> float:
    """Part of the learning rate: up in a line, down in a half cosine."""
    warm = max(1, round(WARMUP * steps))
    return min((step + 1) / warm, (1 + math.cos(math.pi * step / steps)) / 2)


def _compared(answer: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """‖y − y′‖² and ‖y‖² in float32, over what is not padding."""
    mask = padding_mask(batch)
    lost, whole = (answer.float() - target.float()).square(), target.float().square()
    if mask is not None and mask.shape == target.shape[:2]:
        lost, whole = lost[mask.to(lost.device)], whole[mask.to(lost.device)]
    return lost.sum(), whole.sum()
