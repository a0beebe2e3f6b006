"""What C and G miss, taken as independent and token by token: errors of a layer add up over the tokens of a sequence.

To second order, the divergence that an error Δ of a layer's weight causes is ½ E (Σ_tokens gᵀ Δ x)², and ½ tr(G Δ C Δᵀ) is what
is left of it if the terms of the sum are independent, and g of x. Neither holds: a query's errors at all tokens point the same
way, a value's weigh most where inputs are small. So G is scaled, layer by layer, until both agree for an error like that of a
projection, and losses of different layers become comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heat_hf.encoders.batches import Batch
from heat_hf.encoders.moments import Gradients, run_watched, spread
from heat_hf.encoders.triangles import Moments, in_file
from heat_hf.formats.projection import OUTPUT_DAMPING, triangular_root

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 512  # the scale of a layer is then off by some 6 % (a standard deviation)
LOST = 0.1  # of what would be lost without the matrix, the error's part


def scaled_moments(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    second_moments: Mapping[str, Tensor],
    output_moments: Moments,
    seed: int = 0,
    disk: bool = False,
) -> Moments:
    """G of every layer with a weight matrix, scaled so that losses of an error count as what they do to whole sequences.

    Args:
        model: a dense model; run in evaluation mode on about `ROWS` sequences, evenly spread.
        modules: layers of the model, by name.
        batches: model inputs; an `attention_mask` marks padding.
        second_moments: C of every layer's inputs, N×N, float64.
        output_moments: G of every layer's outputs, M×M, float64; scaled in place.
        seed: of the random directions in output space.
        disk: whether errors, which together are as large as the model, are kept in files, see `room`.
    """
    errors, losses = {}, {}
    for name, module in modules.items():
        weight = module.weight
        assert isinstance(weight, Tensor)
        error, losses[name] = typical_error(weight, second_moments[name], output_moments[name])
        errors[name] = in_file(error) if disk else error
    chosen = [batches[number] for number in sorted(spread(batches, ROWS))]
    inputs = _Moved(errors, disk)
    outputs = _Sums(inputs, seed + 1)  # other directions than those that G was taken along
    run_watched(model, modules, chosen, inputs, outputs, range(len(chosen)), disk)
    scales = {name: outputs.loss(name) / lost for name, lost in losses.items() if lost and outputs.loss(name)}
    for name, triangle in output_moments.triangles.items():
        triangle.elements.mul_(scales.get(name, 1.0))
    return output_moments


def typical_error(weight: Tensor, second_moment: Tensor, output_moment: Tensor) -> tuple[Tensor, float]:
    """W − W′ for a low rank that loses about `LOST` of all that the matrix does, and its loss ½‖G^{1/2}(W − W′)C^{1/2}‖_F².

    Args:
        weight: W, M×N.
        second_moment: C, N×N.
        output_moment: G, M×M; damped as wherever losses are computed.
    """
    matrix = weight.detach().double()
    rows = triangular_root(output_moment.to(matrix), OUTPUT_DAMPING)
    columns = triangular_root(second_moment.to(matrix))
    whitened = rows.T @ matrix @ columns
    wide = matrix.shape[0] <= matrix.shape[1]
    values, vectors = torch.linalg.eigh(whitened @ whitened.T if wide else whitened.T @ whitened)
    tails = values.clamp_min(0).cumsum(0) / 2  # of so many of the smallest
    lost = vectors[:, tails <= LOST * tails[-1]]
    error = lost @ (lost.T @ whitened) if wide else (whitened @ lost) @ lost.T
    loss = float(error.square().sum()) / 2
    error = torch.linalg.solve_triangular(rows.T, error, upper=True)
    error = torch.linalg.solve_triangular(columns, error, upper=False, left=False)
    return error.to(weight), loss


class _Moved:
    """What an error of every layer's weight adds to its outputs, Δx, in its last call."""

    def __init__(self, errors: Mapping[str, Tensor], disk: bool) -> None:
        self.errors = errors
        self.disk = disk
        self.last: dict[str, Tensor] = {}
        self.mask: Tensor | None = None

    def hook(self, name: str) -> Callable[..., None]:
        """To be called before the layer."""

        def move(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            moved = args[0].detach() @ self.errors[name].T
            self.last[name] = in_file(moved) if self.disk else moved

        return move

    def clear(self) -> None:
        """A batch is done."""
        self.last.clear()


class _Sums(Gradients):
    """Adds up (Σ_tokens gᵀ Δ x)² over sequences."""

    def __init__(self, moved: _Moved, seed: int) -> None:
        super().__init__(seed)
        self.moved = moved
        self.products: dict[tuple[str, int], Tensor] = {}
        self.squares: dict[str, float] = {}

    def taker(self, name: str) -> Callable[[Tensor], None]:
        """Adds the products of every sequence, over all calls of a layer with as many rows."""
        moved = self.moved.last.pop(name)

        def take(gradient: Tensor) -> None:
            products = (gradient * moved).sum(-1)
            if self.mask is not None and products.shape == self.mask.shape:
                products = products * self.mask
            key = name, len(products)  # of relative positions, all sequences of a batch have the same
            self.products[key] = self.products.get(key, 0) + products.reshape(len(products), -1).sum(1).double()

        return take

    def add(self, signals: Any, sequences: int) -> None:  # noqa: ANN401
        """Take the gradients of the forward pass that just ran, and square what they say of each sequence."""
        super().add(signals, sequences)
        for (name, _), values in self.products.items():
            self.squares[name] = self.squares.get(name, 0.0) + float(values.square().sum())
        self.products.clear()

    def loss(self, name: str) -> float:
        """The divergence that the layer's error causes; 0 where the model's outputs do not depend on it."""
        return self.squares.get(name, 0.0) / (2 * max(1, self.sequences))
