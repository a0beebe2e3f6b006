"""Contraction paths: the order of pairwise products with the fewest MACs, and which of them are done before inference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from opt_einsum.paths import DynamicProgramming

from heat_hf.formats.plan import PATHS, ContractionPlan, Path, Step

_SEARCH = DynamicProgramming(minimize="flops", search_outer=True)


def plan_contraction(
    equation: str, extents: Mapping[str, int], static: Sequence[int] = (), path: Path = "optimal"
) -> ContractionPlan:
    """Plan an einsum as a sequence of pairwise contractions.

    Args:
        equation: einsum of at least two operands, without repeated indices inside an operand or ellipses; every summed
            index must be in two operands or more.
        extents: extent of each index.
        static: positions of operands known before inference. Static steps whose result is smaller than their operands are
            precomputed, and cost nothing.
        path: "optimal" for the fewest MACs of a forward pass; "reconstruct" to contract all static operands with each other
            before the others; "left-to-right" for the naive order without precomputation.

    Raises:
        ValueError: for an equation this does not cover, a missing or non-positive extent, or a wrong position.
    """
    if path not in PATHS:
        raise ValueError(f"path must be one of {', '.join(PATHS)}, got {path!r}")
    inputs, _ = _parse(equation)
    for index in sorted(set("".join(inputs))):
        if extents.get(index, 0) < 1:
            raise ValueError(f"extents must give index {index!r} of {equation!r} a positive size, got {extents.get(index)}")
    if not set(static) < set(range(len(inputs))):
        raise ValueError(f"static must hold positions from 0 to {len(inputs) - 1}, not all of them, got {tuple(static)}")
    sizes = tuple(sorted((index, extents[index]) for index in set("".join(inputs))))
    return _plan(equation, sizes, tuple(sorted(static)), path)


def _parse(equation: str) -> tuple[list[str], str]:
    left, arrow, output = equation.partition("->")
    inputs = left.split(",")
    if not arrow or len(inputs) < 2 or not all(text.isalpha() for text in [*inputs, output]):
        raise ValueError(f"equation must be 'ab,bc->ac' with two operands or more, got {equation!r}")
    for text in [*inputs, output]:
        if len(set(text)) != len(text):
            raise ValueError(f"equation {equation!r} repeats an index in {text!r}")
    lonely = [i for i in dict.fromkeys(left.replace(",", "")) if i not in output and left.count(i) == 1]
    if lonely or not set(output) <= set(left):
        raise ValueError(f"every index of {equation!r} must be in the result or in two operands")
    return inputs, output


@lru_cache(maxsize=4096)
def _plan(equation: str, sizes: tuple[tuple[str, int], ...], static: tuple[int, ...], path: Path) -> ContractionPlan:
    builder = _Builder(*_parse(equation), dict(sizes), frozenset(static))
    if path == "left-to-right":
        # Results are appended to the list of operands, so the running product is always its last entry.
        steps = builder.follow([(0, 1), *((last, 0) for last in range(len(builder.inputs) - 2, 0, -1))])
    else:
        # Folding shrinking static pairs first is nearly always best; the plain optimum is kept where it is not.
        candidates = [_precompute(builder.optimal(fold, static_first=path == "reconstruct")) for fold in (True, False)]
        steps = min(candidates, key=lambda steps: sum(step.macs for step in steps if not step.precomputed))
    return ContractionPlan(equation, dict(sizes), static, path, tuple(map(_lower, _arrange(steps))))


def _precompute(steps: Sequence[Step]) -> list[Step]:
    """Mark static shrinking steps, all whose inputs are known before inference, and move them to the front."""
    waiting = {step.result for step in steps if not (step.static and step.shrinks)}
    marked = []
    for step in steps:
        ready = step.result not in waiting and waiting.isdisjoint((step.left, step.right))
        if not ready:
            waiting.add(step.result)
        marked.append(replace(step, precomputed=ready))
    return sorted(marked, key=lambda step: not step.precomputed)


def _arrange(steps: Sequence[Step]) -> list[Step]:
    """Order the axes of every intermediate as its consumer reads them: batch, own indices, summed indices."""
    intermediates = {step.result for step in steps}
    wanted: dict[int, str] = {}
    arranged = []
    for step in reversed(steps):
        step = replace(step, result_indices=wanted.get(step.result, step.result_indices))
        batch, m, n, k = step.groups
        if step.left in intermediates:
            k = "".join(i for i in step.right_indices if i in k)
            wanted[step.left] = batch + m + k
        if step.right in intermediates:
            wanted[step.right] = batch + n + k
        arranged.append(step)
    return [
        replace(
            step,
            left_indices=wanted.get(step.left, step.left_indices),
            right_indices=wanted.get(step.right, step.right_indices),
        )
        for step in reversed(arranged)
    ]


def _lower(step: Step) -> Step:
    """Name the cheapest torch kernel that runs the step."""
    batch, m, n, k = step.groups
    if batch or not (m and n and k) or step.left_indices != m + k or step.result_indices != m + n:
        return step
    kernels: dict[str, Literal["linear", "matmul"]] = {n + k: "linear", k + n: "matmul"}
    return replace(step, kernel=kernels.get(step.right_indices, "einsum"))


def _search(operands: Iterable[str], output: Iterable[str], extents: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Path with the fewest MACs, as positions in a list to whose end results are appended."""
    sets = [frozenset(operand) for operand in operands]
    return list(_SEARCH(sets, frozenset(output), dict(extents))) if len(sets) > 1 else []


@dataclass(frozen=True)
class _Builder:
    """Turns orders of contraction over one equation into steps."""

    inputs: list[str]
    output: str
    extents: dict[str, int]
    static: frozenset[int]

    def optimal(self, fold: bool, static_first: bool) -> list[Step]:
        """Steps with the fewest MACs, after folding shrinking static pairs if asked."""
        live = dict(enumerate(self.inputs))
        steps: list[Step] = []
        while fold and (step := self._best_fold(live, steps)):
            steps.append(step)
            live = self._advance(live, step)
        if static_first:
            dynamic = {number: text for number, text in live.items() if not self._static(number, steps)}
            static = {number: text for number, text in live.items() if number not in dynamic}
            needed = set(self.output).union(*dynamic.values()) & set("".join(static.values()))
            # Dynamic operands stay at the head of the list, results are appended: positions shift by their number.
            path = [[p + len(dynamic) for p in pair] for pair in _search(static.values(), needed, self.extents)]
            steps += self.follow(path, {**dynamic, **static}, steps)
            live = {**dynamic, steps[-1].result: steps[-1].result_indices} if path else {**dynamic, **static}
        steps += self.follow(_search(live.values(), self.output, self.extents), live, steps)
        return steps

    def follow(
        self, path: Sequence[Sequence[int]], live: Mapping[int, str] | None = None, done: Sequence[Step] = ()
    ) -> list[Step]:
        """Steps of a path in the linear form of numpy and opt_einsum: positions in a list, results appended."""
        live = dict(enumerate(self.inputs)) if live is None else live
        steps: list[Step] = []
        for pair in path:
            numbers = list(live)
            left, right = (numbers[position] for position in pair)
            steps.append(self._step(left, right, live, [*done, *steps]))
            live = self._advance(live, steps[-1])
        return steps

    def _advance(self, live: Mapping[int, str], step: Step) -> dict[int, str]:
        rest = {number: text for number, text in live.items() if number not in (step.left, step.right)}
        return {**rest, step.result: step.result_indices}

    def _static(self, number: int, done: Sequence[Step]) -> bool:
        return number in self.static if number < len(self.inputs) else done[number - len(self.inputs)].static

    def _step(self, left: int, right: int, live: Mapping[int, str], done: Sequence[Step]) -> Step:
        if self._static(left, done) and not self._static(right, done):
            left, right = right, left  # the activation first: its rows stay the rows of the result
        needed = set(self.output).union(*(text for number, text in live.items() if number not in (left, right)))
        a, b = live[left], live[right]
        if len(live) == 2:
            result = self.output
        else:
            both = [i for i in a if i in b and i in needed]
            only = [i for i in a if i not in b] + [i for i in b if i not in a]
            result = "".join(both + only)
        return Step(
            left=left,
            right=right,
            result=len(self.inputs) + len(done),
            left_indices=a,
            right_indices=b,
            result_indices=result,
            extents={i: self.extents[i] for i in dict.fromkeys(a + b)},
            static=self._static(left, done) and self._static(right, done),
        )

    def _best_fold(self, live: Mapping[int, str], done: Sequence[Step]) -> Step | None:
        """The static pair whose contraction shrinks the operands most; the fewest MACs break ties."""
        folds = [step for step in self._pairs(live, done) if step.shrinks]
        shrinkage = {id(s): s.elements - s.size(s.left_indices) - s.size(s.right_indices) for s in folds}
        return min(folds, key=lambda step: (shrinkage[id(step)], step.macs), default=None)

    def _pairs(self, live: Mapping[int, str], done: Sequence[Step]) -> Iterator[Step]:
        static = [number for number in live if self._static(number, done)]
        for position, left in enumerate(static):
            for right in static[position + 1 :]:
                yield self._step(left, right, live, done)
