"""What a whole model costs on an accelerator, dense and factorized."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from heat_hf.encoders.around import EXTRAS, extras
from heat_hf.encoders.checkpoints.names import METHOD
from heat_hf.encoders.checkpoints.reading import told
from heat_hf.encoders.config import FactorizedConfig
from heat_hf.encoders.embedding import tables_of
from heat_hf.encoders.linears import (
    BLOCKS,
    block_pattern,
    dense_linears,
    factorized_layers,
    resolve_names,
    runs,
    swap_modules,
)
from heat_hf.encoders.together import require_together
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.analytic import AnalyticModel
from heat_hf.hardware.cascade import Cascade, join

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Matrices: TypeAlias = dict[str, tuple[MatrixSize, TensorSetting | None]]


class Outline(NamedTuple):
    """A model, of a checkpoint without weights, and what its matrices got: of encoder linears and of factorized layers."""

    model: PreTrainedModel
    matrices: Matrices


Source: TypeAlias = "PreTrainedModel | str | os.PathLike[str] | Outline"


@dataclass(frozen=True)
class CostedLayer:
    """A layer of a model.

    Attributes:
        name: module name, or what the layer is.
        what: "dense", the format, or one of `EXTRAS`.
        size: extents of its matrix, or of its product.
        repeats: how often a forward pass runs it.
        cost: one run.
        dense: one run of the dense layer in its place; the cost itself where nothing is factorized.
    """

    name: str
    what: str
    size: str
    repeats: int
    cost: Cascade
    dense: Cascade


@dataclass(frozen=True)
class CostedModel:
    """A model's forward pass: energies and times add over layers, EDP = ΣE·ΣT (paper, section 2.2.2).

    Attributes:
        name: the model.
        sequence_length, batch_size: what is fed.
        layers: what is counted.
    """

    name: str
    sequence_length: int
    batch_size: int
    layers: tuple[CostedLayer, ...]

    @cached_property
    def total(self) -> Cascade:
        """All layers one after the other."""
        return join(layer.cost for layer in self.layers for _ in range(layer.repeats))

    @cached_property
    def dense(self) -> Cascade:
        """The same with every factorized layer dense."""
        return join(layer.dense for layer in self.layers for _ in range(layer.repeats))

    @property
    def factorized(self) -> bool:
        """Whether any layer is factorized."""
        return any(layer.cost is not layer.dense for layer in self.layers)


def model_cost(
    model: Source,
    costs: AnalyticModel,
    sequence_length: int,
    batch_size: int = 1,
    count: Collection[str] = (),
) -> CostedModel:
    """The cost of a model's encoder linears, dense or factorized.

    Of a checkpoint only its config.json is read.

    Args:
        model: a model object, a checkpoint folder, a Hub id, or what `outline` made of one of them.
        costs: of the accelerator.
        sequence_length: tokens of a sequence.
        batch_size: sequences of a forward pass.
        count: also count what the paper's sum leaves out, any of `EXTRAS`.

    Raises:
        ValueError: for an unknown model family, a size below 1, or something unknown in `count`.
        OSError: if there is no such checkpoint.
    """
    for name, value in (("sequence_length", sequence_length), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    unknown = set(count) - set(EXTRAS)
    if unknown:
        raise ValueError(f"count must name some of {', '.join(EXTRAS)}, got {', '.join(sorted(unknown))}")
    tokens = sequence_length * batch_size
    loaded, matrices = outline(model)
    layers = []
    for name, (size, setting) in matrices.items():
        dense = costs.cascade_of(size, tokens)
        cost = dense if setting is None else costs.cascade_of(setting, tokens)
        what = "dense" if setting is None else setting.format
        layers.append(CostedLayer(name, what, str(size), runs(loaded.config, name), cost, dense))
    if count:
        layers += _counted(loaded, matrices, costs, sequence_length, batch_size, count)
    return CostedModel(str(loaded.config._name_or_path or type(loaded).__name__), sequence_length, batch_size, tuple(layers))


def _counted(
    model: PreTrainedModel, matrices: Matrices, costs: AnalyticModel, length: int, batch: int, count: Collection[str]
) -> list[CostedLayer]:
    layers = []
    for extra in extras(model, matrices, {name: setting for name, (_, setting) in matrices.items()}, length, batch):
        if extra.what in count:
            dense = extra.cascade(extra.dense, costs)
            cost = dense if extra.gemm == extra.dense else extra.cascade(extra.gemm, costs)
            layers.append(CostedLayer(extra.name, extra.what, str(extra.gemm), extra.repeats, cost, dense))
    return layers


def outline(model: Source) -> Outline:
    """What costs are counted of; of a checkpoint only its config.json is read.

    Raises:
        ValueError: if the checkpoint is quantized in another way, or damaged.
        OSError: if there is none.
    """
    if isinstance(model, Outline):
        return model
    loaded, settings = _settings(model) if isinstance(model, (str, os.PathLike)) else (model, {})
    return Outline(loaded, _matrices(loaded, settings))


def _settings(source: str | os.PathLike[str]) -> tuple[PreTrainedModel, dict[str, TensorSetting]]:
    """The model without weights, dense, and what a compressed checkpoint's tensors got."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(source)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        if quantization.get("quant_method") != METHOD:
            raise ValueError(f"{source} is quantized with {quantization.get('quant_method')}; its cost is not known")
        del config.quantization_config
    with told(source), torch.device("meta"):
        model = AutoModel.from_config(config)
        saved = FactorizedConfig.from_dict(quantization) if quantization else None
        tensors = {} if saved is None else saved.tensors
        names = resolve_names(model, tensors)
        settings = {names[name]: setting for name, setting in tensors.items() if name in names}
        for name, setting in settings.items():
            setting.shape.require(*model.get_submodule(name).weight.shape)
        require_together(model, settings)
        swap_modules(model, {} if saved is None else tables_of(model, saved.embeddings or {}))
    return model, settings


def _matrices(model: PreTrainedModel, settings: Mapping[str, TensorSetting]) -> Matrices:
    """Size and setting, if there is one, of every encoder linear and every factorized layer."""
    family = model.config.model_type in BLOCKS
    blocks = block_pattern(model) if family or not (settings or factorized_layers(model)) else r"(?!)"
    linears = dense_linears(model)
    matrices: Matrices = {}
    for name, module in model.named_modules():
        if isinstance(module, FactorizedLinear):
            matrices[name] = MatrixSize.of(module), module.setting
        elif name in linears and (name in settings or re.search(blocks, name)):
            matrices[name] = MatrixSize.of(module), settings.get(name)
    return matrices
