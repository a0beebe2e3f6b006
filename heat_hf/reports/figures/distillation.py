"""Pictures of Level 3: the losses of a training, and attention maps before and after (paper, Table 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from heat_hf.reports.figures.style import COLOURS, WIDEST, save_figure, tidy_axes

NOT_LOSSES = {"loss", "step", "epoch", "stage", "learning_rate", "grad_norm", "train_loss", "total_flos"}


def loss_curves(history: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[tuple[int, float]]], list[int]]:
    """What was logged of a training: (step, value) of every part of the loss, and the steps at which later stages first appear.

    Args:
        history: `trainer.state.log_history`.
    """
    entries = [entry for entry in history if "loss" in entry]
    names = dict.fromkeys(name for entry in entries for name in entry if name not in NOT_LOSSES)
    parts = {name: [(entry["step"], entry[name]) for entry in entries if name in entry] for name in names}
    starts = [entry["step"] for before, entry in pairwise(entries) if before.get("stage") != entry.get("stage")]
    return parts, starts


def draw_training(history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw every part of the loss over the steps, with the stages beneath.

    Args:
        history: `trainer.state.log_history`.
        path: PNG file to write.

    Raises:
        ValueError: if nothing was logged.
    """
    from matplotlib.figure import Figure

    parts, starts = loss_curves(history)
    if not parts:
        raise ValueError("the history has no losses: train for at least logging_steps steps")
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for (name, points), colour in zip(parts.items(), COLOURS, strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, marker=".", label=name.replace("_", " "))
    for step in starts:
        axes.axvline(step, color="grey", linestyle=":", label="next stage" if step == starts[0] else None)
    axes.set(xlabel="step", ylabel="weighted loss", yscale="log")
    axes.legend(frameon=False, fontsize=9)
    tidy_axes(axes)
    save_figure(figure, path)


def draw_attention(
    maps: Mapping[str, Tensor], heads: Sequence[tuple[int, int]], tokens: Sequence[str], path: str | Path
) -> None:
    """Draw attention maps of some heads, a row for each model (paper, Table 4).

    Args:
        maps: model's label → maps of one sequence, of extents (blocks, heads, tokens, tokens).
        heads: block and head of every column.
        tokens: of the sequence.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    size = min(0.16 * len(tokens), (WIDEST - 1.4) / len(heads))
    figure = Figure(figsize=(1.4 + size * len(heads), 1.0 + (size + 0.1) * len(maps)), layout="constrained")
    panels = figure.subplots(len(maps), len(heads), squeeze=False)
    for axes, (block, head) in zip(panels[0], heads, strict=True):
        axes.set_title(f"block {block}, head {head}", fontsize=9)
    for row, (label, attention) in zip(panels, maps.items(), strict=True):
        for axes, (block, head) in zip(row, heads, strict=True):
            axes.imshow(attention[block, head].float().numpy(), vmin=0, vmax=1, cmap="viridis", aspect="equal")
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center")
    for axes in panels[-1]:
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=min(9, 68 * size / len(tokens)))  # one beside another
    save_figure(figure, path)
