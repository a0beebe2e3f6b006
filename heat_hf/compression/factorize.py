"""From matrices to cores: every encoder linear of a dense model decomposed and swapped, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
)
from transformers.quantizers.auto import AutoHfQuantizer

from heat_hf.compression.config import NETWORK_SEARCHES, HeatConfig
from heat_hf.encoders.batches import Batch
from heat_hf.encoders.checkpoints.names import package_version
from heat_hf.encoders.cost import reporting_mapper
from heat_hf.encoders.linears import block_of, encoder_linears, swap_module
from heat_hf.encoders.statistics import collect_output_moments, collect_second_moments
from heat_hf.formats import Factorization, match_variance
from heat_hf.formats.base import require_finite
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.setting import TensorSetting
from heat_hf.reports.compression import CompressionReport, report_of
from heat_hf.search.ranks.search import search_ranks
from heat_hf.search.ranks.settings import plan_settings
from heat_hf.search.ranks.space import Settings
from heat_hf.search.shapes.search import ShapeSearch, require_fit, search_shapes
from heat_hf.search.shapes.table import CostTable


def factorize(
    model: PreTrainedModel,
    config: HeatConfig,
    calibration: Iterable[Batch] | None = None,
    settings: Settings | None = None,
) -> CompressionReport:
    """Replace the model's encoder linears by factorized layers, in place; on an error the model is unchanged.

    Args:
        model: a dense model.
        config: what to factorize and how.
        calibration: batches of model inputs for the activation-aware projection.
        settings: shape and rank of every matrix, None where it stays dense; default: as the configuration asks.

    Raises:
        ValueError: if the configuration does not fit, weights are not finite, or calibration data is missing.
    """
    linears = encoder_linears(model, config.modules, config.exclude)
    reporting_mapper(config)  # an unknown accelerator is refused before any work
    for name in ("activation_aware", "loss_aware"):
        if getattr(config, name) and calibration is None:
            raise ValueError(f"{name}=True needs a calibration_dataset")
    for name, linear in linears.items():
        require_finite(f"the weight of {name}", linear.weight)
    batches = list(calibration) if calibration is not None and config.uses_calibration else None
    settings = settings or model_settings(model, config, batches)
    results: dict[str, tuple[TensorSetting | None, Factorization | None]] = dict.fromkeys(linears, (None, None))
    factorized = {name: linear for name, linear in linears.items() if settings[name] is not None}
    with tqdm(total=len(factorized), desc="Factorizing", unit="matrix") as progress:
        for group in _groups(factorized, config):
            moments = collect_second_moments(model, group, batches) if batches is not None else {}
            gradients = {}
            if batches is not None and config.uses_gradients:
                gradients = collect_output_moments(model, group, batches, config.seed)
            for name, linear in group.items():
                setting = settings[name]
                assert setting is not None
                found = _decompose(linear, setting, config, moments.pop(name, None), gradients.pop(name, None))
                results[name] = setting, found
                progress.update()
    report = report_of(model, config, results, _rows(batches))
    for name, (setting, factorization) in results.items():
        if setting is None or factorization is None:
            continue
        layer = FactorizedLinear.from_linear(linears[name], setting, factorization, config.tokens)
        swap_module(model, linears[name], layer)
    tensors = {name: setting for name, setting in settings.items() if setting is not None}
    # A copy: the caller may use the same configuration for another model. A path on this machine says nothing elsewhere.
    done = replace(
        config,
        tensors=tensors,
        cost_table=None,
        accelerator=report.accelerator,
        heat_version=package_version(),
    )
    AutoHfQuantizer.from_config(done, pre_quantized=True).attach(model)
    return report


def model_settings(model: PreTrainedModel, config: HeatConfig, calibration: Sequence[Batch] | None = None) -> Settings:
    """Shape and rank of every matrix, searched if that is asked for.

    Args:
        model: a dense model.
        config: what to factorize and how.
        calibration: for `rank_search="sensitivity"`.

    Raises:
        ValueError: if the configuration or its cost table do not fit the model, or there are several budgets.
    """
    config.require_one_budget()
    table = cost_table(model, config)
    by_network = config.target_edp_ratio is not None or config.target_latency is not None
    if config.rank_search in NETWORK_SEARCHES or (by_network and config.rank_search != "pareto"):
        return search_ranks(model, config, calibration, table).variants[0].settings
    return plan_settings(encoder_linears(model, config.modules, config.exclude), config, table)


def cost_table(model: PreTrainedModel, config: HeatConfig) -> CostTable | None:
    """The cost table that a configuration names, or that its search needs; None where it needs none."""
    if config.cost_table is not None:
        table = CostTable.load(config.cost_table)
        require_fit(table, config.cost_table, model, config)
        return table
    if config.rank_search != "pareto":
        return None
    return search_shapes(
        model,
        str(config.accelerator),
        config.tokens,
        ShapeSearch(formats=(config.decomposition,), seed=config.seed),
        modules=config.modules,
        exclude=config.exclude,
    )


def planned(model: PreTrainedModel, config: HeatConfig, settings: Settings) -> CompressionReport:
    """The report of what factorizing would give; nothing is decomposed."""
    return report_of(model, config, {name: (setting, None) for name, setting in settings.items()})


def _decompose(
    linear: nn.Linear, setting: TensorSetting, config: HeatConfig, moment: torch.Tensor | None, gradient: torch.Tensor | None
) -> Factorization:
    result = setting.codec.decompose(linear.weight, setting.shape, setting.rank, config.solver, moment, gradient)
    if not config.match_variance:
        return result
    cores = match_variance(linear.weight, result.cores, setting.codec, setting.shape)
    error, output_error = setting.codec.errors(linear.weight, cores, setting.shape, moment)
    return replace(result, cores=cores, relative_error=error, output_error=output_error)


def _groups(linears: Mapping[str, nn.Linear], config: HeatConfig) -> list[dict[str, nn.Linear]]:
    """Layers whose second moments are held at the same time: all, or those of one Transformer block."""
    if config.calibration_memory == "model":
        return [dict(linears)]
    groups: dict[str, dict[str, nn.Linear]] = {}
    for name, linear in linears.items():
        groups.setdefault(block_of(name), {})[name] = linear
    return list(groups.values())


def _rows(batches: list[Batch] | None) -> int:
    return sum(len(batch["input_ids"]) for batch in batches or [])
