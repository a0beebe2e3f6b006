"""A layer's contraction as a tree: the paper's Fig. 6, as text, as JSON and as a picture whose boxes keep apart."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from heat_hf import TensorSetting, TensorShape
from heat_hf.formats import get_format
from heat_hf.reports.figures.trees import draw_trees, short
from heat_hf.reports.trees import contraction_tree, orders, trees_data, trees_text


def setting(format: str, text: str, rank: Any) -> TensorSetting:
    rows, columns = (tuple(map(int, part.split("x"))) for part in text.split(":"))
    shape = TensorShape(rows, columns)
    return TensorSetting(format, shape, get_format(format).parse_rank(shape, rank))


PAPER = setting("cp", "12x64:768", 280)
SETTINGS = [
    PAPER,
    setting("low_rank", "8:8", 2),
    setting("low_rank", "384:1536", 96),
    setting("pivoted", "384:1536", 96),
    setting("ttm", "8x8x12:8x8x12", (16, 16)),
    setting("tucker", "8x6x8:8x6x8", (4,) * 6),
    setting("monarch", "16x24:16x24", 8),
    setting("cp", "4x4x4x3x4:4x4x4x3x4", 64),
]


def test_the_papers_example() -> None:
    naive, plan = orders(PAPER, 128)
    text, data = trees_text(PAPER, 128), trees_data(PAPER, 128)
    assert (naive.path, naive.macs, plan.macs) == ("left-to-right", 42_608_885_760, 55_265_280)
    assert "optimal: 55,265,280 MACs, 771 times fewer" in text and "128×280" in text
    root = data["orders"]["optimal"]["tree"]
    assert root["extents"] == [128, 12, 64] and root["macs"] == 27_525_120
    assert sorted(part["elements"] for part in root["of"]) == [35_840, 215_040]
    assert "of" not in root["of"][0]["of"][0] and root["of"][0]["of"][0]["name"] == "x"


@pytest.mark.parametrize("own", SETTINGS, ids=str)
def test_a_tree_has_every_operand_once_and_the_macs_of_its_plan(own: TensorSetting) -> None:
    for plan in orders(own, 32):
        nodes = [node for _, node in contraction_tree(plan).walk()]
        assert sum(node.macs for node in nodes if not node.once) == plan.macs
        assert sum(node.macs for node in nodes if node.once) == plan.precomputed_macs
        operands = sorted(node.indices for node in nodes if not node.operands)
        assert len(operands) == 1 + len(own.core_shapes) and len({node.name for node in nodes if not node.operands}) == len(
            operands
        )


def test_what_is_always_run_from_left_to_right_is_shown_once() -> None:
    assert trees_text(setting("pivoted", "384:1536", 96), 128).count("left-to-right") == 1


@pytest.mark.parametrize("own", SETTINGS, ids=str)
def test_no_box_covers_another_and_none_is_cut(own: TensorSetting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: (kept.append(figure), Path(file).touch()))
    draw_trees(own, 128, tmp_path / "tree.png")
    (figure,) = kept
    figure.draw_without_rendering()
    page = figure.bbox
    for axes in figure.axes:
        boxes = [text.get_bbox_patch().get_window_extent() for text in axes.texts]
        assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        for extent in [*boxes, axes.title.get_window_extent(), figure._suptitle.get_window_extent()]:
            assert page.x0 <= extent.x0 and extent.x1 <= page.x1 and page.y0 <= extent.y0 and extent.y1 <= page.y1


def test_counts_are_short() -> None:
    assert [short(count) for count in (7, 215_040, 55_265_280, 42_608_885_760, 2e13)] == [
        "7",
        "215 k",
        "55.3 M",
        "42.6 G",
        "20 T",
    ]
