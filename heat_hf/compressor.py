"""HeatCompressor: from a dense checkpoint to a factorized one. Orchestration only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers.auto import AutoHfQuantizer

from heat_hf.accelerators import load_accelerator
from heat_hf.accelerators.mapper import Mapper
from heat_hf.calibration import Batch, calibration_batches, collect_output_moments, collect_second_moments
from heat_hf.config import METHOD, HeatConfig, package_version
from heat_hf.cost import cost_linear, cost_setting
from heat_hf.encoder import block_of, encoder_linears, runs, swap_module
from heat_hf.formats import Factorization, match_variance
from heat_hf.formats.base import require_finite
from heat_hf.layers import FactorizedLinear
from heat_hf.report import CompressionReport, HardwareCost, TensorReport
from heat_hf.search.level1 import ShapeSearch, require_fit, search_shapes
from heat_hf.search.settings import plan_settings
from heat_hf.search.table import CostTable
from heat_hf.setting import TensorSetting
from heat_hf.storage import atomic_directory, check_target


class HeatCompressor:
    """Factorizes the encoder linears of a Transformers model.

    Args:
        model: a dense model, changed in place by `compress`.
        tokenizer: its tokenizer, for calibration on text and to be saved beside the model.

    Raises:
        ValueError: if the model is compressed or quantized already.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        _require_dense(model.config)
        self.model = model
        self.tokenizer = tokenizer
        self.report: CompressionReport | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_class: Any = None,  # noqa: ANN401
        **kwargs: Any,
    ) -> HeatCompressor:
        """Load what is to be compressed.

        Args:
            model: a Hub id, a checkpoint folder, or a model object.
            tokenizer: default: the checkpoint's own, if it has one.
            model_class: default: the class named in the checkpoint's config.json.
            **kwargs: passed to the model's `from_pretrained`, for example `revision`, `token` or `dtype`.

        Raises:
            OSError: if there is no such checkpoint.
            ValueError: if it is compressed or quantized already.
        """
        if isinstance(model, PreTrainedModel):
            return cls(model, tokenizer)
        hub: dict[str, Any] = {
            key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs
        }
        config = AutoConfig.from_pretrained(model, **hub)
        _require_dense(config)
        loaded = (model_class or _architecture(config)).from_pretrained(model, use_safetensors=True, **kwargs)
        return cls(loaded.eval(), tokenizer or _load_tokenizer(model, hub))

    def plan(self, config: HeatConfig) -> CompressionReport:
        """What `compress` would do: every matrix's shape, rank, parameters and MACs. Nothing is decomposed.

        Raises:
            ValueError: if the configuration does not fit the model.
        """
        return _plan(self.model, config, model_settings(self.model, config))

    def compress(
        self,
        config: HeatConfig,
        calibration_dataset: Any = None,  # noqa: ANN401
        save_directory: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        **save_options: Any,
    ) -> CompressionReport:
        """Factorize the model in place, and save it if asked.

        Args:
            config: what to factorize and how.
            calibration_dataset: sentences, rows of a `datasets.Dataset`, or batches; see `calibration_batches`.
            save_directory: where to save model, tokenizer and report; appears only when all is done.
            overwrite: whether to replace a non-empty directory there.
            **save_options: for `save_pretrained`, for example `max_shard_size`.

        Returns:
            The report, which also goes to `heat_report.json`.

        Raises:
            ValueError: if the configuration, the calibration data or the weights cannot work. The model is then unchanged.
            OSError: if `save_directory` cannot be written. Checked before any work.
        """
        _require_dense(self.model.config)
        if save_directory is not None:
            check_target(save_directory, overwrite)
        settings = model_settings(self.model, config)
        if save_directory is not None:
            planned = _plan(self.model, config, settings)
            check_target(save_directory, overwrite, planned.compressed_model_parameters * self.model.dtype.itemsize)
        batches = None
        if calibration_dataset is not None and config.uses_calibration:
            batches = calibration_batches(calibration_dataset, self.tokenizer, max_length=config.sequence_length)
        self.report = factorize(self.model, config, batches, settings)
        if save_directory is not None:
            self.save(save_directory, overwrite, **save_options)
        return self.report

    def save(self, save_directory: str | os.PathLike[str], overwrite: bool = False, **kwargs: Any) -> None:
        """Save the compressed model, its tokenizer and `heat_report.json`; the directory appears whole or not at all.

        Args:
            save_directory: where.
            overwrite: whether to replace a non-empty directory there.
            **kwargs: for `save_pretrained`, for example `max_shard_size`.

        Raises:
            RuntimeError: if the model has not been compressed.
            OSError: if the directory cannot be written.
        """
        if self.report is None:
            raise RuntimeError("nothing to save: call compress first")
        with atomic_directory(save_directory, overwrite) as folder:
            self.model.save_pretrained(folder, **kwargs)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)
            self.report.save(folder)


def factorize(
    model: PreTrainedModel,
    config: HeatConfig,
    calibration: Iterable[Batch] | None = None,
    settings: Mapping[str, TensorSetting] | None = None,
) -> CompressionReport:
    """Replace the model's encoder linears by factorized layers, in place; on an error the model is unchanged.

    Args:
        model: a dense model.
        config: what to factorize and how.
        calibration: batches of model inputs for the activation-aware projection.
        settings: shape and rank of every matrix; default: as the configuration asks.

    Raises:
        ValueError: if the configuration does not fit, weights are not finite, or calibration data is missing.
    """
    settings = settings or model_settings(model, config)
    linears = encoder_linears(model, config.modules, config.exclude)
    mapper = _mapper(config)
    for name in ("activation_aware", "loss_aware"):
        if getattr(config, name) and calibration is None:
            raise ValueError(f"{name}=True needs a calibration_dataset")
    for name, linear in linears.items():
        require_finite(f"the weight of {name}", linear.weight)
    batches = list(calibration) if calibration is not None and config.uses_calibration else None
    results: dict[str, tuple[TensorSetting, Factorization | None]] = {}
    with tqdm(total=len(linears), desc="Factorizing", unit="matrix") as progress:
        for group in _groups(linears, config):
            moments = collect_second_moments(model, group, batches) if batches is not None else {}
            gradients = {}
            if batches is not None and config.uses_gradients:
                gradients = collect_output_moments(model, group, batches, config.seed)
            for name, linear in group.items():
                found = _decompose(linear, settings[name], config, moments.pop(name, None), gradients.pop(name, None))
                results[name] = settings[name], found
                progress.update()
    report = _report(model, config, results, mapper, calibration_rows=_rows(batches))
    for name, (setting, factorization) in results.items():
        assert factorization is not None
        layer = FactorizedLinear.from_linear(linears[name], setting, factorization, config.tokens)
        swap_module(model, linears[name], layer)
    # A copy: the caller may use the same configuration for another model. A path on this machine says nothing elsewhere.
    done = replace(
        config, tensors=dict(settings), cost_table=None, accelerator=report.accelerator, heat_version=package_version()
    )
    AutoHfQuantizer.from_config(done, pre_quantized=True).attach(model)
    return report


def model_settings(model: PreTrainedModel, config: HeatConfig) -> dict[str, TensorSetting]:
    """Shape and rank of every matrix, searched if that is asked for.

    Raises:
        ValueError: if the configuration or its cost table do not fit the model.
    """
    table = None
    if config.cost_table is not None:
        table = CostTable.load(config.cost_table)
        require_fit(table, config.cost_table, model, config)
    elif config.rank_search == "pareto":
        table = search_shapes(
            model,
            str(config.accelerator),
            config.tokens,
            ShapeSearch(formats=(config.decomposition,), seed=config.seed),
            modules=config.modules,
            exclude=config.exclude,
        )
    return plan_settings(encoder_linears(model, config.modules, config.exclude), config, table)


def _plan(model: PreTrainedModel, config: HeatConfig, settings: Mapping[str, TensorSetting]) -> CompressionReport:
    return _report(model, config, {name: (setting, None) for name, setting in settings.items()}, _mapper(config))


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


def _report(
    model: PreTrainedModel,
    config: HeatConfig,
    results: Mapping[str, tuple[TensorSetting, Factorization | None]],
    mapper: Mapper | None,
    calibration_rows: int = 0,
) -> CompressionReport:
    tensors = []
    for name, (setting, found) in results.items():
        macs = setting.plan(config.tokens).macs / config.tokens
        quality = {} if found is None else {
            key: getattr(found, key) for key in ("relative_error", "output_error", "sweeps", "converged")
        }  # fmt: skip
        hardware = None if mapper is None else _hardware(setting, config.tokens, mapper)
        tensors.append(TensorReport(name, setting, macs, hardware, runs(model.config, name), **quality))
    return CompressionReport(
        base_model=model.config._name_or_path or type(model).__name__,
        model_parameters=model.num_parameters(),
        tokens=config.tokens,
        tensors=tuple(tensors),
        accelerator=None if mapper is None else mapper.accelerator.name,
        accelerator_digest=None if mapper is None else mapper.accelerator.digest,
        calibration_rows=calibration_rows,
        heat_version=package_version(),
    )


def _mapper(config: HeatConfig) -> Mapper | None:
    """The mapper for reported costs; ranks found by ratio are often odd, so operands may be filled up with zeros."""
    return None if config.accelerator is None else Mapper(load_accelerator(config.accelerator), padding=True)


def _hardware(setting: TensorSetting, tokens: int, mapper: Mapper) -> HardwareCost:
    cost = cost_setting(setting, tokens, mapper)
    dense = cost_linear(setting.shape.rows, setting.shape.columns, tokens, mapper)
    return HardwareCost(cost.energy_pJ, cost.seconds, dense.energy_pJ, dense.seconds)


def _rows(batches: list[Batch] | None) -> int:
    return sum(len(batch["input_ids"]) for batch in batches or [])


def _require_dense(config: Any) -> None:  # noqa: ANN401
    quantized = getattr(config, "quantization_config", None)
    if quantized is None:
        return
    method = quantized.get("quant_method") if isinstance(quantized, Mapping) else quantized.quant_method
    if method == METHOD:
        raise ValueError(
            "the model is compressed by heat_hf already; compress the dense checkpoint it came from, "
            "or call model.dequantize() first to factorize its approximation again"
        )
    raise ValueError(f"the model is quantized with {method}; compress the unquantized checkpoint")


def _architecture(config: Any) -> Any:  # noqa: ANN401
    names = config.architectures or []
    return getattr(transformers, names[0], AutoModel) if names else AutoModel


def _load_tokenizer(model: str | os.PathLike[str], hub: Mapping[str, Any]) -> PreTrainedTokenizerBase | None:
    folder = Path(model)
    if folder.is_dir() and not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model, **hub)
    return tokenizer
