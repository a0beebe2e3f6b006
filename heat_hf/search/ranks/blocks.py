"""Whole blocks: sets of them that may go, beside what all other blocks get.

What a set costs the model's outputs is measured, on calibration rows that run past its blocks: errors as large as these are far
from second order, and what blocks lose together is more than the sum. Ranks and widths add to it as they add to each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from heat_hf.encoders.blocks import Blocks
from heat_hf.encoders.dropping import droppable
from heat_hf.encoders.moments import spread
from heat_hf.evaluation.forward import evaluating
from heat_hf.evaluation.quality import Quality

if TYPE_CHECKING:
    from heat_hf.search.ranks.problem import Problem

ROWS = 256  # on which a set is measured
TRIED = 4  # blocks that a set is tried with, to become the next larger one

Gone = Mapping[tuple[str, ...], float]  # sets of blocks → divergence of a model without them


def block_losses(problem: Problem) -> Gone:
    """Every block by itself, then greedily larger sets, up to half of the blocks; each that was tried, with what it loses.

    Args:
        problem: with calibration rows.
    """
    assert problem.calibration
    batches = [problem.calibration[number] for number in sorted(spread(problem.calibration, ROWS))]
    with evaluating(problem.model):
        blocks = Blocks.of(problem.model, problem.linears, batches[0])
    alone = [block for block in droppable(problem.model, problem.linears) if block in blocks.modules]
    most = min(len(alone), max(1, len(alone) // 2))
    quality, lost = Quality(problem.model, batches), dict[tuple[str, ...], float]()
    tried = [len(alone), *(min(TRIED, len(alone) - size) for size in range(1, most))] if alone else []
    with tqdm(total=sum(tried), desc="Blocks", unit="set", disable=not alone) as bar:
        best: tuple[str, ...] = ()
        for count in tried:
            likely = sorted(set(alone) - set(best), key=lambda block: lost.get((block,), 0.0))
            sets = [tuple(block for block in alone if block in (*best, other)) for other in likely[:count]]
            for gone in sets:
                with blocks.skipped(gone):
                    lost[gone] = quality.both(problem.model)[1]
                bar.update()
            best = min(sets, key=lost.__getitem__)
    return lost
