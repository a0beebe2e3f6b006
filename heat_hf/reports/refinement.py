"""What block-wise refinement did, as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heat_hf.encoders.checkpoints.reading import typed
from heat_hf.encoders.values import whole

MOST_STEPS = 2**53


@dataclass(frozen=True)
class BlockError:
    """How far a Transformer block's outputs are from the dense block's, on calibration data held out.

    Attributes:
        name: of the block.
        before: ‖y − y′‖ / ‖y‖ before its refinement, y being what the dense block answers in the dense model, and y′ what the
            factorized one answers behind refined ones.
        after: the same after its refinement.
    """

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Refinement:
    """Of all blocks.

    Attributes:
        steps: of the optimizer, for each block.
        blocks: those that were refined, in the order of a forward pass.
    """

    steps: int
    blocks: tuple[BlockError, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"steps": self.steps, "blocks": [dataclasses.asdict(block) for block in self.blocks]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Refinement:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: if a key is missing, or a value is of another kind.
        """
        whole("steps", data["steps"], 1, MOST_STEPS)
        for block in data["blocks"]:
            typed(block, "name", str)
            for figure in ("before", "after"):
                typed(block, figure, float)
        return cls(data["steps"], tuple(BlockError(b["name"], float(b["before"]), float(b["after"])) for b in data["blocks"]))

    def __str__(self) -> str:
        errors = ", ".join(f"{block.name} {block.before:.4f} → {block.after:.4f}" for block in self.blocks)
        return f"Refined by {self.steps} steps a block; relative error of a block's outputs before → after: {errors}."
