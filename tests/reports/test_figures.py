"""Every text of a picture is large enough where the documentation shows it: 748 pixels wide, in a window of 1,280."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_model

from heat_hf import CostTable, HeatCompressor, HeatConfig
from heat_hf.encoders.low_rankness import LowRankness
from heat_hf.formats.size import MatrixSize
from heat_hf.reports.figures import distillation, low_rankness, ranks, shapes, tradeoff
from heat_hf.reports.figures.style import WIDEST

PAGE, LEAST, DPI = 748, 8.0, 130  # pixels
FIGURES = sorted((Path(__file__).parents[2] / "docs" / "figures").glob("*.png"))
POINTS = [(0.1, 0.8), (0.2, 0.9), (0.3, 0.95)]
METHODS = dict.fromkeys(("random", "sensitivity", "uniform"), POINTS)
TOKENS = ["[CLS]", *["word"] * 15, "[SEP]"]
MAPS = {name: torch.rand(2, 4, 17, 17) for name in ("dense", "not re-trained")}
MATRICES = {f"layer.{i}.{kind}": LowRankness(MatrixSize(4, 4), (1.0, 0.5 / (i + 1), 0.0)) for i in range(24) for kind in "qkv"}
LOSSES = [{"loss": 1.0, "divergence": 1 / step, "step": step, "stage": 1} for step in (1, 2)]
DRAWN: dict[str, Callable[[Path], Any]] = {
    "fidelity": lambda path: ranks.draw_fidelity(POINTS, path, (0.9, 0.8), POINTS),
    "ablation": lambda path: ranks.draw_ablation(
        {"full recipe": [0.8, 0.9], "without it": [0.7, 0.8]}, path, "The same SubNets"
    ),
    "trade-off": lambda path: tradeoff.draw_tradeoff([tradeoff.Panel("", "accuracy", METHODS, 0.98)] * 3, path, "title"),
    "low-rankness": lambda path: low_rankness.draw_low_rankness("name", MATRICES, path),
    "attention": lambda path: distillation.draw_attention(MAPS, [(0, head) for head in range(4)], TOKENS, path),
    "training": lambda path: distillation.draw_training(LOSSES, path),
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures that are saved while the test runs."""
    from matplotlib.figure import Figure

    kept: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: (kept.append(figure), Path(file).touch()))
    return kept


def smallest(figure: Any) -> float:
    """Pixels of the smallest text, where the picture is as wide as the page, or as it is if it is narrower."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    width = figure.get_figwidth()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    return min(text.get_fontsize() for text in texts) / 72 * min(DPI, PAGE / width)


@pytest.mark.parametrize("name", DRAWN)
def test_texts_are_large_enough(name: str, drawn: list[Any], tmp_path: Path) -> None:
    DRAWN[name](tmp_path / "figure.png")
    (figure,) = drawn
    assert figure.get_figwidth() <= WIDEST and smallest(figure) >= LEAST


def test_texts_on_figures_of_cost_tables_and_ranks_are_large_enough(
    cost_table: CostTable, drawn: list[Any], tmp_path: Path
) -> None:
    shapes.draw_figure_2(cost_table, "24x24", tmp_path / "2.png")
    shapes.draw_figure_7(cost_table, "24x24", tmp_path / "7.png")
    config = HeatConfig(target_params_ratio=0.5, rank_search="uniform")
    record = HeatCompressor(small_model("bert")).search_ranks(config)
    ranks.draw_rank_map(record, tmp_path / "ranks.png")
    assert len(drawn) == 3
    assert all(figure.get_figwidth() <= WIDEST and smallest(figure) >= LEAST for figure in drawn)


@pytest.mark.parametrize("file", FIGURES, ids=lambda file: file.name)
def test_the_documentations_figures_are_no_wider(file: Path) -> None:
    from matplotlib.image import imread

    assert imread(file).shape[1] <= WIDEST * DPI
