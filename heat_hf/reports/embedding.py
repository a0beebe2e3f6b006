"""What word embeddings of low rank are in place of, as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heat_hf.encoders.checkpoints.reading import require_figures
from heat_hf.encoders.values import shown, whole

MOST = 2**53


@dataclass(frozen=True)
class EmbeddingReport:
    """Word embeddings of low rank.

    Attributes:
        name: of the module.
        tokens, width: extents of the dense table.
        rank: of what takes its place.
        error: ‖D^{1/2}(E − E′)G^{1/2}‖_F / ‖D^{1/2}E G^{1/2}‖_F, with D how often tokens come in the calibration data and G the
            second moment of the gradients there; None in a plan.
    """

    name: str
    tokens: int
    width: int
    rank: int
    error: float | None = None

    @property
    def dense_parameters(self) -> int:
        """Of the table before."""
        return self.tokens * self.width

    @property
    def parameters(self) -> int:
        """Of what takes its place."""
        return self.rank * (self.tokens + self.width)

    @property
    def lost(self) -> int:
        """Parameters that went."""
        return self.dense_parameters - self.parameters

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EmbeddingReport:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: if a key is missing, or a value is of another kind.
        """
        if not isinstance(data["name"], str):
            raise ValueError(f"name must be text, got {shown(data['name'])}")
        for name in ("tokens", "width", "rank"):
            whole(name, data[name], 1, MOST)
        require_figures(data, "error")
        return cls(**{field.name: data[field.name] for field in dataclasses.fields(cls)})

    def __str__(self) -> str:
        before, after = self.dense_parameters, self.parameters
        error = "" if self.error is None else f"; error {self.error:.4f}, weighed by how often tokens come"
        size = f"{before:,} → {after:,} parameters, ×{after / before:.3f}"
        return f"Word embeddings of {self.tokens:,} tokens at rank {self.rank}: {size}{error}."
