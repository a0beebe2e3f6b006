"""Small models whose queries, keys and values are on a basis each block, and how to look at them."""

from __future__ import annotations

from typing import Any

import torch
from conftest import small_model, token_ids

from heat_hf import CompressionReport, HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.bases import project_input
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.together import attention_groups
from heat_hf.formats.size import MatrixSize
from heat_hf.search.ranks.bases import on_basis

OPTIONS: dict[str, Any] = {"accelerator": None, "rank_search": "sensitivity", "sequence_length": 16}


def batches(rows: int = 48) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(5, 60, (rows, 12), generator=torch.Generator().manual_seed(2))
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(8)]


def settings_of(model: Any, rank: int = 6) -> dict[str, Any]:
    """Every query, key and value on a basis; all else dense."""
    linears = encoder_linears(model)
    settings: dict[str, Any] = dict.fromkeys(linears)
    for names in attention_groups(model, linears):
        settings |= zip(names, on_basis([MatrixSize.of(linears[name]) for name in names], rank), strict=True)
    return settings


def grouped(family: str = "bert", rank: int = 6, head: bool = True, **options: Any) -> tuple[Any, CompressionReport]:
    model = small_model(family, head)
    config = HeatConfig(**{**OPTIONS, "target_params_ratio": 0.5, "refine_steps": 0, **options})
    return model, factorize(model, config, batches(), settings_of(model, rank))


def said(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids())[0]


def hooks(model: Any) -> int:
    return sum(hook is project_input for module in model.modules() for hook in module._forward_pre_hooks.values())
