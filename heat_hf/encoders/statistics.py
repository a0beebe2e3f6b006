"""What calibration data says of linear layers: C of their inputs, and G of the model's gradients at their outputs.

Collected once, in one pass over the data, and handed on: searches, projections and reports read the same `Statistics`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from heat_hf.encoders.batches import Batch, data_digest, model_inputs, sequences, tokens
from heat_hf.encoders.checkpoints.storage import atomic_file
from heat_hf.encoders.linears import tensors_digest
from heat_hf.encoders.signals import output_signals, random_probe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRADIENT_ROWS = 1024  # a backward pass costs as much as two forward passes, and G needs fewer rows than C
FILE_VERSION = "2"


@dataclass(frozen=True)
class Statistics:
    """Second moments of layers on calibration data, and of what they were taken.

    With g the gradient at one token of the square root of the divergence (`heat_hf.encoders.signals`), G = E Σ_tokens g gᵀ over
    sequences. If a layer's weight is off by Δ, the model's outputs diverge by ½ tr(G Δ C Δᵀ) on average, to second order
    and with inputs and gradients taken as independent. No labels are used.

    Attributes:
        second_moments: module name → C = E[xxᵀ] of its inputs over all tokens that are not padding, N×N, float64; layers with
            the same input share one tensor.
        output_moments: module name → G, M×M, float64; empty where gradients were not asked for.
        rows: sequences of the data.
        data_digest: of the batches.
        model_digest: of the model's parameters, in their order; names do not matter.
        seed: of the random directions in output space.
        tokens: of the data, without padding. C of a layer with more inputs than that is singular.
    """

    second_moments: Mapping[str, Tensor]
    output_moments: Mapping[str, Tensor]
    rows: int
    data_digest: str
    model_digest: str
    seed: int = 0
    tokens: int = 0

    @classmethod
    def collect(
        cls,
        model: PreTrainedModel,
        modules: Mapping[str, nn.Module],
        batches: Sequence[Batch],
        gradients: bool = True,
        seed: int = 0,
        bar: bool = True,
    ) -> Statistics:
        """Run every batch once; the gradients of about `GRADIENT_ROWS` sequences, evenly spread, are taken on the way.

        Args:
            model: a dense model; run in evaluation mode.
            modules: layers of the model, by name.
            batches: model inputs; an `attention_mask` marks padding.
            gradients: whether G is needed.
            seed: of the random directions in output space.
            bar: whether to show how far it is; not within other work that has a bar.

        Raises:
            ValueError: if a layer is never reached, or a moment is not finite.
        """
        batches = list(batches)
        inputs, outputs = InputMoments(), _Outputs(seed)
        probed = _spread(batches, GRADIENT_ROWS) if gradients else frozenset()
        shown = tqdm(batches, desc="Calibrating", unit="batch", disable=not bar)
        _run(model, modules, shown, inputs, outputs, probed)
        return cls(
            inputs.moments(modules),
            outputs.moments(modules) if gradients else {},
            sum(map(sequences, batches)),
            data_digest(batches),
            tensors_digest(model.parameters()),
            seed,
            sum(map(tokens, batches)),
        )

    @property
    def has_gradients(self) -> bool:
        """Whether there is a G for every layer."""
        return set(self.second_moments) == set(self.output_moments)

    def spans(self, name: str) -> bool:
        """Whether there are tokens enough to tell a layer's inputs apart; else C is singular, and errors in it mean nothing."""
        return self.tokens >= len(self.second_moments[name])

    def moments(self, name: str, gradients: bool = True) -> tuple[Tensor, Tensor | None]:
        """C and, if asked for, G of a layer."""
        return self.second_moments[name], self.output_moments[name] if gradients else None

    def require(
        self, model: PreTrainedModel, names: Sequence[str], gradients: bool, batches: Sequence[Batch] | None = None
    ) -> None:
        """Make sure that these are the statistics of a model's layers on calibration data, if that is at hand, too.

        Raises:
            ValueError: if they are of another model or other data, lack a layer, or lack gradients that are needed.
        """
        digest = tensors_digest(model.parameters())
        if self.model_digest != digest:
            raise ValueError(
                f"the statistics are of another model: its digest is {self.model_digest}, this model's is {digest}"
            )
        if batches is not None and self.data_digest != data_digest(batches):
            raise ValueError("the statistics are of other calibration data: leave out the data, or collect statistics of it")
        missing = [name for name in names if name not in self.second_moments]
        if missing:
            raise ValueError(
                f"the statistics lack {missing[0]!r} ({len(missing)} such layers): collect them with these modules"
            )
        if gradients and not self.has_gradients:
            raise ValueError("the statistics have no gradients: collect them with loss_aware left at None or True")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; it appears whole or not at all. Moments that layers share are stored once.

        Raises:
            OSError: if it cannot be written.
        """
        from safetensors.torch import save_file

        first: dict[int, str] = {}
        shared = {name: first.setdefault(id(moment), name) for name, moment in self.second_moments.items()}
        tensors = {f"C.{name}": self.second_moments[name].contiguous() for name in first.values()}
        tensors |= {f"G.{name}": moment.contiguous() for name, moment in self.output_moments.items()}
        names = ("rows", "data_digest", "model_digest", "seed", "tokens")
        about = {name: getattr(self, name) for name in names}
        header = {"heat_statistics": FILE_VERSION, "about": json.dumps(about), "shared": json.dumps(shared)}
        with atomic_file(path) as file:
            save_file(tensors, file, metadata=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds no statistics, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"no statistics file {path}")
        try:
            with safe_open(str(path), "pt") as file:
                header = file.metadata() or {}
                if header.get("heat_statistics") != FILE_VERSION:
                    raise ValueError(f"{path} holds no statistics of version {FILE_VERSION}: collect them again")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
            shared = json.loads(header["shared"])
            second = {name: tensors[f"C.{leader}"] for name, leader in shared.items()}
            output = {name[2:]: moment for name, moment in tensors.items() if name.startswith("G.")}
            return cls(second, {name: output[name] for name in shared if name in output}, **json.loads(header["about"]))
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged, or holds no statistics: {error}") from error


def _run(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    inputs: InputMoments,
    outputs: _Outputs,
    probed: frozenset[int],
) -> None:
    training, device = model.training, model.device
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(inputs.hook(name)).remove)
            stack.callback(module.register_forward_hook(outputs.hook(name)).remove)
        for number, batch in enumerate(batches):
            given = model_inputs(batch, device)
            inputs.mask = outputs.mask = padding_mask(given)
            with torch.set_grad_enabled(number in probed):
                answer = _answer(model, given, number)
                if number in probed:
                    outputs.add(output_signals(answer, given, model), sequences(batch))
            inputs.seen.clear()


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


def _outer(rows: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
    """Σ x xᵀ over the rows that are not padding, and their number."""
    if mask is not None and rows.shape[:-1] == mask.shape:
        rows = rows[mask]
    flat = rows.reshape(-1, rows.shape[-1]).float()
    return (flat.T @ flat).double(), len(flat)


@dataclass
class InputMoments:
    """Adds up x xᵀ over the rows of every layer's inputs; layers fed the same tensor share one sum."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    leader: dict[str, str] = field(default_factory=dict)
    seen: dict[tuple[int, int], tuple[Tensor, str]] = field(
        default_factory=dict
    )  # keeps tensors alive, so that their ids stay theirs
    mask: Tensor | None = None

    def hook(self, name: str) -> Callable[..., None]:
        """To be called before the layer."""

        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            if name not in self.leader:
                version = 0 if x.is_inference() else x._version  # changed in place, it is another input
                self.leader[name] = self.seen.setdefault((id(x), version), (x, name))[1]
            if self.leader[name] == name:
                product, rows = _outer(x.detach(), self.mask)
                self.sums[name] = self.sums[name].add_(product) if name in self.sums else product
                self.rows[name] = self.rows.get(name, 0) + rows

        return add

    def moments(self, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """C of every layer; the sums are used up."""
        unused = [name for name in modules if name not in self.leader]
        if unused:
            raise ValueError(f"the calibration data never reaches {unused[0]!r} ({len(unused)} such layers)")
        means = {}
        for name in list(self.sums):
            # In place: sums and means side by side would take twice the memory.
            moment = self.sums.pop(name).div_(self.rows[name])
            if not torch.isfinite(moment).all():
                raise ValueError(f"the calibration inputs of {name!r} are not finite")
            means[name] = moment
        return {name: means[self.leader[name]] for name in modules}


class _Outputs:
    """Adds up g gᵀ over the rows of the gradients at every layer's outputs."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.sums: dict[str, Tensor] = {}
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
        for (name, _), gradient in zip(self.reached, gradients, strict=True):
            if gradient is None:  # a layer that the outputs do not depend on
                continue  # type: ignore[unreachable]
            self.sums[name] = self.sums.get(name, 0) + _outer(gradient, self.mask)[0]
        self.reached.clear()
        self.sequences += sequences

    def moments(self, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """G of every layer; the sums are used up."""
        lost = [name for name in modules if name not in self.sums or not torch.isfinite(self.sums[name]).all()]
        if lost:
            raise ValueError(f"the model's outputs have no finite gradient at {lost[0]!r} ({len(lost)} such layers)")
        return {name: self.sums.pop(name).div_(self.sequences) for name in modules}


def _spread(batches: Sequence[Batch], rows: int) -> frozenset[int]:
    """Numbers of batches with about so many rows together, evenly spread: they are often sorted by length."""
    total = sum(map(sequences, batches))
    count = max(1, round(len(batches) * min(1.0, rows / max(1, total))))
    return frozenset((2 * i + 1) * len(batches) // (2 * count) for i in range(count))
