"""How close to low rank a dense model's matrices are, as a picture (paper, Fig. 2c)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from heat_hf.encoders.linears import kind_of
from heat_hf.encoders.low_rankness import LowRankness
from heat_hf.reports.figures.grid import blocks_and_kinds, draw_grid
from heat_hf.reports.figures.style import COLOURS, WIDEST, save_figure, tidy_axes
from heat_hf.reports.low_rankness import TYPICAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_low_rankness(name: str, matrices: Mapping[str, LowRankness], path: str | Path) -> None:
    """Draw the error of every matrix over its parameters at low rank, and all errors at one share of them (paper, Fig. 2c).

    Args:
        name: of the model.
        matrices: by name.
        path: PNG file to write.

    Raises:
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    _, kinds = blocks_and_kinds(matrices)
    heights = (4.4, 0.6 + 0.42 * len(kinds))
    figure = Figure(figsize=(WIDEST, sum(heights) + 0.8), layout="constrained")
    curves, grid = figure.subplots(2, 1, gridspec_kw={"height_ratios": heights})
    _draw_curves(curves, matrices, kinds)
    _draw_errors(grid, matrices)
    figure.suptitle(f"How close to low rank the matrices of {name[-60:]} are", parse_math=False, fontsize=12)
    save_figure(figure, path)


def _draw_curves(axes: Axes, matrices: Mapping[str, LowRankness], kinds: list[str]) -> None:
    seen = set()
    for matrix, own in matrices.items():
        kind = kind_of(matrix)
        place = kinds.index(kind)
        label = kind if kind not in seen else None
        seen.add(kind)
        ranks = range(len(own.errors))
        axes.plot(
            [own.share(rank) for rank in ranks], own.errors, lw=1, alpha=0.8, label=label,
            color=COLOURS[place % len(COLOURS)], ls=("-", "--", ":")[place // len(COLOURS) % 3],
        )  # fmt: skip
    axes.axvline(TYPICAL, color="black", lw=0.8, ls=":")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="parameters r·(M + N) / those of the matrix", ylabel="error ‖W − W_r‖ / ‖W‖")
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper right")
    axes.set_title("Every matrix, a line for each block", fontsize=10)
    tidy_axes(axes)


def _draw_errors(axes: Axes, matrices: Mapping[str, LowRankness]) -> None:
    errors = {matrix: own.error_at(TYPICAL) for matrix, own in matrices.items()}
    cells = {matrix: (error, f"{error:.2f}") for matrix, error in errors.items()}
    drawn = draw_grid(axes, cells, min(errors.values()), max(errors.values()))
    axes.set_title(f"Error at {TYPICAL:.0%} of the parameters", fontsize=10)
    axes.figure.colorbar(drawn, ax=axes, label="error", pad=0.01)
