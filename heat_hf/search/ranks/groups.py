"""Tensors that are chosen for together: what each may get by itself, and what only all of them can get."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from heat_hf.formats.setting import TensorSetting
from heat_hf.hardware.cost import MisfitError
from heat_hf.search.ranks.space import Array, Costs, Footprint, least_places

Joint = tuple[TensorSetting | None, ...]


@dataclass(frozen=True)
class Group:
    """One tensor by itself, or several that have options in common.

    Attributes:
        names: of the tensors.
        options: what they get, a setting for each.
        losses: divergence that each option causes.
        footprints: what each takes.
    """

    names: tuple[str, ...]
    options: tuple[Joint, ...]
    losses: tuple[float, ...]
    footprints: tuple[Footprint, ...]

    @classmethod
    def of(cls, names: tuple[str, ...], rows: Iterable[tuple[Joint, float, Footprint]]) -> Group:
        """From an option, its loss and its footprint a row."""
        return cls(names, *zip(*rows, strict=True))

    @property
    def rows(self) -> list[tuple[Joint, float, Footprint]]:
        """An option, its loss and its footprint each."""
        return list(zip(self.options, self.losses, self.footprints, strict=True))

    @cached_property
    def figures(self) -> Array:
        """Loss, parameters and what the cost model knows of each option, which adds over tensors."""
        return np.array([
            (loss, fp.parameters, *(() if fp.cost is None else fp.cost.figures))
            for loss, fp in zip(self.losses, self.footprints, strict=True)
        ])  # fmt: skip

    def __add__(self, other: Group) -> Group:
        """Any option of one with any of the other, less those that another is no worse than."""
        # The sums first: of many thousand pairs, a few hundred are worth making.
        sums = self.figures[:, None] + other.figures
        places = [divmod(place, len(other.options)) for place in sorted(least_places(sums.reshape(-1, sums.shape[-1])))]
        mine, theirs = self.rows, other.rows
        pairs = [(mine[one], theirs[two]) for one, two in places]
        rows = [((*a, *b), lost + more, cost + extra) for (a, lost, cost), (b, more, extra) in pairs]
        return Group.of(self.names + other.names, rows)

    def undominated(self) -> Group:
        """Without options for which another takes no more of anything and loses no more."""
        rows = self.rows
        return Group.of(self.names, [rows[place] for place in sorted(least_places(self.figures))])


def fits(costs: Costs, names: tuple[str, ...], settings: Joint) -> bool:
    """Whether the accelerator can run all of them."""
    try:
        for name, setting in zip(names, settings, strict=True):
            costs.of(name, setting)
    except MisfitError:
        return False
    return True
