"""What calibration data says of linear layers: C of their inputs, and G of the model's gradients at their outputs.

Collected once, in one pass over the data, and handed on: searches, projections and reports read the same `Statistics`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn
from tqdm.auto import tqdm

from heat_hf.encoders.batches import Batch, data_digest, sequences, tokens
from heat_hf.encoders.checkpoints.storage import atomic_file
from heat_hf.encoders.coherence import scaled_moments
from heat_hf.encoders.linears import tensors_digest
from heat_hf.encoders.moments import InputMoments, OutputMoments, run_watched, spread
from heat_hf.encoders.triangles import Moments, Triangle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRADIENT_ROWS = 1024  # a backward pass costs as much as two forward passes, and G needs fewer rows than C
FILE_VERSION = "4"


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
        tile_moments: module name → E[vec(X_K)vec(X_K)ᵀ] of its inputs in tiles of t tokens × t features, up to a factor, t²×t²,
            float64; empty where no tiles were asked for.
    """

    second_moments: Moments
    output_moments: Moments
    rows: int
    data_digest: str
    model_digest: str
    seed: int = 0
    tokens: int = 0
    tile_moments: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def collect(
        cls,
        model: PreTrainedModel,
        modules: Mapping[str, nn.Module],
        batches: Sequence[Batch],
        gradients: bool = True,
        seed: int = 0,
        bar: bool = True,
        tile: int = 0,
        disk: bool = False,
    ) -> Statistics:
        """Run every batch once; the gradients of about `GRADIENT_ROWS` sequences, evenly spread, are taken on the way.

        Args:
            model: a dense model; run in evaluation mode.
            modules: layers of the model, by name.
            batches: model inputs; an `attention_mask` marks padding.
            gradients: whether G is needed.
            seed: of the random directions in output space.
            bar: whether to show how far it is; not within other work that has a bar.
            tile: t, where moments of tiles are needed; 0 for none.
            disk: whether what is as large as the model, or larger, is kept in files without a name instead of in memory.

        Raises:
            ValueError: if a layer is never reached, or a moment is not finite.
            OSError: if there is no room on the disk.
        """
        batches = list(batches)
        inputs, outputs = InputMoments(tile, disk), OutputMoments(seed, disk)
        probed = spread(batches, GRADIENT_ROWS) if gradients else frozenset()
        shown = tqdm(batches, desc="Calibrating", unit="batch", disable=not bar)
        run_watched(model, modules, shown, inputs, outputs, probed, disk)
        moments = inputs.moments(modules)
        return cls(
            moments,
            scaled_moments(model, modules, batches, moments, outputs.moments(modules), seed, disk)
            if gradients
            else Moments({}),
            sum(map(sequences, batches)),
            data_digest(batches),
            tensors_digest(model.parameters()),
            seed,
            sum(map(tokens, batches)),
            inputs.tile_moments(modules),
        )

    @property
    def has_gradients(self) -> bool:
        """Whether there is a G for every layer."""
        return set(self.second_moments) == set(self.output_moments)

    def spans(self, name: str) -> bool:
        """Whether there are tokens enough to tell a layer's inputs apart; else C is singular, and errors in it mean nothing."""
        return self.tokens >= self.second_moments.width(name)

    def moments(self, name: str, gradients: bool = True) -> tuple[Tensor, Tensor | None]:
        """C and, if asked for, G of a layer."""
        return self.second_moments[name], self.output_moments[name] if gradients else None

    def require(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        gradients: bool,
        batches: Sequence[Batch] | None = None,
        tile: int = 0,
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
        if tile and any(len(self.tile_moments.get(name, ())) != tile**2 for name in names):
            raise ValueError(f"the statistics have no moments of tiles of {tile}: collect them with this decomposition")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; it appears whole or not at all. Moments that layers share are stored once.

        Raises:
            OSError: if it cannot be written.
        """
        from safetensors.torch import save_file

        second, output = self.second_moments, self.output_moments
        tensors = {f"C.{name}": triangle.elements for name, triangle in second.triangles.items()}
        tensors |= {f"G.{name}": triangle.elements for name, triangle in output.triangles.items()}
        tensors |= {f"T.{name}": self.tile_moments[name] for name in second.triangles if name in self.tile_moments}
        widths = {"C": _widths(second), "G": _widths(output)}
        names = ("rows", "data_digest", "model_digest", "seed", "tokens")
        about = {name: getattr(self, name) for name in names}
        header = {"heat_statistics": FILE_VERSION, "about": json.dumps(about), "shared": json.dumps(second.leaders)}
        header["widths"] = json.dumps(widths)
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
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, or holds no statistics: {error}") from error
        if header.get("heat_statistics") != FILE_VERSION:
            raise ValueError(f"{path} holds no statistics of version {FILE_VERSION}: collect them again")
        try:
            shared, widths = json.loads(header["shared"]), json.loads(header["widths"])
            second, output = (
                {name: Triangle(width, tensors[f"{kind}.{name}"]) for name, width in widths[kind].items()} for kind in "CG"
            )
            tiles = {name: tensors[f"T.{leader}"] for name, leader in shared.items() if f"T.{leader}" in tensors}
            about = json.loads(header["about"])
            return cls(Moments(second, shared), Moments(output), **about, tile_moments=tiles)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged, or holds no statistics: {error}") from error


def _widths(moments: Moments) -> dict[str, int]:
    return {name: triangle.width for name, triangle in moments.triangles.items()}
