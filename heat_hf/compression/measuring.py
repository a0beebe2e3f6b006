"""How far a compressed model is from the dense one: what the search expects, and what calibration rows say in the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heat_hf.compression.config import HeatConfig
from heat_hf.compression.refinement import held_out
from heat_hf.encoders.batches import Batch, sequences
from heat_hf.evaluation.quality import Quality
from heat_hf.reports.fidelity import Fidelity
from heat_hf.search.ranks.methods import Solution
from heat_hf.search.ranks.variants import Variant

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WITHIN = 1.5  # by which factor it may differ on other rows, either way: a classifier's outputs move a lot on few of them


def answers(model: PreTrainedModel, batches: Sequence[Batch] | None, config: HeatConfig) -> Quality | None:
    """What the dense model answers to the calibration rows that refinement does not learn from; without one, to all.

    None without such rows, or where no gradients are used: outputs need not be of a known kind then.
    """
    if not batches or not config.uses_gradients:
        return None
    return Quality(model, [batches[number] for number in held_out(len(batches))] if config.refine_steps else batches)


def expected(chosen: Variant | Solution) -> Fidelity | None:
    """What a search expects of a projected model, with bounds; None where it expects nothing."""
    divergence = None if isinstance(chosen, Solution) else chosen.expected_divergence
    return None if divergence is None else Fidelity(divergence, divergence / WITHIN, divergence * WITHIN)


def measured(model: PreTrainedModel, dense: Quality | None, before: Fidelity | None) -> Fidelity | None:
    """The same with what a finished model is measured at, beside the dense model's answers."""
    if dense is None:
        return before
    apart = dense.both(model)[1]
    return dataclasses.replace(before or Fidelity(), measured=apart, rows=sum(map(sequences, dense.batches)))
