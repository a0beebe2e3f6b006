"""The cost table of a request: read from where it names one, or searched where its method needs one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from heat_hf.compression.config import HeatConfig
from heat_hf.hardware import CostModel
from heat_hf.search.shapes.search import ShapeSearch, require_fit, search_shapes
from heat_hf.search.shapes.table import CostTable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def table_of(
    model: PreTrainedModel, linears: Mapping[str, nn.Linear], config: HeatConfig, costs: CostModel | None
) -> CostTable | None:
    """The cost table that a request names, or that its method needs; None where it needs none.

    Args:
        model: dense.
        linears: of it, to choose for.
        config: the request.
        costs: what settings are costed by; None without an accelerator.

    Raises:
        ValueError: if the table is of other matrices, another accelerator or another number of tokens.
        OSError: if it cannot be read.
    """
    if config.cost_table is None and not config.method.needs_table:
        return None
    assert costs is not None
    if config.cost_table is not None:
        table = CostTable.load(config.cost_table)
        require_fit(table, config.cost_table, linears, costs, config.tokens)
        return table
    search = ShapeSearch(formats=config.formats, seed=config.seed)
    return search_shapes(model, costs, config.tokens, search, modules=config.modules, exclude=config.exclude)
