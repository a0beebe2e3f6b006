"""Small models of several blocks, and how to drop some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from conftest import FAMILIES
from grouped import OPTIONS, batches

from heat_hf import CompressionReport, HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.dropping import dropped_setting
from heat_hf.encoders.linears import block_of, by_block, encoder_linears
from heat_hf.formats import TensorShape
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize


def deep_model(family: str = "bert", blocks: int = 4) -> Any:
    """A small model with more blocks, each of which changes what it reads."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family][0])
    config.num_hidden_layers = blocks
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def silent(model: Any, number: int) -> Any:
    """Let a block of a BERT answer what it reads, nearly, and all others something else."""
    with torch.no_grad():
        for place, block in enumerate(model.bert.encoder.layer):
            for linear in (
                block.attention.self.value,
                block.attention.output.dense,
                block.intermediate.dense,
                block.output.dense,
            ):
                linear.weight *= 1e-3 if place == number else 10
    return model


def settings_of(model: Any, gone: Sequence[int], rank: int | None = None) -> dict[str, Any]:
    """Without some blocks; all else dense, or of a rank."""
    linears = encoder_linears(model)
    numbers = {block: number for number, block in enumerate(by_block(linears))}
    sizes = {name: MatrixSize.of(linear) for name, linear in linears.items()}
    kept = {n: rank and TensorSetting("low_rank", TensorShape.matrix(*size), (rank,)) for n, size in sizes.items()}
    return {n: dropped_setting(size) if numbers[block_of(n)] in gone else kept[n] for n, size in sizes.items()}


def dropped(model: Any, gone: Sequence[int], rank: int | None = None, **options: Any) -> CompressionReport:
    config = HeatConfig(**{**OPTIONS, "target_params_ratio": 0.5, "refine_steps": 0, **options})
    return factorize(model, config, batches(), settings_of(model, gone, rank))
