"""Reports of a cost table: JSON, text, pictures, and the page, whose script runs under node."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pages import Scripts, page_data, run_page

from heat_hf.reports.figures.shapes import draw_figure_2, draw_figure_7, edp_spread, rank_correlation
from heat_hf.reports.shapes import COLOURS, format_colours, page, table_data, table_text
from heat_hf.reports.text import text_table
from heat_hf.search.shapes.search import NO_MAPPING
from heat_hf.search.shapes.table import Candidate, CostTable, SizeInfo

EVIL = "</script><script>alert(1)</script></script <!--<script & "
SPACES = {
    "low_rank": {"shapes": 1, "unpruned_shapes": 1, "unpruned_settings": 8, "dropped": {}},
    "cp": {
        "shapes": 2,
        "unpruned_shapes": 9,
        "unpruned_settings": 1234,
        "dropped": {"degenerate": 3, "not of the highest entropy": 4, NO_MAPPING: 5},
    },
}


def candidate(size: str, format: str, shape: str, rank: int, *values: float) -> Candidate:
    error, parameters, macs, energy, microseconds = values
    return Candidate(size, format, shape, (rank,), error, int(parameters), int(macs), energy, microseconds * 1e-6)


# Of 8x8, cp of rank 4 is beaten by low_rank of rank 2; all others are on the front.
CANDIDATES = (
    candidate("8x8", "low_rank", "8:8", 1, 0.7, 16, 100, 200, 0.2),
    candidate("8x8", "low_rank", "8:8", 2, 0.3, 32, 200, 400, 0.4),
    candidate("8x8", "cp", "2x4:8", 2, 0.5, 28, 300, 300, 0.5),
    candidate("8x8", "cp", "2x4:8", 4, 0.45, 56, 302, 800, 0.9),
    candidate("8x16", "low_rank", "8:16", 2, 0.6, 48, 900, 900, 0.9),
    candidate("8x16", "cp", "8:4x4", 3, 0.4, 48, 700, 800, 0.8),
)


@pytest.fixture
def table() -> CostTable:
    sizes = {
        "8x8": SizeInfo(2, "aa", ("layer.0.query",), 1000.0, 1e-6, SPACES),
        "8x16": SizeInfo(1, "bb", ("layer.0.up",), 2000.0, 2e-6, SPACES),
    }
    return CostTable("some/model", "simba-l", "0123abcd", 16, {"budgets": 8}, sizes, CANDIDATES)


# ---- JSON and text ----


def test_data_has_the_selected_settings_and_survives_json(table: CostTable) -> None:
    data = json.loads(json.dumps(table_data(table)))
    assert (data["model"], data["accelerator"], data["digest"], data["tokens"]) == ("some/model", "simba-l", "0123abcd", 16)
    assert data["options"] == {"budgets": 8}
    assert list(data["sizes"]) == ["8x8", "8x16"]
    small = data["sizes"]["8x8"]
    assert (small["matrices"], small["sampled"]) == (2, ["layer.0.query"])
    assert (small["candidates"], small["front"]) == (4, 3)
    assert small["spaces"] == SPACES
    assert small["dense"] == {"energy_pJ": 1000.0, "seconds": 1e-6, "edp_J_s": pytest.approx(1e-15)}
    assert small["selected"]["low_rank"] == {
        "format": "low_rank", "shape": "8:8", "rank": [2], "error": 0.3, "ratio": 0.5, "macs": 200, "energy_pJ": 400,
        "seconds": pytest.approx(4e-7), "edp_J_s": pytest.approx(1.6e-16), "edp_of_dense": pytest.approx(0.16),
    }  # fmt: skip
    assert small["selected"]["cp"]["rank"] == [2]
    assert small["selected"]["any"] == small["selected"]["low_rank"]
    assert data["sizes"]["8x16"]["selected"]["any"]["shape"] == "8:4x4"


def row(text: str, *cells: str) -> list[str]:
    """Cells of the one table row that begins so."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    (found,) = [cells_ for cells_ in rows if cells_[: len(cells)] == list(cells)]
    return found


def test_text_names_what_was_searched_and_what_is_selected(table: CostTable) -> None:
    text = table_text(table)
    assert "some/model, 16 tokens, simba-l (0123abcd)" in text
    space, selected = text.split("selected settings")
    assert row(space, "8x8", "cp")[2:] == [
        "1,234", "2", f"3 degenerate, 4 not of the highest entropy, 5 {NO_MAPPING}", "2", "1"
    ]  # fmt: skip
    assert row(space, "8x8", "all")[2:] == ["1,242", "3", "", "4", "3"]
    low_rank = ["8:8", "2", "0.3000", "0.5000", "0.00", "0.000", "0.400", "1.6e-10", "0.160"]
    assert row(selected, "8x8", "low_rank")[2:] == low_rank
    assert row(selected, "8x8", "any: low_rank")[2:] == low_rank
    assert row(selected, "8x16", "any: cp")[2:4] == ["8:4x4", "3"]
    assert row(selected, "8x8", "dense")[4:6] == ["0", "1"]


def test_brackets_in_a_name_are_text_not_markup(table: CostTable) -> None:
    assert "[/red]odd[bold]" in table_text(replace(table, model="[/red]odd[bold]"))


def test_brackets_are_text_in_every_part_of_a_table() -> None:
    text = text_table(["[b]"], [[("[/red]cell",)]], "[/i] title")
    assert all(part in text for part in ("[b]", "[/red]cell", "[/i] title"))


def test_formats_have_colours_of_their_own(table: CostTable) -> None:
    assert len(set(COLOURS.values())) == 4
    assert format_colours(table) == {"low_rank": COLOURS["low_rank"], "cp": COLOURS["cp"]}
    other = replace(CANDIDATES[0], format="hadamard")
    colours = format_colours(replace(table, candidates=(*CANDIDATES, other)))
    assert colours["hadamard"] not in COLOURS.values()


# ---- pictures ----


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved while the test runs; they are still written."""
    from matplotlib.figure import Figure

    saved, write = [], Figure.savefig

    def save(figure, *args, **options):
        saved.append(figure)
        return write(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def test_rank_correlation_and_spread_are_those_worked_out_by_hand(table: CostTable) -> None:
    points = table.of("8x8")  # EDPs rank 1, 3, 2, 4; MACs 1, 2, 3, 4; parameters 1, 3, 2, 4
    assert rank_correlation(points, lambda c: c.macs, lambda c: c.edp) == pytest.approx(0.8)
    assert rank_correlation(points, lambda c: c.parameters, lambda c: c.edp) == pytest.approx(1)
    assert math.isnan(rank_correlation(points, lambda c: 1.0, lambda c: c.edp))
    assert edp_spread(points) == pytest.approx(0.72 / 0.15)  # 300 and 302 MACs
    assert edp_spread(points, near=0.001) == 1
    assert edp_spread(points, near=2.1) == pytest.approx(0.72 / 0.04)


def test_figure_2_says_how_well_macs_and_parameters_rank(table: CostTable, tmp_path, figures) -> None:
    from matplotlib.image import imread

    draw_figure_2(table, "8x8", tmp_path / "figure.png")
    image = imread(tmp_path / "figure.png")
    assert image.shape[0] > 500 and image.shape[1] > 1000 and image[..., :3].std() > 0.02
    macs, parameters = figures[0].axes
    assert (macs.get_xscale(), macs.get_yscale()) == ("log", "log")
    assert macs.get_xlabel() == "MACs (rank correlation with EDP 0.800)"
    assert parameters.get_xlabel() == "parameters (rank correlation with EDP 1.000)"
    assert "MACs within 2% of each other: EDPs up to 4.8× apart" in figures[0].get_suptitle()


def labels_and_points(figure, table: CostTable, size: str):
    """Of the top left panel of figure 7: extents of the labels by text, and where points are, in pixels."""
    import numpy as np
    from matplotlib.text import Annotation, Text

    figure.draw_without_rendering()  # annotations stay where they were drawn last: in the file, of another resolution
    axes = figure.axes[0]
    labels = [child for child in axes.get_children() if isinstance(child, Annotation)]
    boxes = {label.get_text(): Text.get_window_extent(label) for label in labels}
    points = [(c.edp / table.sizes[size].dense_edp, c.error) for c in table.of(size)] + [(1.0, 0.0)]
    return boxes, axes.transData.transform(np.array(points))


@pytest.mark.parametrize("size", ["8x8", "8x16"])
def test_figure_7_is_a_picture_with_the_selected_settings(table: CostTable, size: str, tmp_path, figures) -> None:
    from matplotlib.image import imread
    from matplotlib.text import Text

    draw_figure_7(table, size, tmp_path / "figure.png")
    image = imread(tmp_path / "figure.png")
    assert image.shape[0] > 2000 and image.shape[1] > 1000 and image[..., :3].std() > 0.02
    figure = figures[0]
    assert f"some/model, {size}, 16 tokens, simba-l\n{len(table.of(size))} candidates" in figure.get_suptitle()
    boxes, _ = labels_and_points(figure, table, size)
    selected = {"low_rank 8:8, rank 2", "cp 2x4:8, rank 2"} if size == "8x8" else {"low_rank 8:16, rank 2", "cp 8:4x4, rank 3"}
    assert set(boxes) == selected
    texts = [text for axes in figure.axes for text in axes.texts] + [figure._suptitle]
    assert all(figure.bbox.contains(*corner) for text in texts for corner in Text.get_window_extent(text).corners())


def test_figure_7_labels_are_apart_and_over_no_point(table: CostTable, tmp_path, figures) -> None:
    good = replace(CANDIDATES[0], error=0.015)  # cheap and good: in the corner where the labels are
    table = replace(table, candidates=(good, *CANDIDATES[1:]))
    draw_figure_7(table, "8x8", tmp_path / "figure.png")
    boxes, points = labels_and_points(figures[0], table, "8x8")
    first, second = boxes.values()
    assert not first.overlaps(second)
    assert not any(box.contains(*point) for box in (first, second) for point in points)


def test_figure_7_tells_where_the_shapes_went(table: CostTable, tmp_path, figures) -> None:
    draw_figure_7(table, "8x8", tmp_path / "figure.png")
    texts = [text.get_text() for text in figures[0].axes[1].texts]
    assert "cp: 2 of 9 shapes tried" in texts
    notes = (
        "tried: 1 of order 3, 1 without a candidate",
        "dropped: 3 degenerate, 4 not of the highest entropy",
        f"5 settings with {NO_MAPPING}",
    )
    assert "\n".join(notes) in texts


def test_a_dollar_in_a_name_is_no_mathematics(table: CostTable, tmp_path) -> None:
    draw_figure_2(replace(table, model=r"a$\frac$b"), "8x8", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_size_the_table_lacks_is_said_before_anything_is_written(table: CostTable, tmp_path) -> None:
    for draw in (draw_figure_2, draw_figure_7):
        with pytest.raises(ValueError, match="no matrix size '9x9'; it has 8x8, 8x16"):
            draw(table, "9x9", tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


# ---- the page ----


def test_page_holds_every_candidate(table: CostTable) -> None:
    data = page_data(page(table))
    assert (data["model"], data["accelerator"], data["digest"], data["tokens"]) == ("some/model", "simba-l", "0123abcd", 16)
    assert dict(data["formats"]) == format_colours(table)
    found = [
        Candidate(entry["size"], data["formats"][format][0], entry["shapes"][shape], tuple(rank), *rest)
        for entry in data["sizes"]
        for format, shape, rank, *rest, _ in entry["rows"]
    ]
    assert tuple(found) == CANDIDATES
    small, large = data["sizes"]
    assert [entry[-1] for entry in small["rows"]] == [1, 1 + 2 + 4, 1 + 2, 0]  # front, selected of its format, of all
    assert [entry[-1] for entry in large["rows"]] == [2, 1 + 2 + 4]
    assert small["dense"] == {"parameters": 64, "macs": 64 * 16, "energy_pJ": 1000.0, "seconds": 1e-6}


def test_page_needs_nothing_from_elsewhere(table: CostTable) -> None:
    html = page(table)
    assert "http://" not in html and "https://" not in html
    assert not re.search(r"<(link|img|iframe|object)\b|\bsrc=|@import|url\(", html)
    assert "default-src 'none'" in html


def test_page_is_safe_from_names(table: CostTable) -> None:
    evil = replace(table, model=EVIL, accelerator=EVIL, candidates=tuple(replace(c, shape=EVIL) for c in CANDIDATES))
    plain, parsed = Scripts(page(table)), Scripts(page(evil))
    assert len(parsed.scripts) == len(plain.scripts) == 2
    assert not set("<>&") & set(parsed.scripts[0][1])
    assert parsed.other == plain.other and parsed.scripts[1] == plain.scripts[1]
    data = page_data(page(evil))
    assert data["model"] == data["accelerator"] == data["sizes"][0]["shapes"][0] == EVIL


@pytest.fixture
def run(tmp_path: Path) -> Callable[[CostTable, str], dict]:
    """Run JavaScript in a table's page; what it puts into `out` comes back."""
    return lambda table, script: run_page(page(table), script, tmp_path)


def test_pointing_near_a_mark_shows_its_figures(table: CostTable, run) -> None:
    found = run(
        table,
        """
        const best = drawn.find(mark => mark.point.marks & BEST), at = {clientX: best.x + 10 + 6, clientY: best.y + 20 - 6};
        out.places = drawn.map(mark => [mark.point.shape, mark.point.rank[0], mark.x, mark.y]);
        fire("plot", "pointermove", at);
        out.tip = text("tip"); out.shown = !ids.get("tip").hidden;
        fire("plot", "pointermove", {clientX: at.clientX, clientY: at.clientY - 30});
        out.away = ids.get("tip").hidden;
        fire("plot", "keydown", {key: "End"});
        out.last = text("tip"); out.spoken = text("spoken");
        fire("plot", "keydown", {key: "Escape"});
        out.closed = ids.get("tip").hidden;
        """,
    )
    assert found["shown"] and found["away"] and found["closed"]
    expected = {"error": "0.3", "ratio": "0.5", "parameters": "32", "MACs": "200", "EDP / dense": "0.16"}
    cells = re.split(r"\|", found["tip"])
    assert cells[0] == "low_rank 8:8, rank 2"
    assert expected.items() <= dict(zip(cells[1::2], cells[2::2], strict=False)).items()
    assert "selected of all formats; on the front" in found["tip"]
    assert found["last"].startswith("dense layer 8x8")  # the farthest to the right of what is emphasized
    assert "EDP / dense 1" in found["spoken"]
    assert len(found["places"]) == 5  # with the dense layer
    place = {(shape, rank): (x, y) for shape, rank, x, y in found["places"]}
    assert place["8:8", 1][0] < place["2x4:8", 2][0] < place["8:8", 2][0] < place["2x4:8", 4][0]  # EDP grows to the right
    assert place["8:8", 1][1] < place["2x4:8", 2][1] < place["2x4:8", 4][1] < place["8:8", 2][1]  # error upwards


def test_controls_choose_what_is_shown(table: CostTable, run) -> None:
    found = run(
        table,
        """
        const formats = () => [...new Set(drawn.map(mark => mark.point.format))].sort();
        const listed = () => ids.get("body").children.map(row => row.children.slice(0, 4).map(cell => cell.text).join(" "));
        out.start = [drawn.length, ids.get("x").value, ids.get("y").value, ids.get("logx").checked, listed()];
        ids.get("head").children[3].firstChild.listeners.click();
        out.turned = listed();
        set("best", "checked", true); out.best = drawn.length;
        set("format0", "checked", false); out.cp = [formats(), listed()];
        set("logy", "checked", true); out.log = [formats(), text("note")];
        set("format0", "checked", true); set("size", "value", "1"); out.other = [formats(), listed()];
        set("best", "checked", false); out.all = [formats(), listed()];
        """,
    )
    rows = ["low_rank 8:8 2 0.3", "cp 2x4:8 2 0.5", "low_rank 8:8 1 0.7"]
    assert found["start"] == [5, "edp", "error", True, rows]
    assert found["turned"] == rows[::-1]
    assert found["best"] == 4
    assert found["cp"] == [["cp", "dense layer"], ["cp 2x4:8 2 0.5"]]
    assert found["log"] == [["cp"], "1 candidates shown. The dense layer has no error and is not on a log axis."]
    assert found["other"] == [["cp"], ["cp 8:4x4 3 0.4"]]
    assert found["all"] == [["cp", "low_rank"], ["cp 8:4x4 3 0.4"]]


def test_names_are_shown_as_text(table: CostTable, run) -> None:
    found = run(replace(table, model=EVIL), "out.model = text('model'); out.title = document.title;")
    assert found == {"model": f"Cost table of {EVIL}", "title": f"Cost table of {EVIL}"}


def test_ticks_are_round_and_few(table: CostTable, run) -> None:
    found = run(
        table,
        """
        out.ticks = [[0.01, 80], [0.037, 300], [1, 3], [0.2, 1], [1e-3, 1e9], [2.31, 2.34]].map(([a, b]) => logTicks(a, b, 8));
        out.linear = [linearTicks(0, 1, 8), linearTicks(0, 589824, 8)];
        out.texts = [[2500, "macs"], [5e7, "macs"], [0.01, "edp"], [1e-6, "edp"], [200, "energy"], [0.3, "error"]].map(
          ([value, name]) => tickText(value, MEASURES[name]));
        """,
    )
    assert found["ticks"][0] == [0.01, 0.1, 1, 10]
    assert found["ticks"][1] == [0.1, 1, 10, 100]
    assert all(4 <= len(ticks) <= 13 for ticks in found["ticks"])
    assert found["linear"] == [[0, 0.2, 0.4, 0.6, 0.8, 1], [0, 1e5, 2e5, 3e5, 4e5, 5e5]]
    assert found["texts"] == ["2.5 k", "50 M", "0.01", "1e-6", "200", "0.3"]
