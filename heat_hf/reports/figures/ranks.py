"""Pictures of Level 2: the ranks of a network, the predictor's fidelity, the SuperNet's ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heat_hf.hardware import units
from heat_hf.reports.figures.grid import blocks_and_kinds, draw_grid
from heat_hf.reports.figures.style import COLOURS, WIDEST, save_figure, tidy_axes
from heat_hf.reports.ranks import RankRecord, rank_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]


def draw_rank_map(record: RankRecord, path: str | Path) -> None:
    """Draw what every tensor of every variant got: blocks × kinds of layer; colour is the share of parameters kept.

    Args:
        record: of a search.
        path: PNG file to write.

    Raises:
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    blocks, kinds = blocks_and_kinds(record.variants[0].settings)
    wide = max(len(rank_text(s)) for v in record.variants for s in v.settings.values())
    cell = max(0.75, 0.09 * wide)
    width = max(7.0, 2.6 + cell * len(blocks))
    figure = Figure(figsize=(width, 1.2 + len(record.variants) * (0.9 + 0.34 * len(kinds))), layout="constrained")
    panels = figure.subplots(len(record.variants), 1, squeeze=False)[:, 0]
    for axes, variant in zip(panels, record.variants, strict=True):
        cells = {name: (1.0 if s is None else s.ratio, rank_text(s)) for name, s in variant.settings.items()}
        drawn = draw_grid(axes, cells, 0, 1)
        axes.set_title(
            f"{variant.name}: {variant.measure} ×{variant.edp_ratio:.3f}, parameters ×{variant.params_ratio:.3f}"
            + ("" if variant.seconds is None else f", {units.TIME.of(variant.seconds):.0f} {units.TIME.name}"),
            fontsize=10,
        )
    figure.colorbar(drawn, ax=panels.tolist(), label="share of the parameters kept", pad=0.02)
    name = "/".join(record.model.split("/")[-2:])[-60:]
    figure.suptitle(f"Ranks of {name}, {record.method}", parse_math=False, fontsize=12)
    save_figure(figure, path)


def draw_fidelity(
    held_out: Points,
    path: str | Path,
    correlations: tuple[float, float],
    retrained: Points = (),
    measure: str = "accuracy with the SuperNet's cores",
) -> None:
    """Draw predicted against measured accuracies (paper, Fig. 9): of held-out SubNets, and of re-trained ones if there are.

    Args:
        held_out: measured with the SuperNet's cores, predicted.
        path: PNG file to write.
        correlations: Spearman's and Kendall's of these.
        retrained: measured after re-training each SubNet alike, predicted.
        measure: what was measured of the former.

    Raises:
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDEST if retrained else 6, 5), layout="constrained")
    panels = figure.subplots(1, 2 if retrained else 1, squeeze=False)[0]
    note = f"Spearman {correlations[0]:.3f}, Kendall {correlations[1]:.3f}"
    _draw_pairs(panels[0], held_out, f"{len(held_out)} held-out SubNets: {note}", COLOURS[0])
    panels[0].set_xlabel(measure)
    if retrained:
        from scipy.stats import spearmanr

        spearman = float(spearmanr(*zip(*retrained, strict=True)).statistic)
        _draw_pairs(panels[1], retrained, f"{len(retrained)} networks re-trained: Spearman {spearman:.3f}", COLOURS[1])
        panels[1].set_xlabel("accuracy after re-training")
    save_figure(figure, path)


def _draw_pairs(axes: Axes, points: Points, title: str, colour: str) -> None:
    measured, predicted = zip(*points, strict=True)
    axes.scatter(measured, predicted, s=30, c=colour, alpha=0.75, linewidths=0)
    axes.set_ylabel("predicted accuracy")
    axes.set_title(title, fontsize=11)
    tidy_axes(axes)


def draw_ablation(accuracies: Mapping[str, Sequence[float]], path: str | Path, title: str) -> None:
    """Draw the accuracies of the same SubNets for several ways to train the SuperNet, as boxes (paper, Fig. 11).

    Args:
        accuracies: by way.
        path: PNG file to write.
        title: what is shown.

    Raises:
        OSError: if the file cannot be written.
    """
    from statistics import median

    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 1.4 + 0.75 * len(accuracies)), layout="constrained")
    axes = figure.subplots()
    names = list(accuracies)
    boxes = axes.boxplot(
        [list(accuracies[name]) for name in names], orientation="horizontal", widths=0.55, patch_artist=True,
        medianprops={"color": "black", "linewidth": 1.6}, flierprops={"markersize": 4},
    )  # fmt: skip
    for box, colour in zip(boxes["boxes"], [COLOURS[0], *["#c9ccd4"] * len(names)], strict=False):
        box.set_facecolor(colour)
        box.set_alpha(0.75)
    axes.set_yticks(range(1, len(names) + 1), [f"{name}\nmedian {median(accuracies[name]):.4f}" for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy of SubNets")
    axes.set_title(title, fontsize=11)
    tidy_axes(axes)
    save_figure(figure, path)
