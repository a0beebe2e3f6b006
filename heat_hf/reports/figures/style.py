"""What all pictures share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from heat_hf.encoders.checkpoints.storage import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDEST = 10.0  # inches: a page of the documentation shows that 748 pixels wide, and 9 points as 9 pixels
COLOURS = ("#4269d0", "#ff725c", "#3ca951", "#a463f2", "#9c6b4e", "#efb118", "#6cc5b0")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG file; it appears whole or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    with atomic_file(path) as file:
        figure.savefig(file, dpi=130, format="png")


def tidy_axes(axes: Axes) -> None:
    """No frame, a light grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def log_axis(axis: Axis) -> None:
    """Label a log axis with plain numbers, and with enough of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if high < 8 * low else (1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
