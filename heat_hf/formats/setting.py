"""What one matrix got: its format, tensorization shape, rank and way of execution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from heat_hf.formats import Format, Rank, TensorShape, get_format
from heat_hf.formats.base import TOKENS
from heat_hf.formats.plan import ContractionPlan, Path
from heat_hf.formats.planning import plan_contraction
from heat_hf.formats.size import MatrixSize

Execution = Literal["auto", "contract", "reconstruct"]
EXECUTIONS = get_args(Execution)
# Elements a step reads and writes cost time as well as its MACs. On CPUs one element moved takes about as long as this
# many MACs; `benchmarks/linear.py` measures both ways of execution side by side.
MACS_PER_ELEMENT = 16
MOST_MODES = 12  # of a setting that is read: the search for a contraction path grows exponentially with them


@dataclass(frozen=True)
class TensorSetting:
    """Factorization setting (s, r) of one matrix, checked when it is made.

    Attributes:
        format: name of the format, one of `heat_hf.formats.FORMATS`.
        shape: tensorization shape s.
        rank: decomposition rank r, one integer for each rank of the format.
        execution: "contract" multiplies the input with the cores along the MAC-optimal path, "reconstruct" rebuilds W′ in
            every forward pass, "auto" takes the one with less work (MACs and memory traffic).

    Raises:
        ValueError: for an unknown format or execution, a shape the format cannot use, or a rank outside its bounds.
    """

    format: str
    shape: TensorShape
    rank: Rank
    execution: Execution = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", self.codec.parse_rank(self.shape, self.rank))
        if self.execution not in EXECUTIONS:
            raise ValueError(f"execution must be one of {', '.join(EXECUTIONS)}, got {self.execution!r}")
        if self.execution == "reconstruct" and self.codec.path is not None:
            raise ValueError(f"{self.format} is never executed by rebuilding W′: execution must be 'auto' or 'contract'")

    @property
    def codec(self) -> Format:
        """The format's implementation."""
        return get_format(self.format)

    @property
    def core_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Extents of the cores."""
        return self.codec.core_shapes(self.shape, self.rank)

    @property
    def size(self) -> MatrixSize:
        """Extents of the matrix that it is for."""
        return MatrixSize(self.shape.rows, self.shape.columns)

    @property
    def parameters(self) -> int:
        """Number of core elements, bias not counted."""
        return self.codec.parameters(self.shape, self.rank)

    @property
    def dense_parameters(self) -> int:
        """M·N."""
        return self.shape.rows * self.shape.columns

    @property
    def ratio(self) -> float:
        """Compression ratio c = parameters / M·N (paper, section 2.1)."""
        return self.parameters / self.dense_parameters

    def plan(self, tokens: int) -> ContractionPlan:
        """How y = x·W′ᵀ is computed for `tokens` rows of x, by the way of execution asked for.

        Its operands are x, folded to (tokens, *in_modes), and the cores; its result is (tokens, *out_modes). Without cores it
        has no steps.
        """
        if not self.core_shapes:  # there is nothing to do
            return ContractionPlan("", {}, (), "optimal", ())
        if self.codec.path is not None:
            return _plan(self, tokens, self.codec.path)
        if self.execution == "contract":
            return _plan(self, tokens, "optimal")
        rebuilt = _plan(self, tokens, "reconstruct")
        if self.execution == "reconstruct":
            return rebuilt
        return min(_plan(self, tokens, "optimal"), rebuilt, key=lambda plan: plan.macs + MACS_PER_ELEMENT * plan.traffic)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: shape as [row modes, column modes]."""
        return {
            "format": self.format,
            "shape": [list(self.shape.out_modes), list(self.shape.in_modes)],
            "rank": list(self.rank),
            "execution": self.execution,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorSetting:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: if a key is missing or unknown, or a value is not valid.
        """
        fields = {"format", "shape", "rank", "execution"}
        if not isinstance(data, Mapping) or set(data) - fields or fields - {"execution"} - set(data):
            raise ValueError(f"a tensor setting must have format, shape, rank and optionally execution, got {data!r}")
        try:
            rows, columns = data["shape"]
            shape = TensorShape(tuple(rows), tuple(columns))
        except (TypeError, ValueError) as error:
            raise ValueError(f"shape of a tensor setting must be [[row modes], [column modes]], got {data!r}") from error
        if shape.order > MOST_MODES:
            raise ValueError(f"shape of a tensor setting has {shape.order} modes, more than {MOST_MODES}: {shape}")
        return cls(data["format"], shape, data["rank"], data.get("execution", "auto"))


Settings = Mapping[str, TensorSetting | None]
"""What matrices got, by name; None for what stays dense."""


def settings_to_dict(settings: Settings) -> dict[str, Any]:
    """As JSON."""
    return {name: None if setting is None else setting.to_dict() for name, setting in settings.items()}


@lru_cache(maxsize=4096)  # a SuperNet's layers change their ranks in every step
def _plan(setting: TensorSetting, tokens: int, path: Path) -> ContractionPlan:
    codec, shape = setting.codec, setting.shape
    subscripts = codec.subscripts(shape)
    extents = {TOKENS: codec.groups(shape, tokens), **dict(zip(subscripts.rows + subscripts.columns, shape.modes, strict=True))}
    for indices, core_shape in zip(subscripts.cores, setting.core_shapes, strict=True):
        extents.update(zip(indices, core_shape, strict=True))
    return plan_contraction(codec.equation(shape), extents, range(1, 1 + len(subscripts.cores)), path)
