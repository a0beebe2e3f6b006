"""The picture of a bench: score over speed where models were scored, else times; a panel for each forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heat_hf.reports.bench import BenchReport, Entry, Pass, short_names
from heat_hf.reports.figures.style import COLOURS, WIDEST, save_figure, tidy_axes
from heat_hf.search.shapes.pareto import pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = ("o", "s", "^", "D", "v", "P", "X", "p")  # as many as there are ways


def draw_bench(report: BenchReport, path: str | Path) -> None:
    """Draw what a bench found.

    Args:
        report: of the bench.
        path: PNG file to write.

    Raises:
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    passes, scored = report.passes, bool(report.metric)
    columns = min(2, len(passes))
    rows = -(-len(passes) // columns)
    height = 3.4 if scored else 0.9 + 0.28 * len(report.entries)
    figure = Figure(figsize=(WIDEST if columns > 1 else 0.7 * WIDEST, 0.9 + height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, one in zip(panels, passes, strict=False):
        (_draw_scores if scored else _draw_times)(axes, report, one)
        axes.set_title(report.label(one).replace(one.tokens, f"{one.tokens} tokens"))
        tidy_axes(axes)
    for axes in panels[len(passes) :]:
        axes.set_visible(False)
    if scored:
        _legend(figure, report)
    save_figure(figure, path)


def _styles(report: BenchReport) -> tuple[dict[str, str], dict[str, str]]:
    """Colours of models, and marks of the ways they run."""
    models, ways = ([*dict.fromkeys(names)] for names in zip(*((e.model, e.way) for e in report.entries), strict=True))
    colours = {model: COLOURS[number % len(COLOURS)] for number, model in enumerate(models)}
    return colours, {way: MARKS[number % len(MARKS)] for number, way in enumerate(ways)}


def _draw_scores(axes: Axes, report: BenchReport, one: Pass) -> None:
    """Score over how many times as fast as the reference each is, and the front of those that nothing beats in both."""
    colours, marks = _styles(report)
    entries = sorted(report.entries, key=lambda entry: entry.times[one].ratio)
    points = [(entry.times[one].ratio, -(entry.score or 0.0)) for entry in entries]
    front = [entry for entry, keep in zip(entries, pareto_front(points), strict=True) if keep]
    axes.plot(*zip(*(_point(entry, one) for entry in front), strict=True), color="grey", linewidth=1, zorder=1)
    for entry in entries:
        x, y = _point(entry, one)
        time = entry.times[one]
        axes.plot([1 / time.upper, 1 / time.lower], [y, y], color=colours[entry.model], linewidth=1, alpha=0.5)
        axes.scatter(
            [x], [y], s=40, marker=marks[entry.way], c=colours[entry.model], edgecolors="black", linewidths=0.5, zorder=3
        )
    best = report.best(one)
    x, y = _point(best, one)
    axes.scatter([x], [y], s=170, facecolors="none", edgecolors="black", zorder=2)
    _name(axes, front, one)
    axes.margins(x=0.18, y=0.15)
    axes.set(xlabel="times as fast", ylabel=report.metric)


def _point(entry: Entry, one: Pass) -> tuple[float, float]:
    return 1 / entry.times[one].ratio, entry.score or 0.0


def _name(axes: Axes, entries: Sequence[Entry], one: Pass) -> None:
    for entry in entries:  # above the front, where no point is
        axes.annotate(entry.way, _point(entry, one), (5, 5), textcoords="offset points", fontsize=8)


def _legend(figure: Figure, report: BenchReport) -> None:
    """Below all panels, where it hides no point."""
    from matplotlib.lines import Line2D

    colours, marks = _styles(report)
    names = short_names(list(colours))
    handles = [Line2D([], [], linestyle="", marker="o", color=colour, label=names[model]) for model, colour in colours.items()]
    handles += [Line2D([], [], linestyle="", marker=mark, color="grey", label=way) for way, mark in marks.items()]
    ring: dict[str, Any] = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": "black"}
    handles.append(Line2D([], [], linestyle="", marker="o", label="to use", **ring))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _draw_times(axes: Axes, report: BenchReport, one: Pass) -> None:
    """A bar for each, the first one on top, with quartiles."""
    colours, _ = _styles(report)
    names = short_names(list(colours))
    times = [entry.times[one] for entry in report.entries]
    ratios = [time.ratio for time in times]
    spread = [[time.ratio - time.lower for time in times], [time.upper - time.ratio for time in times]]
    labels = [f"{names[entry.model]}, {entry.way}" for entry in report.entries]
    axes.barh(range(len(times)), ratios, color=[colours[entry.model] for entry in report.entries], height=0.7)
    axes.errorbar(ratios, range(len(times)), xerr=spread, fmt="none", ecolor="black", elinewidth=1)
    axes.set_yticks(range(len(times)), labels, fontsize=9)
    axes.set_ylim(len(times) - 0.5, -0.5)
    axes.set_xlabel("time / that of the first")
