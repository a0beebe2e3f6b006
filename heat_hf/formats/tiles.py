"""Tiles of tokens: sequences are cut into tiles of t, and what is padding counts as zero, whatever is there.

So results depend neither on the rows beside one in a batch nor on how much padding follows it. What is padding, a layer cannot
see: whoever runs the model says it, by `masked`, for all layers that run in this thread until the block ends. Nothing is kept
in the model, so that copies, threads and compilers have nothing to mind.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_NOW = threading.local()  # masks: of the forward passes that are under way in this thread, the innermost last


@contextmanager
def masked(mask: Tensor | None) -> Iterator[None]:
    """Say which tokens are no padding, for the layers that run inside.

    Args:
        mask: rows × tokens, True for tokens; None if all are.
    """
    begin(mask)
    try:
        yield
    finally:
        end()


def begin(mask: Tensor | None) -> None:
    """What `masked` starts with."""
    _NOW.masks = (*getattr(_NOW, "masks", ()), mask)


def end() -> None:
    """What `masked` ends with."""
    _NOW.masks = _NOW.masks[:-1]


def cut_up(x: Tensor, tile: int) -> Tensor:
    """Sequences as tiles of tokens, filled up with zeros: of extents (sequences · tiles, t, N).

    Args:
        x: of extents (sequences, tokens, N).
        tile: t.

    Raises:
        ValueError: if these are no sequences, or others than the mask is for.
    """
    if x.dim() != 3:
        raise ValueError(
            f"a strassen_tile layer reads sequences, of extents (rows, tokens, features), got {tuple(x.shape)}: leave layers "
            "that read single vectors, as poolers and heads do, dense with exclude=[…]"
        )
    masks = getattr(_NOW, "masks", ())
    mask = masks[-1] if masks else None
    if mask is not None:
        if mask.shape[0] != x.shape[0] or mask.shape[1] != x.shape[1]:
            raise ValueError(
                f"a strassen_tile layer reads {tuple(x.shape[:2])} rows and tokens, but the attention mask has "
                f"{tuple(mask.shape)}: leave layers that read something else than the tokens dense with exclude=[…]"
            )
        x = x.masked_fill(~mask.to(x.device).unsqueeze(-1), 0.0)
    rows, tokens, _ = x.shape
    tiles = (tokens + tile - 1) // tile
    if torch.compiler.is_exporting():
        # Of a free number of tokens, exporters want extents that are never 1, and no slices of which some are contiguous.
        tiles = torch.sym_max(tiles, 2)
        places = torch.arange(tiles * tile, device=x.device)
        x = x.index_select(1, places.clamp(max=tokens - 1)).masked_fill((places >= tokens).unsqueeze(-1), 0.0)
    elif tokens % tile:
        x = torch.nn.functional.pad(x, (0, 0, 0, tiles * tile - tokens))
    return x.reshape(rows * tiles, tile, x.shape[-1])


def put_together(y: Tensor, x: Tensor) -> Tensor:
    """Tiles of outputs as sequences again, of extents (sequences, tokens, M).

    Args:
        y: of extents (sequences · tiles, t, M).
        x: what was cut up.
    """
    y = y.reshape(x.shape[0], -1, y.shape[-1])
    if torch.compiler.is_exporting():
        return y.index_select(1, torch.arange(x.shape[1], device=y.device))
    return y[:, : x.shape[1]]
