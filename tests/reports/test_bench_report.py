"""What a bench found: which to use, as text, as data, and as a picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from heat_hf.reports.bench import BenchReport, Entry, Pass, Time, short_names
from heat_hf.reports.figures.bench import draw_bench

SMALL, LARGE = Pass(1, 32), Pass(8, 128)


def entry(model: str, runtime: str, precision: str, small: float, large: float, score: float | None = None) -> Entry:
    times = {SMALL: Time(0.01 * small, 0.9 * small, small, 1.1 * small), LARGE: Time(0.1 * large, large, large, large)}
    return Entry(model, runtime, precision, 2**20, times, score)


def report(scored: bool = True, **options: Any) -> BenchReport:
    entries = [
        entry("a/dense", "torch", "float32", 1.0, 1.0, 0.82),
        entry("a/dense", "onnxruntime", "int8", 0.3, 0.6, 0.812),
        entry("a/half", "torch", "int8", 0.5, 0.5, 0.813),
        entry("a/half", "openvino", "float32", 0.2, 0.2, 0.79),
    ]
    if not scored:
        entries = [Entry(e.model, e.runtime, e.precision, e.bytes, e.times) for e in entries]
    return BenchReport(entries, "spearman" if scored else "", **options)


def test_the_fastest_within_reach_of_the_best_score_is_recommended() -> None:
    found = report()
    assert [found.best(one).way for one in found.passes] == ["onnxruntime int8", "torch int8"]
    assert [report(within=0.001).best(one).way for one in found.passes] == ["torch float32"] * 2
    assert [report(within=0.1).best(one).way for one in found.passes] == ["openvino float32"] * 2
    assert [report(scored=False).best(one).way for one in found.passes] == ["openvino float32"] * 2


def test_scores_below_zero_have_a_best_one_too() -> None:
    entries = [entry("m", "torch", "float32", 1, 1, -0.5), entry("m", "onnxruntime", "float32", 0.5, 0.5, -0.501)]
    assert BenchReport(entries, "spearman").best(SMALL).runtime == "onnxruntime"
    assert BenchReport(entries, "spearman", within=0.001).best(SMALL).runtime == "torch"


def test_advice_names_the_command() -> None:
    first, second = report().advice()
    assert first == (
        "for 1 × 32: dense in onnxruntime int8, 0.30 of the time at spearman 0.8120: "
        "heat-hf export a/dense --runtime onnxruntime --int8 --output DIR"
    )
    assert second.startswith("for 8 × 128: half in torch int8, 0.50 of the time") and "quantize_dynamic" in second
    (both,) = report(scored=False).advice()
    assert both == (
        "for 1 × 32, 8 × 128: half in openvino float32, 0.20, 0.20 of the time: "
        "heat-hf export a/half --runtime openvino --output DIR"
    )


def test_several_numbers_of_threads_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, both = Pass(8, 128, 1), Pass(8, 128, 2)
    times = {alone: Time(0.2, 1.0, 1.0, 1.0), both: Time(0.1, 1.0, 1.0, 1.0)}
    other = {alone: Time(0.1, 0.5, 0.5, 0.5), both: Time(0.2, 2.0, 2.0, 2.0)}
    entries = [Entry("m", "torch", "float32", 1, times), Entry("m", "onnxruntime", "float32", 1, other)]
    found = BenchReport(entries)
    assert [line.partition(":")[0] for line in found.advice()] == ["for 8 × 128 with 1 thread", "for 8 × 128 with 2 threads"]
    assert "it took 200 ms at 8 × 128 with 1 thread, 100 ms at 8 × 128 with 2 threads" in str(found)
    assert [(own["threads"], own["runtime"]) for own in found.to_dict()["use"]] == [(1, "onnxruntime"), (2, "torch")]
    figures: list[Figure] = []
    monkeypatch.setattr("heat_hf.reports.figures.bench.save_figure", lambda figure, path: figures.append(figure))
    draw_bench(found, tmp_path / "bench.png")
    assert [axes.get_title() for axes in figures[0].axes] == ["8 × 128 tokens with 1 thread", "8 × 128 tokens with 2 threads"]


def test_commands() -> None:
    assert entry("m", "torch", "float32", 1, 1).command() == "as it is"
    assert "--int8 --calibration-file FILE" in entry("m", "openvino", "int8", 1, 1).command()


def test_text_and_data() -> None:
    found = report(left_out=["openvino int8: needs --calibration-file"], about={"threads": 2})
    text = str(found)
    assert "left out: openvino int8: needs --calibration-file" in text
    assert "0.30 (0.27–0.33)" in text and "0.8120" in text
    assert "it took 10 ms at 1 × 32, 100 ms at 8 × 128" in text
    data = json.loads(json.dumps(found.to_dict()))
    assert data["threads"] == 2 and data["metric"] == "spearman"
    assert data["entries"][1]["times"][0] == {
        "batch_size": 1, "sequence_length": 32, "threads": 1,
        "seconds": 0.003, "lower": 0.27, "ratio": 0.3, "upper": pytest.approx(0.33),
    }  # fmt: skip
    assert [(own["sequence_length"], own["runtime"]) for own in data["use"]] == [(32, "onnxruntime"), (128, "torch")]
    assert report(scored=False).to_dict()["metric"] is None
    assert "spearman" not in str(report(scored=False)) and "memory" not in text
    told = str(BenchReport([replace(own, memory=3 * 2**20) for own in report().entries], "spearman"))
    assert "memory, MiB" in told and " 3 " in told


def test_a_narrow_terminal_gets_medians_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "0.30 (0.27–0.33)" in str(report())
    monkeypatch.setattr("heat_hf.reports.bench.line_width", lambda: 72)
    narrow = str(report())
    assert "0.30" in narrow and "0.30 (0.27–0.33)" not in narrow
    assert len(narrow.splitlines()[0]) <= 72


def test_names_are_short_where_that_tells_them_apart() -> None:
    assert short_names(["a/x", "a/y"]) == {"a/x": "x", "a/y": "y"}
    assert short_names(["a/x", "b/x"]) == {"a/x": "a/x", "b/x": "b/x"}
    assert short_names(["."]) == {".": "."}


@pytest.mark.parametrize("scored", [True, False])
def test_the_picture(scored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("heat_hf.reports.figures.bench.save_figure", lambda figure, path: figures.append(figure))
    draw_bench(report(scored), tmp_path / "bench.png")
    (figure,) = figures
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["1 × 32 tokens", "8 × 128 tokens"]
    if scored:
        names = [text.get_text() for text in panels[1].texts]
        assert names == [
            "openvino float32",
            "torch int8",
            "torch float32",
        ]  # ONNX Runtime is slower and worse than PyTorch in int8
        assert [text.get_text() for text in figure.legends[0].texts][:2] == ["dense", "half"]
    else:
        assert [bar.get_width() for bar in panels[0].patches] == [1.0, 0.3, 0.5, 0.2]


def test_the_picture_is_written(tmp_path: Path) -> None:
    draw_bench(report(), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
