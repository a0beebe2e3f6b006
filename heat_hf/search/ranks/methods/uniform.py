"""The largest uniform rank, or one a little smaller that the hardware likes better."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heat_hf.search.ranks.methods.rule import Rule

if TYPE_CHECKING:
    from heat_hf.formats import Format, Rank, TensorShape
    from heat_hf.search.ranks.problem import Problem

LEAST_KEPT = 0.9  # of the parameters of the largest rank within the share


class Uniform(Rule):
    """Every matrix gets the largest uniform rank within its share; or the user's rank.

    Of that rank and the multiples of the hardware's widths just below it, it is the one of the least cost, see `favoured`.
    """

    name = "uniform"
    takes_rank = True

    def rank(self, problem: Problem, name: str, shape: TensorShape, share: float) -> object:
        """As large as the share allows, and no larger than pays."""
        from heat_hf.formats import get_format

        codec = get_format(*problem.formats)
        return favoured(problem, name, codec, shape, codec.largest_rank(shape, share * shape.rows * shape.columns))


def favoured(problem: Problem, name: str, codec: Format, shape: TensorShape, largest: Rank) -> Rank:
    """The rank with the least cost among the largest one and the multiples of the hardware's widths just below it.

    A rank that fills the hardware only in part costs as much as one that fills it: then the parameters beyond buy little. A
    smaller rank is taken only where it saves a larger share of the cost than of the parameters, and keeps nine tenths of
    these, so that a budget is still used. Without a cost model the largest is taken.

    Args:
        problem: its costs, and the hardware's widths.
        name: of the tensor.
        codec: the format.
        shape: tensorization shape.
        largest: the largest rank that may be taken.
    """
    from heat_hf.formats.setting import TensorSetting
    from heat_hf.hardware.cost import MisfitError

    if problem.costs.model is None:
        return largest
    below = {codec.clip_rank(shape, tuple(r // unit * unit or r for r in largest)) for unit in problem.units}
    most = codec.parameters(shape, largest)

    def figures(rank: Rank) -> tuple[float, float]:
        """Share of the parameters, and cost: of EDP the root, which grows with parameters as a time does."""
        cost = problem.costs.one_run(name, TensorSetting(codec.name, shape, rank, problem.execution))
        assert cost is not None
        power = 1.0 if cost.energy_pJ is None else 0.5
        return codec.parameters(shape, rank) / most, cost.objective**power

    try:
        whole = figures(largest)[1]
    except MisfitError:
        return largest  # whoever sums the costs up says what does not fit
    best, least = largest, whole
    for rank in sorted(below - {largest}, reverse=True):
        try:
            share, cost = figures(rank)
        except MisfitError:
            continue
        if LEAST_KEPT <= share <= 1 and cost < share * whole and cost < least:
            best, least = rank, cost
    return best
