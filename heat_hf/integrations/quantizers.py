"""Quantizers that take linears: of layers without any inside, that they are left as they are."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from heat_hf.encoders.linears import factorized_layers

logger = logging.getLogger(__name__)


def tell_left_out(model: Any, tool: str) -> None:  # noqa: ANN401
    """Warn if a model has factorized layers without linears inside.

    Args:
        model: that was quantized; anything else is left alone.
        tool: name of what did it.
    """
    layers = factorized_layers(model).values() if isinstance(model, nn.Module) else ()
    left = [layer.setting.format for layer in layers if not any(True for _ in layer.children())]
    if left:
        logger.warning(
            "%s quantizes linears, and %d factorized layers (%s) hold none: they stay as they are. Compress with low_rank or "
            "pivoted, whose linears it finds, or call model.dequantize() before quantizing",
            tool,
            len(left),
            ", ".join(sorted(set(left))),
        )
