"""What every option of every tensor would do to the model's outputs, and the best choice within a budget.

The loss of a tensor's option is ½ ‖G^{1/2}(W − W′)C^{1/2}‖_F², the divergence of the model's outputs that its error causes to
second order (`heat_hf.formats.projection`): the error of the layer's outputs on calibration inputs, weighted by the Fisher
information. One factorization gives the curve of all ranks, no network is run beyond the pass that collects C and G, and no
labels are used. Losses add over tensors; the choice is `heat_hf.search.ranks.allocation`'s, under ΣE·ΣT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from heat_hf.encoders.dropping import dropped_setting
from heat_hf.encoders.linears import block_of
from heat_hf.formats import Format, Rank, Solver, TensorShape, get_format
from heat_hf.formats.decomposition import rank_errors
from heat_hf.formats.projection import OUTPUT_DAMPING, triangular_root
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.search.ranks.allocation import BudgetKind, Option, allocate, least_budget
from heat_hf.search.ranks.bases import basis_options
from heat_hf.search.ranks.blocks import Gone, block_losses
from heat_hf.search.ranks.groups import Group, Joint
from heat_hf.search.ranks.problem import Problem
from heat_hf.search.ranks.space import Array, Choice, RankSpace, priced_option, setting_options, undominated
from heat_hf.search.ranks.widths import width_options


@dataclass(frozen=True)
class Curves:
    """Options and their losses.

    Attributes:
        space: every tensor's options, the dense matrix included.
        losses: divergence that each option of each tensor causes; 0 for the dense matrix.
        joint: of several tensors each, settings that they can only get together, with their losses.
        gone: sets of blocks that may go, with the divergence that this causes.
    """

    space: RankSpace
    losses: tuple[tuple[float, ...], ...]
    joint: Mapping[tuple[str, ...], Mapping[Joint, float]] = field(default_factory=dict)
    gone: Gone = field(default_factory=dict)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Tensors with their options; of those with settings in common, any of each, or one of these for all."""
        groups = {name: self._alone(row, name) for row, name in enumerate(self.space.names)}  # by the first tensor of each
        # A few tensors before more: what three have in common is one of the choices of the four they are among.
        for names in sorted(self.joint, key=len):
            members = [groups.pop(name) for name in names if name in groups]
            groups[names[0]] = self._joined(members, names)
        return tuple(groups[name] for name in self.space.names if name in groups)

    def _alone(self, row: int, name: str) -> Group:
        options = zip(self.space.options[name], self.losses[row], strict=True)
        return Group.of((name,), [((s,), lost, self.space.footprint(row, k)) for k, (s, lost) in enumerate(options)])

    def _joined(self, members: Sequence[Group], names: tuple[str, ...]) -> Group:
        separate = sum(members[1:], start=members[0])
        assert separate.names == names
        rows = separate.rows
        for settings, lost in self.joint[names].items():
            costs = [self.space.costs.of(name, setting) for name, setting in zip(names, settings, strict=True)]
            rows.append((settings, lost, sum(costs[1:], start=costs[0])))
        return Group.of(names, rows).undominated()

    @cached_property
    def priced(self) -> list[list[Option]]:
        """The groups' options for `allocate`."""
        return [[priced_option(*pair) for pair in zip(group.losses, group.footprints, strict=True)] for group in self.groups]

    @cached_property
    def sets(self) -> list[tuple[float, list[int]]]:
        """What blocks may go, none to begin with: what is lost by that, and the places of the groups that are left."""
        sets = [((), 0.0), *sorted(self.gone.items(), key=itemgetter(1))]
        blocks = [block_of(group.names[0]) for group in self.groups]
        return [(lost, [place for place, block in enumerate(blocks) if block not in gone]) for gone, lost in sets]

    def least(self, kind: BudgetKind) -> float:
        """The smallest budget that some choice keeps."""
        return min(least_budget([self.priced[place] for place in left], kind) for _, left in self.sets)


def sensitivity_curves(problem: Problem, shapes: Mapping[tuple[str, MatrixSize], TensorShape]) -> Curves:
    """Every tensor's options and the loss of each.

    Where a side of the matrix is folded into several modes, its root would mix them; there C or G enter by their mean only.

    Args:
        problem: linears, statistics, costs, units, solver, execution.
        shapes: the shape of each format and matrix size; all formats of a size compete.
    """
    assert problem.statistics is not None
    options, losses, roots = {}, [], _Roots()
    for name, linear in tqdm(problem.linears.items(), desc="Sensitivity", unit="matrix"):
        moments = problem.statistics.second_moments[name], problem.statistics.output_moments[name]
        own = {format: shape for (format, size), shape in shapes.items() if size == MatrixSize.of(linear)}
        curve = _curve(problem, linear.weight, own, moments, roots)
        kept = undominated(problem.costs, name, [*curve, (None, 0.0)])
        options[name] = tuple(setting for setting, _ in kept)
        losses.append(tuple(loss for _, loss in kept))
    joint: dict[tuple[str, ...], dict[Joint, float]] = {}
    if problem.widths:
        joint |= width_options(problem)
    if problem.groups:
        joint |= basis_options(problem)
    gone = block_losses(problem) if problem.blocks else {}
    return Curves(RankSpace(problem.costs, options), tuple(losses), joint, gone)


def losses_of(problem: Problem, space: RankSpace) -> Array:
    """What every option of a space loses, tensors × options, filled up with infinity; 0 for a dense matrix.

    Args:
        problem: with statistics and gradients.
        space: of the same tensors.
    """
    assert problem.statistics is not None
    losses, roots = np.full((len(space.names), int(space.sizes.max())), np.inf), _Roots()
    for row, (name, options) in enumerate(space.options.items()):
        moments = problem.statistics.second_moments[name], problem.statistics.output_moments[name]
        losses[row, : len(options)] = 0.0
        alike: dict[tuple[str, TensorShape], list[int]] = {}
        for place, setting in enumerate(options):
            if setting is not None:
                alike.setdefault((setting.codec.solved_as.name, setting.shape), []).append(place)
        for (format, shape), places in alike.items():  # all ranks of one solution at once: it is found once
            ranks = [setting.rank for place in places if (setting := options[place]) is not None]
            solved = _Solved.of(get_format(format), problem.linears[name].weight, shape, moments, roots, problem.solver)
            losses[row, places] = solved.losses(ranks)
    return losses


def least_lost(space: RankSpace, losses: Array, kind: BudgetKind, budget: float) -> Choice:
    """The network of a space with the least sum of losses within a budget.

    Args:
        space: of tensors.
        losses: of its options, see `losses_of`.
        kind: of the budget.
        budget: in J·s, s, or a number.

    Raises:
        ValueError: if no network keeps it.
    """
    priced = [
        [priced_option(float(losses[row, place]), space.footprint(row, place)) for place in range(count)]
        for row, count in enumerate(space.sizes)
    ]
    return np.array(allocate(priced, kind, budget))


class _Roots:
    """Triangular roots of moments; layers that share an input share its root."""

    def __init__(self) -> None:
        self.moment: Tensor | None = None
        self.root: Tensor | None = None

    def of(self, moment: Tensor) -> Tensor:
        """The root, kept while the same moment is asked for again."""
        if self.moment is not moment or self.root is None:
            self.moment, self.root = moment, triangular_root(moment.double())
        return self.root


def _curve(
    problem: Problem, weight: Tensor, shapes: Mapping[str, TensorShape], moments: tuple[Tensor, Tensor], roots: _Roots
) -> list[tuple[TensorSetting, float]]:
    """Settings of a tensor with their losses, of all formats; those that are solved alike are solved once."""
    solved: dict[tuple[str, TensorShape], _Solved] = {}
    curve = list[tuple[TensorSetting, float]]()
    for format, shape in shapes.items():
        codec = get_format(format).solved_as
        key = codec.name, shape
        if key not in solved:
            solved[key] = _Solved.of(codec, weight, shape, moments, roots, problem.solver)
        known = solved[key]
        options = setting_options(format, shape, problem.units, known.errors, execution=problem.execution)
        settings = [setting for setting, _ in options]
        curve += zip(settings, known.losses([setting.rank for setting in settings]), strict=True)
    return curve


@dataclass(frozen=True)
class _Solved:
    """What a matrix loses in a format.

    Attributes:
        codec, shape: of the format.
        whitened: G^{1/2} W C^{1/2}, or of these what the shape can have, M×N, float64.
        whole: what all of the matrix is worth.
        solver: limits of the iterative decompositions.
        known: errors of ranks.
    """

    codec: Format
    shape: TensorShape
    whitened: Tensor
    whole: float
    solver: Solver
    known: dict[Rank, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, codec: Format, weight: Tensor, shape: TensorShape, moments: tuple[Tensor, Tensor], roots: _Roots, solver: Solver
    ) -> _Solved:
        """Of a weight W, M×N, with C and G."""
        whitened, scale = weight.detach().double(), 1.0
        second_moment, output_moment = moments
        rows, columns = codec.whitens(shape)
        if rows:
            whitened = triangular_root(output_moment.to(whitened), OUTPUT_DAMPING).T @ whitened
        else:
            scale *= float(output_moment.diagonal().mean())
        if columns:
            whitened = whitened @ roots.of(second_moment).to(whitened)
        else:
            scale *= float(second_moment.diagonal().mean())
        return cls(codec, shape, whitened, scale * float(whitened.square().sum()), solver)

    def errors(self, ranks: Sequence[Rank]) -> list[float]:
        """‖W − W′‖_F / ‖W‖_F of the whitened matrix for each rank."""
        new = [rank for rank in dict.fromkeys(ranks) if rank not in self.known]
        self.known.update(zip(new, rank_errors(self.codec, self.whitened, self.shape, new, self.solver), strict=True))
        return [self.known[rank] for rank in ranks]

    def losses(self, ranks: Sequence[Rank]) -> list[float]:
        """Divergence that each rank causes."""
        return [self.whole * error**2 / 2 for error in self.errors(ranks)]


def allocate_ranks(
    curves: Curves, kind: BudgetKind, budget: float, weight: float = 1.0
) -> tuple[dict[str, TensorSetting | None], float]:
    """The settings of all tensors with the least sum of losses within a budget, with one of the sets of blocks gone.

    Args:
        curves: the options and their losses.
        kind: "edp", "seconds" or "parameters" of the whole network.
        budget: in J·s, s, or a number.
        weight: of what blocks lose beside what matrices lose.

    Returns:
        The settings, and the sum of their losses.

    Raises:
        ValueError: if no choice keeps the budget; the message has the least that is reachable.
    """
    best: tuple[float, dict[str, TensorSetting | None]] | None = None
    failed: ValueError | None = None
    for measured, left in curves.sets:
        apart = weight * measured
        if best is not None and apart >= best[0]:
            break  # as the rest: they lose more
        try:
            lost, settings = _allocated(curves, left, kind, budget)
        except ValueError as error:
            failed = failed or error
            continue
        if best is None or apart + lost < best[0]:
            best = apart + lost, settings
    if best is None:
        assert failed is not None
        raise failed
    matrices = curves.space.costs.matrices
    return {name: best[1].get(name, dropped_setting(matrix.size)) for name, matrix in matrices.items()}, best[0]


def _allocated(
    curves: Curves, left: Sequence[int], kind: BudgetKind, budget: float
) -> tuple[float, dict[str, TensorSetting | None]]:
    """The least loss of some groups, by their places, and their tensors' settings."""
    chosen = allocate([curves.priced[place] for place in left], kind, budget)
    lost, settings = 0.0, dict[str, TensorSetting | None]()
    for place, number in zip(left, chosen, strict=True):
        group = curves.groups[place]
        settings |= zip(group.names, group.options[number], strict=True)
        lost += group.losses[number]
    return lost, settings
