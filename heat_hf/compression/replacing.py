"""Factorized layers of what was reached, and a model with them as one that Transformers saves and loads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn
from transformers.quantizers.auto import AutoHfQuantizer

from heat_hf.compression.refinement import Kept
from heat_hf.compression.reporting import Reached
from heat_hf.encoders.config import FactorizedConfig
from heat_hf.encoders.dropping import drop_blocks, dropped_blocks, renumbered, stood_for
from heat_hf.encoders.embedding import Embedded
from heat_hf.encoders.linears import embedding_ranks, swap_modules
from heat_hf.encoders.tiles import shared_encoders
from heat_hf.encoders.triangles import in_file
from heat_hf.formats import GONE
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.setting import Settings
from heat_hf.reports.compression import CompressionReport

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def copied(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose modules are its own and whose parameters are the model's: none of them may be written to."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def layer_of(linear: nn.Linear, result: Reached, tokens: int, disk: bool) -> FactorizedLinear | None:
    """The layer that takes the place of a linear; None where it stays, or goes.

    Args:
        linear: dense.
        result: what was found for it.
        tokens: for which contraction paths are chosen.
        disk: whether what the layer holds is in files, where it is on the CPU, see `room`.
    """
    if result.setting is None or result.factorization is None:
        return None
    layer = FactorizedLinear.from_linear(linear, result.setting, result.factorization, tokens)
    if disk and linear.weight.device.type == "cpu":
        for tensor in (*layer.parameters(), *layer.buffers()):
            tensor.data = in_file(tensor.data)
    return layer


@contextmanager
def replacing(
    model: PreTrainedModel,
    linears: Mapping[str, nn.Linear],
    layers: Mapping[str, FactorizedLinear],
    gone: Collection[str],
    embedded: Embedded | None = None,
) -> Iterator[Callable[[], None]]:
    """What puts layers in the place of linears, and takes out blocks that go. After an error the model is as it was before.

    Args:
        model: dense; with some of the layers, too, once the block runs.
        linears: by name.
        layers: by the same names.
        gone: names of the blocks that go.
        embedded: what takes the place of the word embeddings; None where they stay.
    """
    restored = list[Callable[[], None]]()
    tables = dict[nn.Module, nn.Module]() if embedded is None else {model.get_submodule(embedded.name): embedded.module}

    def replace() -> None:
        swap_modules(model, tables | {linears[name]: layer for name, layer in layers.items()})
        restored.append(drop_blocks(model, gone))

    try:
        yield replace
    except BaseException:
        for restore in restored:
            restore()
        back = {table: dense for dense, table in tables.items()}
        swap_modules(model, back | {layer: linears[name] for name, layer in layers.items()})
        raise


def kept_of(reached: Mapping[str, Reached]) -> Kept:
    """The neurons that stay, of layers that lose some."""
    return {name: f.kept for name, r in reached.items() if (f := r.factorization) is not None and f.kept is not None}


def attach(model: PreTrainedModel, settings: Settings, tokens: int, report: CompressionReport) -> None:
    """Make a model one that Transformers saves and loads. A path on this machine says nothing elsewhere: names only.

    Args:
        model: with the factorized layers in place, and without the blocks that go.
        settings: of all matrices, by the names before.
        tokens: for which contraction paths were chosen.
        report: of the compression.
    """
    gone = dropped_blocks(settings)
    kept = {name: setting for name, setting in settings.items() if setting is not None and setting.format not in GONE}
    embeddings = embedding_ranks(model)
    if not (kept or embeddings):  # a dense model with fewer blocks
        return
    config = FactorizedConfig(
        tensors={renumbered(name, gone): setting for name, setting in kept.items()},
        tokens=tokens,
        accelerator=report.accelerator,
        embeddings=embeddings,
        blocks=stood_for(gone, model.config.num_hidden_layers) if gone else None,
        heat_version=report.heat_version,
        shared_encoders=shared_encoders(model),
    )
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=True)
    quantizer.report = report
    quantizer.attach(model)
