"""The Rank SuperNet: one set of cores for every rank, so that networks are compared without training each (paper, Fig. 8).

A SubNet is a rank for every tensor; it takes slices of the SuperNet's cores. Four stabilizers, each of which can be switched
off, keep its training from becoming unstable.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from heat_hf.encoders.linears import factorized_layers
from heat_hf.encoders.signals import divergence, hidden_distance, output_signals
from heat_hf.encoders.training import TeachingArguments, TeachingTrainer, disable_dropout
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.search.ranks.space import Choice, RankSpace

VARIANCES = ("projected", "weight")


@dataclass(frozen=True)
class Stabilizers:
    """The four techniques of section 2.2.2.

    Attributes:
        first_slices: SubNets take the first r slices along each axis; without it, r random ones.
        bounded_change: from one iteration to the next, a tensor's rank moves by at most a few options, towards a SubNet that is
            drawn anew every few steps; without it, every iteration draws a new one.
        sandwich: every iteration trains the largest, the smallest and a random SubNet; without it, a random one.
        normalized_variance: W′ is scaled to a target variance, by √(Var target / Var W′).
        hold: steps after which the bounded change turns to another SubNet; a tensor moves by at most this part of its options.
        spread: of a tensor's place among its options, around the SubNet's own.
        variance: the target, "projected" for that of W′ before training, rank by rank, or "weight" for that of W.

    Raises:
        ValueError: for a value that cannot work.
    """

    first_slices: bool = True
    bounded_change: bool = True
    sandwich: bool = True
    normalized_variance: bool = True
    hold: int = 8
    spread: float = 0.2
    variance: str = VARIANCES[0]

    def __post_init__(self) -> None:
        if self.hold < 1:
            raise ValueError(f"hold must be at least 1 step, got {self.hold}")
        if self.spread < 0:
            raise ValueError(f"spread must not be negative, got {self.spread}")
        if self.variance not in VARIANCES:
            raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, got {self.variance!r}")


STABILIZERS = tuple(field.name for field in fields(Stabilizers) if field.type in (bool, "bool"))  # those to switch off


class RankSuperNet:
    """Sets a model's factorized layers to the ranks of SubNets.

    Args:
        model: its layers have, for every tensor of the space, a rank at least as large as every option's.
        space: what SubNets choose from; no dense options.
        stabilizers: which of them are on while sampling and setting.
        seed: of the SubNets; the one of a training step depends on nothing else, so training can be resumed.
        linears: the dense layers by name, whose variances are kept where that is the stabilizers' target; else not needed.

    Raises:
        ValueError: if a tensor is no factorized layer of the model, or has a dense option.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        space: RankSpace,
        stabilizers: Stabilizers | None = None,
        seed: int = 0,
        linears: Mapping[str, nn.Linear] | None = None,
    ) -> None:
        layers = factorized_layers(model)
        missing = [name for name in space.names if name not in layers]
        if missing:
            raise ValueError(f"{missing[0]!r} is no factorized layer of the model ({len(missing)} such tensors)")
        if any(setting is None for settings in space.options.values() for setting in settings):
            raise ValueError("a SuperNet has no dense options: leave them out of its space")
        self.model = model
        self.space = space
        self.layers = {name: layers[name] for name in space.names}
        self.stabilizers = stabilizers or Stabilizers()
        self.seed = seed
        self._walk: list[Choice] = []
        self._targets = {}
        if self.stabilizers.normalized_variance:
            if self.stabilizers.variance == "weight" and linears is None:
                raise ValueError("the variance of weights is to be kept: give the dense linears")
            self._targets = {name: self._variances(name, (linears or {}).get(name)) for name in space.names}

    def _variances(self, name: str, linear: nn.Linear | None) -> list[float]:
        """What normalization keeps for every option: the variance of W′ as projected, before training, or of W."""
        layer, variances = self.layers[name], []
        if self.stabilizers.variance == "weight":
            assert linear is not None
            return [float(linear.weight.detach().var())] * len(self.space.options[name])
        for setting in self.space.options[name]:
            assert setting is not None
            layer.set_rank(setting.rank)
            variances.append(_variance(layer))
        layer.set_rank(None)
        return variances

    def slices(self, number: int) -> np.random.Generator | None:
        """What `set` takes for a numbered SubNet that is measured: random slices where the SuperNet was trained on such."""
        return None if self.stabilizers.first_slices else np.random.default_rng([self.seed, 8, number])

    def draw(self, rng: np.random.Generator) -> Choice:
        """A random SubNet: of a random size, its tensors around that size."""
        last = self.space.sizes - 1
        places = rng.uniform() + self.stabilizers.spread * rng.standard_normal(len(last))
        return np.clip(np.rint(places * last), 0, last).astype(np.int64)

    def sampled(self, step: int) -> Choice:
        """The random SubNet of a training step."""
        if not self.stabilizers.bounded_change:
            return self.draw(np.random.default_rng([self.seed, step]))
        while len(self._walk) <= step:
            number = len(self._walk)
            goal = self.draw(np.random.default_rng([self.seed, number // self.stabilizers.hold]))
            if number == 0:
                self._walk.append(goal)
                continue
            bound = np.maximum(1, self.space.sizes // self.stabilizers.hold)
            self._walk.append(self._walk[-1] + np.clip(goal - self._walk[-1], -bound, bound))
        return self._walk[step]

    def choices(self, step: int) -> list[Choice]:
        """The SubNets of a training step."""
        random = self.sampled(step)
        return [self.space.largest(), self.space.smallest(), random] if self.stabilizers.sandwich else [random]

    def set(self, choice: Choice, rng: np.random.Generator | None = None) -> None:
        """Make the model this SubNet.

        Args:
            choice: places of options.
            rng: of the slices, where these are random; default: the first slices.
        """
        for (name, layer), number in zip(self.layers.items(), choice, strict=True):
            setting = self.space.options[name][int(number)]
            assert setting is not None
            slices = _random_slices(layer, setting.rank, rng) if rng is not None else None
            layer.set_rank(setting.rank, slices)
            if self._targets:
                variance = _variance(layer)
                gain = (self._targets[name][int(number)] / variance) ** 0.5 if variance > 0 else 1.0
                layer.set_rank(setting.rank, slices, gain)


def _variance(layer: FactorizedLinear) -> float:
    with torch.no_grad():
        return float(layer.reconstruct().var())


def _random_slices(layer: FactorizedLinear, rank: Any, rng: np.random.Generator) -> dict[str, Tensor]:  # noqa: ANN401
    """As many slices of every rank index as the rank has, in order, the same in all cores that share the index."""
    codec, shape = layer.setting.codec, layer.setting.shape
    extents = codec.core_shapes(shape, rank)
    slices: dict[str, Tensor] = {}
    for indices, core, cut in zip(codec.subscripts(shape).cores, layer.cores, extents, strict=True):
        for index, whole, size in zip(indices, core.shape, cut, strict=True):
            if size < whole and index not in slices:
                slices[index] = torch.from_numpy(np.sort(rng.choice(whole, size, replace=False)))
    return slices


def default_subnets() -> int:
    """SubNets to evaluate where nothing else is said: 200 for each core that may be used, at most the paper's 2,560."""
    return min(2560, 200 * len(os.sched_getaffinity(0)))


@dataclass
class SuperNetArguments(TeachingArguments):
    """How the SuperNet is trained, and how many SubNets are looked at.

    Trainer's own options, with defaults for a short distillation; checkpoints go beside the search's output.

    Attributes:
        hidden_weight: of the hidden states' distance to the teacher's, beside the outputs' divergence.
        subnets: SubNets to evaluate for the accuracy predictor, held-out ones included; see `default_subnets`.
        least_share: parameters of the smallest options, as a fraction of the matrix's.
        largest_share: of the largest.
        without: stabilizers that are left out, of `STABILIZERS`.
        hold, spread, variance: see `Stabilizers`.
        prior: whether SubNets' accuracies are predicted from what `rank_search="sensitivity"` says they lose, corrected by the
            forest, and the evolution starts from its choice; needs calibration data.

    Raises:
        ValueError: for a value that cannot work.
    """

    output_dir: str | None = field(default="supernet", metadata={"help": "not used by a search"})
    max_steps: int = field(default=600, metadata={"help": "steps of the SuperNet's training"})
    warmup_steps: float = field(default=60, metadata={"help": "steps until it is reached"})
    save_steps: float = field(default=100, metadata={"help": "steps between checkpoints, from which training is resumed"})
    hidden_weight: float = field(default=10.0, metadata={"help": "weight of the hidden states' distance"})
    subnets: int = field(default_factory=default_subnets, metadata={"help": "SubNets to evaluate for the predictor"})
    least_share: float = field(default=0.06, metadata={"help": "smallest options, as a fraction of the parameters"})
    largest_share: float = field(default=0.8, metadata={"help": "largest options"})
    without: list[str] = field(default_factory=list, metadata={"help": "stabilizers left out"})
    hold: int = field(default=Stabilizers.hold, metadata={"help": "steps until the walk turns to another SubNet"})
    spread: float = field(default=Stabilizers.spread, metadata={"help": "of tensors around the size of their SubNet"})
    variance: str = field(default=Stabilizers.variance, metadata={"help": "what variances are normalized to"})
    prior: bool = field(default=False, metadata={"help": "start from what sensitivity says, and correct it"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least_share < self.largest_share <= 1:
            raise ValueError(f"least_share must be below largest_share, got {self.least_share} and {self.largest_share}")
        unknown = [name for name in self.without if name not in STABILIZERS]
        if unknown:
            raise ValueError(f"without must name some of {', '.join(STABILIZERS)}, got {unknown[0]!r}")
        _ = self.stabilizers
        if self.subnets < 20:
            raise ValueError(f"subnets must be at least 20, a fifth of them is held out, got {self.subnets}")
        if self.hidden_weight < 0:
            raise ValueError(f"hidden_weight must not be negative, got {self.hidden_weight}")

    @property
    def stabilizers(self) -> Stabilizers:
        """Those that are on, with their settings."""
        off: dict[str, Any] = dict.fromkeys(self.without, False)
        return Stabilizers(**off, hold=self.hold, spread=self.spread, variance=self.variance)


class SuperNetTrainer(TeachingTrainer):
    """Trains the SubNets of a step together, each distilled from the dense teacher; labels are not used.

    Accelerate, mixed precision, gradient accumulation, checkpoints and resuming are Trainer's. All micro-batches of a step
    train the same SubNets, which depend on the seed and the step alone.

    Args:
        supernet: the SuperNet; its model is trained.
        teacher: the dense model.
        **kwargs: of Trainer, less `model`.
    """

    args: SuperNetArguments

    def __init__(self, supernet: RankSuperNet, teacher: PreTrainedModel, **kwargs: Any) -> None:
        disable_dropout(supernet.model)
        super().__init__(model=supernet.model, **kwargs)
        self.supernet = supernet
        self.teacher = self.dense = teacher.eval().to(self.args.device)
        self.rows = self.train_dataset

    @property
    def key(self) -> dict[str, Any]:
        """With what decides which SubNets are trained."""
        net = self.supernet
        return {
            **super().key,
            "options": net.space.sizes.tolist(),
            "SubNets' seed": net.seed,
            "stabilizers": str(net.stabilizers),
        }

    def loss_and_outputs(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """Mean over the step's SubNets of the divergence from the teacher, outputs and hidden states."""
        given = {key: value for key, value in inputs.items() if key != "labels"}
        with torch.no_grad():
            target = self.teacher(**given, output_hidden_states=True)
        step, stabilizers = self.state.global_step, self.supernet.stabilizers
        losses, outputs = [], None
        for number, choice in enumerate(self.supernet.choices(step)):
            rng = None if stabilizers.first_slices else np.random.default_rng([self.supernet.seed, step, number])
            self.supernet.set(choice, rng)
            outputs = model(**given, output_hidden_states=True)
            losses.append(self._distance(outputs, target, given))
        return torch.stack(losses).mean(), outputs

    def _distance(self, outputs: Any, target: Any, inputs: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401
        teacher = self.teacher
        lost = divergence(output_signals(outputs, inputs, teacher), output_signals(target, inputs, teacher))
        apart = hidden_distance(outputs.hidden_states, target.hidden_states, inputs.get("attention_mask"))
        return lost + self.args.hidden_weight * apart


def sample_subnets(supernet: RankSuperNet, count: int, seed: int) -> list[Choice]:
    """Distinct SubNets to evaluate, the smallest and the largest among them.

    Raises:
        ValueError: if the space has fewer.
    """
    space = supernet.space
    if float(np.prod(space.sizes.astype(np.float64))) < count:
        raise ValueError(f"subnets={count} is more than the space has: {int(np.prod(space.sizes))}")
    rng = np.random.default_rng([seed, 1])
    subnets = {tuple(space.smallest()): space.smallest(), tuple(space.largest()): space.largest()}
    while len(subnets) < count:
        choice = supernet.draw(rng)
        subnets.setdefault(tuple(choice), choice)
    return list(subnets.values())[:count]
