"""A layer's contraction as a picture: the orders from left to right and as it is run (paper, Fig. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heat_hf.formats.setting import TensorSetting
from heat_hf.reports.figures.style import WIDEST, save_figure
from heat_hf.reports.trees import Node, contraction_tree, fewer, heading, orders

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT = 9  # points
_LETTER, _GAP, _MARGIN, _ROW = 0.085, 0.3, 0.35, 0.95  # inches: a letter's width, between boxes, beside a tree, between levels
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class _Box(NamedTuple):
    """A node with its text, and where it stands: x in slots of the leaves, y in levels above the result."""

    node: Node
    text: str
    x: float
    y: int

    @property
    def width(self) -> float:
        return _LETTER * max(map(len, self.text.split("\n"))) + 0.1


def draw_trees(setting: TensorSetting, tokens: int, path: str | Path) -> None:
    """Draw the contraction of a layer in both orders, with extents and multiply-accumulates (paper, Fig. 6).

    Args:
        setting: of the layer's matrix.
        tokens: rows of x.
        path: PNG file to write.

    Raises:
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    plans = orders(setting, tokens)
    whole = heading(setting, tokens)
    titles = [f"{plan.path}: {short(plan.macs)} MACs{fewer(plan, plans[0])}" for plan in plans]
    trees = [_boxes(contraction_tree(plan)) for plan in plans]
    widths = [max(_width(boxes), _LETTER * len(title)) for boxes, title in zip(trees, titles, strict=True)]
    heights = [_ROW * (1 + max(box.y for box in boxes)) for boxes in trees]
    beside, least = sum(widths) <= WIDEST, _LETTER * len(whole)
    size = (max(least, sum(widths)), max(heights) + 0.6) if beside else (max(least, *widths), sum(heights) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    if beside:
        panels = figure.subplots(1, len(plans), squeeze=False, width_ratios=widths).ravel()
    else:
        panels = figure.subplots(len(plans), 1, squeeze=False, height_ratios=heights).ravel()
    for axes, boxes, title in zip(panels, trees, titles, strict=True):
        _draw_tree(axes, boxes, title)
    figure.suptitle(whole, fontsize=10.5, parse_math=False)
    save_figure(figure, path)


def short(count: float) -> str:
    """A count with three digits and a unit: "27.5 M"."""
    for factor, unit in _UNITS:
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:,.0f}"


def _boxes(root: Node) -> list[_Box]:
    """Leaves one beside the other, every product in the middle below its two operands."""
    slots = {id(node): place for place, node in enumerate(n for _, n in root.walk() if not n.operands)}

    def x(node: Node) -> float:
        return sum(map(x, node.operands)) / 2 if node.operands else slots[id(node)]

    return [_Box(node, _text(node), x(node), depth) for depth, node in root.walk()]


def _text(node: Node) -> str:
    if not node.operands:
        return f"{node.name}  {node.indices}\n{node.size}"
    return f"{node.indices}\n{node.size}\n{short(node.macs)} MACs{', once' if node.once else ''}"


def _slot(boxes: Sequence[_Box]) -> float:
    """Inches between two leaves at which no two boxes of a level overlap."""
    levels = [[box for box in boxes if box.y == level] for level in range(1 + max(box.y for box in boxes))]
    pairs = [pair for level in levels for pair in pairwise(level)]  # boxes come from left to right
    return max(((a.width + b.width) / 2 + _GAP) / (b.x - a.x) for a, b in pairs)


def _ends(boxes: Sequence[_Box]) -> tuple[float, float]:
    """Left and right end of all boxes in inches, from the first leaf."""
    slot = _slot(boxes)
    return min(slot * b.x - b.width / 2 for b in boxes), max(slot * b.x + b.width / 2 for b in boxes)


def _width(boxes: Sequence[_Box]) -> float:
    left, right = _ends(boxes)
    return right - left + _MARGIN


def _draw_tree(axes: Axes, boxes: Sequence[_Box], title: str) -> None:
    from matplotlib import colormaps

    slot, most = _slot(boxes), max(box.node.macs for box in boxes)
    place = {id(box.node): (slot * box.x, box.y) for box in boxes}
    for box in boxes:
        at = place[id(box.node)]
        for operand in box.node.operands:
            axes.plot(*zip(at, place[id(operand)], strict=True), color="#8a8f99", lw=1.2, zorder=1)
        shade = colormaps["OrRd"](0.05 + 0.5 * box.node.macs / most) if box.node.operands else "#dbe6f7"
        axes.text(
            *at, box.text, ha="center", va="center", fontsize=FONT, parse_math=False, zorder=2,
            bbox={"boxstyle": "round,pad=0.35", "facecolor": shade, "edgecolor": "#555",
                  "linestyle": "--" if box.node.once else "-"},
        )  # fmt: skip
    left, right = _ends(boxes)
    axes.set_xlim(left - _MARGIN / 2, right + _MARGIN / 2)
    axes.set_ylim(-0.42, max(box.y for box in boxes) + 0.36)
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
