"""Factorize a model object: the whole of compression without tokenizer, saving and Hub."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from heat_hf.compression.config import HeatConfig
from heat_hf.compression.job import Job
from heat_hf.encoders.batches import Batch
from heat_hf.encoders.statistics import Statistics
from heat_hf.formats.setting import Settings
from heat_hf.hardware import CostModel
from heat_hf.reports.compression import CompressionReport
from heat_hf.search.ranks.methods import Solution

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def factorize(
    model: PreTrainedModel,
    config: HeatConfig,
    calibration: Iterable[Batch] | None = None,
    settings: Settings | None = None,
    *,
    statistics: Statistics | None = None,
    cost_model: CostModel | None = None,
) -> CompressionReport:
    """Replace the model's encoder linears by factorized layers, in place; on an error the model is unchanged.

    Args:
        model: a dense model.
        config: what to factorize and how.
        calibration: batches of model inputs for the activation-aware projection.
        settings: shape and rank of every matrix, None where it stays dense; default: as the configuration asks.
        statistics: collected before, instead of `calibration`.
        cost_model: what settings are costed by; default: that of `config.accelerator`.

    Raises:
        ValueError: if the configuration does not fit, weights are not finite, or calibration data is missing.
    """
    job = Job(model, config, None if calibration is None else list(calibration), statistics, cost_model)
    job.check()
    return job.factorize(job.chosen() if settings is None else Solution(settings))
