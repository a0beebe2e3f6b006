"""What networks reach over what they cost, several methods beside each other (paper, Fig. 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heat_hf.reports.figures.style import COLOURS, log_axis, save_figure, tidy_axes
from heat_hf.reports.networks import Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]
RANDOM = "random"  # methods that start so are drawn as clouds
DIVERGENCE = "divergence from the dense model"


@dataclass(frozen=True)
class Panel:
    """One measure of the networks.

    Attributes:
        title: above it.
        label: the measure.
        methods: method → (EDP as a fraction of the dense model's, the measure).
        dense: what the dense model reaches; None where nothing is known, or it is 0.
    """

    title: str
    label: str
    methods: Mapping[str, Points]
    dense: float | None = None


def panels_of(networks: Sequence[Network], subnets: Points = ()) -> list[Panel]:
    """A panel for each score, and one for the divergence of what was not trained; none of fewer than two networks.

    Args:
        networks: of one dense model, on one accelerator.
        subnets: measured SubNets of a search, for a panel of their own beside what it predicts.
    """
    scores = {label: network.dense_scores.get(label) for network in networks for label in network.scores}
    panels = [
        Panel(label, label.rpartition(", ")[2], _by_series(networks, {id(n): n.scores.get(label) for n in networks}), dense)
        for label, dense in scores.items()
    ]
    diverging = _by_series(networks, {id(n): n.divergence for n in networks})
    panels.append(Panel("not trained", DIVERGENCE, diverging))
    if subnets:
        predicted = _by_series(networks, {id(n): n.predicted_accuracy for n in networks})
        panels.append(Panel("with the SuperNet's cores", "accuracy", {"random SubNets, measured": subnets, **predicted}))
    return [panel for panel in panels if sum(map(len, panel.methods.values())) > 1]


def _by_series(networks: Sequence[Network], measure: Mapping[int, float | None]) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for network in networks:
        value = measure[id(network)]
        if value is not None and network.edp_ratio is not None:
            found.setdefault(network.series, []).append((network.edp_ratio, value))
    return found


def draw_tradeoff(panels: Sequence[Panel], path: str | Path, title: str) -> None:
    """Draw what several methods reach over EDP, random settings as a cloud (paper, Fig. 12).

    Args:
        panels: one below the other.
        path: PNG file to write.
        title: of the whole.

    Raises:
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 4.6 * len(panels)), layout="constrained")
    lines = dict.fromkeys(name for panel in panels for name in panel.methods if not name.startswith(RANDOM))
    places = {name: place for place, name in enumerate(lines)}
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        _draw_panel(axes, panel, places)
    figure.suptitle(title, fontsize=12, parse_math=False)
    save_figure(figure, path)


def _draw_panel(axes: Axes, panel: Panel, places: Mapping[str, int]) -> None:
    for method, points in panel.methods.items():
        if method not in places:
            axes.scatter(
                [x for x, _ in points], [y for _, y in points], s=16, c="#9aa0aa", alpha=0.6, linewidths=0, label=method
            )
            continue
        number = places[method]
        # Different markers and dashes: methods that find the same settings lie on top of each other.
        ordered = sorted(points)
        axes.plot(
            [x for x, _ in ordered], [y for _, y in ordered], lw=1.6, color=COLOURS[number % len(COLOURS)], label=method,
            marker="osD^vP"[number % 6], ms=8 - number % 6, ls=("-", "--", ":")[number // 2 % 3],
        )  # fmt: skip
    if panel.dense is not None:
        axes.axhline(panel.dense, color="black", lw=1, ls="--", label="dense")
    axes.set_xscale("log")
    log_axis(axes.xaxis)
    falling = panel.label == DIVERGENCE
    if falling:
        axes.set_yscale("log")
        log_axis(axes.yaxis)
    axes.set_xlabel("EDP / that of the dense model")
    axes.set_ylabel(panel.label)
    axes.set_title(panel.title, fontsize=11)
    axes.legend(loc="upper right" if falling else "lower right", frameon=False, fontsize=9)
    tidy_axes(axes)
