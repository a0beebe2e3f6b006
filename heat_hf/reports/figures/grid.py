"""A figure for every matrix of a model: blocks × kinds of layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from heat_hf.encoders.linears import block_of, kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def blocks_and_kinds(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The columns and the rows of a grid, in the order of the matrices."""
    names = list(names)
    return list(dict.fromkeys(map(block_of, names))), list(dict.fromkeys(map(kind_of, names)))


def draw_grid(axes: Axes, cells: Mapping[str, tuple[float, str]], low: float, high: float) -> AxesImage:
    """Draw a coloured cell with a text for each matrix.

    Args:
        axes: to draw in.
        cells: by name of the matrix: what the colour shows, and the text.
        low: what the darkest colour stands for.
        high: the brightest.
    """
    blocks, kinds = blocks_and_kinds(cells)
    values = [[float("nan")] * len(blocks) for _ in kinds]
    for name, (value, text) in cells.items():
        row, column = kinds.index(kind_of(name)), blocks.index(block_of(name))
        values[row][column] = value
        colour = "black" if value > (low + high) / 2 else "white"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    drawn = axes.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(blocks)), [re.sub(r"\D*(\d+)$", r"\1", block) for block in blocks])
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("block")
    return drawn
