"""A cost table as pictures: the paper's figures 2 and 7."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heat_hf.hardware import units
from heat_hf.reports.figures.style import WIDEST, log_axis, save_figure, tidy_axes
from heat_hf.reports.shapes import (
    ANY,
    MEASURES,
    dense_candidate,
    format_colours,
    rank_text,
    searched_spaces,
    selections,
)
from heat_hf.search.shapes.pareto import front
from heat_hf.search.shapes.search import NO_MAPPING
from heat_hf.search.shapes.table import Candidate, CostTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

NEAR = 0.02  # MACs this close to each other count as the same in figure 2
_GREYS = ("#BDBDBD", "#D9D9D9", "#8C8C8C", "#595959")
LABELS = {
    "error": "error ‖W − W′‖ / ‖W‖",
    "ratio": "compression ratio (parameters / those of the matrix)",
    "energy": f"energy ({units.ENERGY.name})",
    "latency": f"latency ({units.TIME.name})",
    "EDP": f"EDP ({units.EDP.name})",
    "MACs": "MACs",
    "parameters": "parameters",
}


def draw_figure_7(table: CostTable, size: str, path: str | Path) -> None:
    """Draw how the shape of one matrix size is found, and the energy-latency-error-ratio space (paper, Fig. 7).

    Args:
        table: the costs.
        size: matrix size, as "384x1536".
        path: PNG file to write.

    Raises:
        ValueError: if the table has no such size.
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    best = front(table.of(size))
    figure = Figure(figsize=(9, 21), layout="constrained")
    choice, shapes, space, ratios = figure.subplots(4, 1)
    note = f"{len(table.of(size)):,} candidates, {len(best)} of them on the front of error, ratio, energy and latency"
    figure.suptitle(f"{_title(table, size)}\n{note}", parse_math=False, fontsize=13)
    _draw_shapes(shapes, table, size)
    _draw_space(space, table, size, best)
    _draw_ratios(ratios, table, size, best)
    labels = _draw_choice(choice, table, size, best)
    _legend(figure, choice, table, size)
    figure.draw_without_rendering()  # places the axes, so that texts have extents
    _make_room(choice, labels, table, size)
    save_figure(figure, path)


def _title(table: CostTable, size: str) -> str:
    name = "/".join(table.model.split("/")[-2:])  # a name on the Hub whole, of a folder the end
    return f"{name if len(name) <= 60 else f'…{name[-59:]}'}, {size}, {table.tokens} tokens, {table.accelerator}"


def _scatter(axes: Axes, table: CostTable, size: str, x: str, y: str, dense_x: float = 1.0, alpha: float = 0.28) -> None:
    """All candidates, by format, large ones first; where formats meet in one setting, the first format is seen."""
    colours = format_colours(table)
    names = list(colours)
    points = sorted(table.of(size), key=lambda c: (-c.parameters, -names.index(c.format)))
    axes.scatter(
        [MEASURES[x](c) / dense_x for c in points],
        [MEASURES[y](c) for c in points],
        s=9, c=[colours[c.format] for c in points], alpha=alpha, linewidths=0,
    )  # fmt: skip
    tidy_axes(axes)


def _draw_front(axes: Axes, table: CostTable, best: Sequence[Candidate], x: str, y: str, dense_x: float = 1.0) -> None:
    colours = format_colours(table)
    for format in reversed(colours):
        points = [candidate for candidate in best if candidate.format == format]
        xs, ys = [MEASURES[x](c) / dense_x for c in points], [MEASURES[y](c) for c in points]
        axes.scatter(xs, ys, s=26, c=colours[format], edgecolors="black", linewidths=0.6, zorder=3)


def _legend(figure: Figure, axes: Axes, table: CostTable, size: str, best: bool = True) -> None:
    """What the marks of `_scatter` and `_draw_front` mean, below all panels, where it hides no point."""
    present = {candidate.format for candidate in table.of(size)}
    colours = {name: colour for name, colour in format_colours(table).items() if name in present}
    marks = [axes.scatter([], [], s=36, c=colour, label=name) for name, colour in colours.items()]
    if best:
        marks.append(axes.scatter([], [], s=36, c="white", edgecolors="black", label="on the front"))
    marks.append(axes.scatter([], [], s=140, c="black", marker="*", label="dense layer"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)


def _draw_choice(axes: Axes, table: CostTable, size: str, best: Sequence[Candidate]) -> list[Annotation]:
    """Error against EDP, and the knees with their shapes and ranks; the labels of these."""
    dense = units.EDP.of(table.sizes[size].dense_edp)
    _scatter(axes, table, size, "EDP", "error", dense)
    _draw_front(axes, table, best, "EDP", "error", dense)
    axes.scatter([1], [0], marker="*", s=160, c="black", zorder=4, clip_on=False)
    axes.set_xscale("log")
    axes.set_ylim(-0.03, max(1.02, *(c.error * 1.02 for c in table.of(size))))
    axes.set_xlabel("EDP / that of the dense layer")
    axes.set_ylabel(LABELS["error"])
    axes.set_title("Selected: the knee with the least error, of each format; bold: of all formats")
    return _label_selected(axes, table, size)


def _label_selected(axes: Axes, table: CostTable, size: str) -> list[Annotation]:
    """Name the selected settings in the lower left corner, where the front leaves room, with a line to each."""
    selected, dense, labels = selections(table, size), table.sizes[size].dense_edp, []
    for i, candidate in enumerate(sorted(set(selected.values()), key=lambda c: (c.error, c.format))):
        colour, point = format_colours(table)[candidate.format], (candidate.edp / dense, candidate.error)
        # Rings of different width: settings of two formats may have the same error and EDP.
        axes.scatter(*point, s=110 + 110 * i, facecolors="none", edgecolors=colour, linewidths=1.6, zorder=5)
        text = axes.annotate(
            f"{candidate.format} {candidate.shape}, rank {rank_text(candidate)}", point, (0.015, 0.045 + 0.062 * i),
            textcoords="axes fraction", color=colour, va="center", fontsize=9.5, parse_math=False, zorder=6,
            weight="bold" if candidate == selected[ANY] else "normal",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8, "shrinkB": 5, "relpos": (1, 0.5)},
            bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.9},  # over the lines from labels below
        )  # fmt: skip
        labels.append(text)
    return labels


def _make_room(axes: Axes, labels: Sequence[Annotation], table: CostTable, size: str) -> None:
    """Start the log x axis so far left that no point lies under the labels in the lower left corner."""
    from matplotlib.text import Text

    boxes = [Text.get_window_extent(label).transformed(axes.transAxes.inverted()) for label in labels]
    width, height = max(box.x1 for box in boxes) + 0.04, max(box.y1 for box in boxes) + 0.03
    low, high = axes.get_ylim()
    dense = table.sizes[size].dense_edp
    points = [(candidate.edp / dense, candidate.error) for candidate in table.of(size)]
    logs = [(math.log10(x), (y - low) / (high - low)) for x, y in [*points, (1.0, 0.0)]]
    right = max(x for x, _ in logs) + 0.1
    least = min(x for x, y in logs if y < height)  # there is one: the dense layer
    left = min(min(x for x, _ in logs) - 0.1, (least - min(width, 0.8) * right) / (1 - min(width, 0.8)))
    axes.set_xlim(10**left, 10**right)
    log_axis(axes.xaxis)


def _draw_shapes(axes: Axes, table: CostTable, size: str) -> None:
    """Where the shapes of each format went: tried, by order, or dropped, and why."""
    from matplotlib.patches import Patch

    spaces, colours = searched_spaces(table, size), format_colours(table)
    reasons = list(dict.fromkeys(reason for space in spaces.values() for reason in space["dropped"] if reason != NO_MAPPING))
    greys = {reason: _GREYS[i % len(_GREYS)] for i, reason in enumerate(reasons)}
    for row, (format, space) in enumerate(spaces.items()):
        orders = _shapes_by_order(table, size, format)
        parts = [(count, colours[format]) for count in orders.values()]
        parts.append((space["shapes"] - sum(orders.values()), "white"))
        parts += [(space["dropped"].get(reason, 0), greys[reason]) for reason in reasons]
        _draw_bar(axes, row, parts)
        lines = _shape_notes(format, space, orders)
        axes.text(0, row - 0.17, lines[0], va="bottom", weight="bold", fontsize=10, color=colours[format])
        axes.text(0, row + 0.17, lines[1], va="top", fontsize=9)
    axes.set_ylim(len(spaces) + 0.4, -0.4)  # the legend has its room below the last notes
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("share of the shapes of all orders asked for")
    axes.set_title("Shape candidates")
    axes.spines[["top", "right", "left"]].set_visible(False)
    marks = [Patch(color=greys[reason], label=reason) for reason in reasons]
    if marks:
        axes.legend(
            handles=marks, title="dropped because", loc="lower left", ncols=3, fontsize=9, frameon=False, alignment="left"
        )


def _draw_bar(axes: Axes, row: int, parts: Sequence[tuple[int, str]]) -> None:
    total, start = max(1, sum(count for count, _ in parts)), 0.0
    for count, colour in parts:
        share = count / total
        axes.barh(row, share, 0.3, left=start, color=colour, edgecolor="white", linewidth=1.2)
        if share > 0.04:
            dark = colour not in (*_GREYS[:2], "white")
            axes.text(start + share / 2, row, f"{count:,}", ha="center", va="center", color="white" if dark else "black")
        start += share


def _shapes_by_order(table: CostTable, size: str, format: str) -> dict[int, int]:
    """Number of modes longer than 1 → shapes with candidates."""
    shapes = {candidate.shape for candidate in table.of(size) if candidate.format == format}
    orders = Counter(sum(int(extent) > 1 for extent in re.findall(r"\d+", shape)) for shape in shapes)
    return dict(sorted(orders.items()))


def _shape_notes(format: str, space: Any, orders: dict[int, int]) -> tuple[str, str]:  # noqa: ANN401
    """What a bar shows, in numbers: some of its parts are too small for theirs."""
    dropped = {**space["dropped"]}
    unmapped = dropped.pop(NO_MAPPING, 0)
    tried = [f"{count:,} of order {order}" for order, count in orders.items()]
    without = space["shapes"] - sum(orders.values())
    tried += [f"{without:,} without a candidate"] if without else []
    above = f"{format}: {space['shapes']:,} of {space['unpruned_shapes']:,} shapes tried"
    below = [f"tried: {', '.join(tried)}"] if tried else []
    below += [f"dropped: {', '.join(f'{count:,} {reason}' for reason, count in dropped.items())}"] if dropped else []
    below += [f"{unmapped:,} settings with {NO_MAPPING}"] if unmapped else []
    return above, "\n".join(below)


def _draw_space(axes: Axes, table: CostTable, size: str, best: Sequence[Candidate]) -> None:
    """Latency against energy; colour is the error, area the ratio."""
    info, on_front = table.sizes[size], set(map(id, best))
    for points, edge in (([c for c in table.of(size) if id(c) not in on_front], "none"), (best, "black")):
        ordered = sorted(points, key=lambda c: -c.ratio)  # small marks on top of large ones
        drawn = axes.scatter(
            [MEASURES["latency"](c) for c in ordered], [MEASURES["energy"](c) for c in ordered],
            s=[_area(c.ratio) for c in ordered], c=[c.error for c in ordered], cmap="viridis", vmin=0, vmax=1,
            alpha=0.75, edgecolors=edge, linewidths=0.9,
        )  # fmt: skip
    star = axes.scatter(
        [units.TIME.of(info.dense_seconds)], [MEASURES["energy"](dense_candidate(table, size))],
        s=260, c="red", edgecolors="white", marker="*", zorder=4, label="dense layer",
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel=LABELS["latency"], ylabel=LABELS["energy"])
    axes.set_title("Energy, latency, error, ratio; outlined: on the front")
    tidy_axes(axes)
    log_axis(axes.xaxis)
    log_axis(axes.yaxis)
    axes.figure.colorbar(drawn, ax=axes, label=LABELS["error"], pad=0.01)
    marks = [axes.scatter([], [], s=_area(c), c="grey", label=f"ratio {c:g}") for c in (0.05, 0.2, 0.5, 1.0)]
    axes.legend(handles=[*marks, star], loc="upper left", framealpha=0.9)


def _area(ratio: float) -> float:
    return 8 + 130 * ratio


def _draw_ratios(axes: Axes, table: CostTable, size: str, best: Sequence[Candidate]) -> None:
    _scatter(axes, table, size, "ratio", "error")
    _draw_front(axes, table, best, "ratio", "error")
    axes.scatter([1], [0], marker="*", s=160, c="black", zorder=4, clip_on=False)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=-0.03)
    axes.set_xlabel(LABELS["ratio"])
    axes.set_ylabel(LABELS["error"])
    axes.set_title("Error and ratio")


def draw_figure_2(table: CostTable, size: str, path: str | Path) -> None:
    """Draw MACs and parameters against EDP: poor indicators of what the hardware does (paper, Fig. 2).

    Args:
        table: the costs.
        size: matrix size, as "384x1536".
        path: PNG file to write.

    Raises:
        ValueError: if the table has no such size.
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    points = table.of(size)
    figure = Figure(figsize=(WIDEST, 5.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    dense = dense_candidate(table, size)
    for axes, name in zip(panels, ("MACs", "parameters"), strict=True):
        _scatter(axes, table, size, name, "EDP", alpha=0.5)
        axes.scatter([MEASURES[name](dense)], [MEASURES["EDP"](dense)], marker="*", s=160, c="black", zorder=4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        correlation = rank_correlation(points, MEASURES[name], MEASURES["EDP"])
        axes.set_xlabel(f"{LABELS[name]} (rank correlation with EDP {correlation:.3f})")
    panels[0].set_ylabel(LABELS["EDP"])
    log_axis(panels[0].yaxis)
    _legend(figure, panels[0], table, size, best=False)
    spread = f"MACs within {NEAR:.0%} of each other: EDPs up to {edp_spread(points):,.3g}× apart"
    figure.suptitle(f"{_title(table, size)}\n{len(points):,} candidates. {spread}", parse_math=False)
    save_figure(figure, path)


def rank_correlation(
    points: Sequence[Candidate], first: Callable[[Candidate], float], second: Callable[[Candidate], float]
) -> float:
    """Spearman's rank correlation of two measures; NaN if one of them is the same for all."""
    from scipy.stats import spearmanr

    values = [[measure(candidate) for candidate in points] for measure in (first, second)]
    if any(len(set(column)) < 2 for column in values):
        return math.nan
    return float(spearmanr(*values).statistic)


def edp_spread(points: Sequence[Candidate], near: float = NEAR) -> float:
    """The largest ratio of the EDPs of two candidates whose MACs differ by at most `near`, relative to the fewer."""
    import numpy as np

    ordered = sorted(points, key=lambda c: c.macs)
    macs, edps = np.array([c.macs for c in ordered]), np.array([c.edp for c in ordered])
    ends = np.searchsorted(macs, macs * (1 + near), side="right")
    windows = (edps[start:end] for start, end in enumerate(ends))
    return max(float(window.max() / window.min()) for window in windows)
