"""What a format takes at ranks that were not measured, from those that were.

Times are kept as fractions of the dense layer's in the same race: what disturbs a machine, disturbs both. Between measured
ranks they grow with the work of the contraction plan, and never fall. A rank that is no multiple of the vector width takes
longer than its work says, by a factor that is measured, too.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from heat_hf.formats import SHARED, Rank, TensorShape, get_format
from heat_hf.formats.setting import MACS_PER_ELEMENT, Execution, TensorSetting
from heat_hf.hardware.between import Between
from heat_hf.hardware.machine.measuring import Measure, beside

if TYPE_CHECKING:
    from heat_hf.hardware.machine.layers import Subject

UNIT = 16  # numbers of a vector register, at most; ranks that are multiples fill it
SHARES = (0.02, 0.06, 0.12, 0.2, 0.3, 0.42, 0.56, 0.74, 1.0, 1.45)  # of the dense parameters, at which ranks are measured
FOLDED = (0.02, 0.12, 0.42, 1.0)  # likewise, of shapes of more than two modes
RAGGED = (0.1, 0.25, 0.6)  # likewise, of ranks that are no multiples
UNITS = (1 / 12, 1 / 6, 1 / 3, 1 / 2, 3 / 4, 1)  # parts of all neurons or heads, at which what is between layers is measured
RAGGED_BY = 5  # as many below a multiple


def work(setting: TensorSetting, tokens: int) -> int:
    """What its plan multiplies and moves, in MACs: grows with the rank, as time does."""
    plan = setting.plan(tokens)
    return plan.macs + MACS_PER_ELEMENT * plan.traffic


@dataclass(frozen=True)
class Curve:
    """A format's time by its work.

    Attributes:
        works: of the measured ranks, ascending; or numbers of units of what is between layers.
        shares: their times, as fractions of the dense layer's, or of the peer's.
        ragged: factor of ranks that are no multiples of `UNIT`.
        rough: how rough the race was, see `beside`.
    """

    works: tuple[int, ...]
    shares: tuple[float, ...]
    ragged: float
    rough: float

    @classmethod
    def measured(cls, format: str, shape: TensorShape, execution: Execution, tokens: int, measure: Measure) -> Curve:
        """Measure a format in a shape, beside the dense layer.

        Args:
            format: its name.
            shape: tensorization shape.
            execution: see `TensorSetting`.
            tokens: of a forward pass.
            measure: times layers.
        """
        folded = shape.order > 2
        even = _ladder(format, shape, execution, FOLDED if folded else SHARES)
        dense = even[0].size, tokens
        if folded:  # there are hundreds of shapes, and few gain
            (share,), rough = beside(dense, [(even[0], tokens)], measure)
            if share >= 1:
                return cls((work(even[0], tokens),), (share,), 1.0, rough)
        ragged = _ladder(format, shape, execution, RAGGED, RAGGED_BY) if _wide(even[-1].rank) else []
        shares, rough = beside(dense, [(setting, tokens) for setting in [*even, *ragged]], measure)
        points = sorted(zip((work(setting, tokens) for setting in even), shares, strict=False))
        curve = cls(tuple(amount for amount, _ in points), tuple(share for _, share in points), 1.0, rough)
        factors = [
            share / curve.of_work(work(setting, tokens)) for setting, share in zip(ragged, shares[len(even) :], strict=True)
        ]
        return cls(curve.works, curve.shares, max(1.0, statistics.median(factors)) if factors else 1.0, rough)

    @classmethod
    def by_units(cls, work: Between, peer: tuple[Subject, int], measure: Measure) -> Curve:
        """Measure what is between layers, for some numbers of its units, beside a peer."""
        counts = sorted({max(1, round(part * work.units)) for part in UNITS})
        subjects = [(replace(work, units=count), work.batch_size * work.sequence_length) for count in counts]
        shares, rough = beside(peer, subjects, measure)
        return cls(tuple(counts), tuple(shares), 1.0, rough)

    @cached_property
    def _rising(self) -> list[float]:
        from scipy.optimize import isotonic_regression

        return isotonic_regression(self.shares).x.tolist()  # type: ignore[no-any-return]

    def of_work(self, amount: int) -> float:
        """Time of so much work as a fraction of the dense layer's, whatever the rank."""
        import numpy as np

        beyond = max(1.0, amount / self.works[-1])
        return float(np.interp(amount, self.works, self._rising)) * beyond

    def of(self, setting: TensorSetting, tokens: int) -> float:
        """A setting's time as a fraction of the dense layer's."""
        even = len(setting.rank) > 1 or setting.rank[0] % UNIT == 0
        return self.of_work(work(setting, tokens)) * (1.0 if even else self.ragged)

    def to_json(self) -> str:
        """As the cache keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Curve:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: if it is none.
        """
        data = json.loads(text)
        works, shares = tuple(map(int, data["works"])), tuple(map(float, data["shares"]))
        if not 0 < len(works) == len(shares) or min(shares) <= 0:
            raise ValueError("as many positive times as works")
        return cls(works, shares, float(data["ragged"]), float(data["rough"]))


def _wide(largest: Rank) -> bool:
    """Whether a single rank fills several vectors, so that those that are no multiples tell."""
    return len(largest) == 1 and largest[0] >= 4 * UNIT


def _ladder(
    format: str, shape: TensorShape, execution: Execution, shares: Sequence[float], less: int = 0
) -> list[TensorSetting]:
    """Settings with about these shares of the parameters, each once, at least one.

    A single rank is a multiple of `UNIT`, less a few, where the shape has room for that.
    """
    codec, elements = get_format(format), shape.rows * shape.columns
    most = 1.5 if format in SHARED else 1.0  # what is shared counts for the first of the matrices
    ranks = []
    for share in (share for share in shares if share <= most):
        try:
            ranks.append(codec.largest_rank(shape, share * elements))
        except ValueError:  # the smallest rank has more
            continue
    ranks = ranks or [codec.uniform_rank(shape, 1)]
    if _wide(ranks[-1]):
        ranks = [codec.clip_rank(shape, (max(UNIT, rank // UNIT * UNIT) - less,)) for (rank,) in ranks]
    return [TensorSetting(format, shape, rank, execution) for rank in dict.fromkeys(ranks)]
