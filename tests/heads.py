"""Small models whose attentions lost heads, and the dense models that they stand for."""

from __future__ import annotations

import copy
from typing import Any

import torch
from conftest import small_model
from grouped import OPTIONS, batches

from heat_hf import CompressionReport, HeatConfig, Statistics
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.together import head_groups, narrowed
from heat_hf.formats.narrowed import Neurons, refitted
from heat_hf.formats.size import MatrixSize


def settings_of(model: Any, heads: int = 2) -> dict[str, Any]:
    """So many heads in every attention; all else dense."""
    linears = encoder_linears(model)
    settings: dict[str, Any] = dict.fromkeys(linears)
    for names, size in head_groups(model, linears).items():
        settings |= zip(names, narrowed([MatrixSize.of(linears[name]) for name in names], heads * size), strict=True)
    return settings


def fewer_heads(family: str = "bert", heads: int = 2, head: bool = True, **options: Any) -> tuple[Any, CompressionReport]:
    model = small_model(family, head)
    config = HeatConfig(**{**OPTIONS, "target_params_ratio": 0.5, "refine_steps": 0, **options})
    return model, factorize(model, config, batches(), settings_of(model, heads))


def half_silent() -> Any:
    """A model whose first two heads say nearly nothing, and where the others look matters."""
    model = small_model("bert")
    with torch.no_grad():
        for block in model.bert.encoder.layer:
            attention = block.attention.self
            attention.value.weight[:12] *= 0.01
            attention.value.weight[12:] *= 10
            for linear in (attention.query, attention.key):
                linear.weight *= 15
    return model


def masked(dense: Any, heads: int) -> Any:
    """The dense model with zeros in the columns that read the heads that are missed least, and the others fitted again."""
    model, linears = copy.deepcopy(dense), encoder_linears(dense)
    statistics = Statistics.collect(dense, linears, batches(), gradients=True)
    for names, size in head_groups(dense, linears).items():
        weight, moments = linears[names[-1]].weight, statistics.moments(names[-1], True)
        kept = Neurons.ranked(weight, *moments, size=size).kept(heads * size)
        with torch.no_grad():
            model.get_submodule(names[-1]).weight.zero_()
            model.get_submodule(names[-1]).weight[:, kept] = refitted(weight, moments[0], kept).float()
    return model
