"""What a Transformer block does between its matrices with what they answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Between:
    """An activation function, neuron by neuron, or attention, head by head: fewer of them take less time.

    Attributes:
        units: neurons, or heads.
        size: features of one: 1 of a neuron.
        activation: the function's name in Transformers; "" is attention.
        batch_size, sequence_length: sequences of a forward pass, and tokens of each.
    """

    units: int
    size: int
    activation: str
    batch_size: int
    sequence_length: int

    @property
    def features(self) -> int:
        """Of all units."""
        return self.units * self.size

    def __str__(self) -> str:
        return f"{self.activation or 'attention'} {self.units}x{self.size}"
