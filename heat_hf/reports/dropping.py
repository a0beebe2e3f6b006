"""Which Transformer blocks a model lost, as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heat_hf.encoders.values import shown, whole

MOST = 2**53


@dataclass(frozen=True)
class Dropped:
    """Blocks that went.

    Attributes:
        blocks: their names in the dense model.
        of: number of the dense model's blocks.
        others: of their parameters, those that are in no matrix of the report: biases and layer norms.
    """

    blocks: tuple[str, ...]
    of: int
    others: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**dataclasses.asdict(self), "blocks": list(self.blocks)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Dropped:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: if a key is missing, or a value is of another kind.
        """
        blocks = tuple(data["blocks"])
        if not blocks or not all(isinstance(name, str) for name in blocks):
            raise ValueError(f"blocks must be names, got {shown(data['blocks'])}")
        whole("of", data["of"], len(blocks), MOST)
        whole("others", data["others"], 0, MOST)
        return cls(blocks, data["of"], data["others"])

    def __str__(self) -> str:
        return f"{len(self.blocks)} of {self.of} blocks dropped: {', '.join(self.blocks)}."
