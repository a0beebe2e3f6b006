"""The page of a compressed model: its figures, its pictures under node, and in a headless Chromium."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from pages import GOOD, Scripts, in_chromium, page_data, run_page
from students import pair, train

from heat_hf import CompressionReport, HeatCompressor, HeatConfig
from heat_hf.cli import main
from heat_hf.hardware import cost_model
from heat_hf.reports import model_page
from heat_hf.reports.card import Evaluation
from heat_hf.reports.model_page import report_page

EVIL = "</script><script>alert(1)</script><b>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one dense model, the first of them distilled and scored."""
    place = tmp_path_factory.mktemp("models")
    _, teacher = pair()
    for name, ratio in (("small", 0.4), ("large", 0.8)):
        compressor = HeatCompressor(copy.deepcopy(teacher))
        compressor.compress(HeatConfig(target_params_ratio=ratio), save_directory=place / f"{name}-untrained")
        student = transformers.AutoModelForSequenceClassification.from_pretrained(place / f"{name}-untrained")
        trainer = train(place / "run", student, teacher, max_steps=4)
        score = Evaluation("text-classification", "SST-2", "validation", 872, "accuracy", 0.85 + ratio / 20, 0.9)
        trainer.save(place / name, evaluations=[score])
    return place


def test_the_page_has_the_figures_of_the_report(folder: Path) -> None:
    report = CompressionReport.load(folder / "small")
    data = page_data(report_page(folder / "small", [folder / "large"]))
    assert (data["name"], data["accelerator"], data["digest"]) == ("small", "simba-l", report.accelerator_digest)
    totals = {own["label"]: (own["dense"], own["now"]) for own in data["totals"]}
    assert totals["parameters of the model"] == (report.model_parameters, report.compressed_model_parameters)
    assert report.hardware is not None
    assert totals["EDP of the matrices"] == pytest.approx((report.hardware.dense.edp * 1e6, report.hardware.now.edp * 1e6))
    assert [own["name"] for own in data["tensors"]] == [tensor.name for tensor in report.tensors]
    assert {own["block"] for own in data["tensors"]} == {"0", "1"}


def test_the_page_has_scores_training_and_what_stands_beside(folder: Path) -> None:
    data = page_data(report_page(folder / "small", [folder / "large"]))
    assert data["scores"] == [{"label": "SST-2 validation, accuracy", "now": 0.87, "dense": 0.9}]
    assert [own["name"] for own in data["models"]] == ["small", "large"]
    assert data["models"][1]["scores"] == {"SST-2 validation, accuracy": 0.89}
    assert set(data["training"]["parts"]) == {"attention", "hidden", "divergence", "cross_entropy"}
    assert data["training"]["stages"] == [3] and data["training"]["steps"] == 4


def test_energies_by_level_add_up_to_the_report(folder: Path) -> None:
    cost = CompressionReport.load(folder / "small").hardware
    levels = page_data(report_page(folder / "small"))["levels"]
    assert cost is not None
    assert sum(levels["energy"]["now"]) == pytest.approx(cost.now.energy_pJ * 1e-6)
    assert sum(levels["energy"]["dense"]) == pytest.approx(cost.dense.energy_pJ * 1e-6)
    assert sum(levels["time"]["now"]) == pytest.approx(cost.now.seconds * 1e6)


def test_without_accelerator_training_or_scores(bert: Any, tmp_path: Path) -> None:
    HeatCompressor(bert).compress(HeatConfig(target_params_ratio=0.5, accelerator=None), save_directory=tmp_path / "plain")
    html = report_page(tmp_path / "plain")
    data = page_data(html)
    assert data["levels"] is None and data["training"] is None and data["scores"] == []
    found = run_page(html, 'out.levels = text("levelsNote"); out.curves = text("curvesNote");', tmp_path)
    assert found == {
        "levels": "The model was compressed without an accelerator.",
        "curves": "No record of a distillation is saved with this model.",
    }


def test_an_accelerator_that_has_changed_is_not_taken_for_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_page, "cost_model", lambda _name: cost_model("edge-npu"))
    assert page_data(report_page(folder / "small"))["levels"] is None


def test_the_page_needs_nothing_from_elsewhere_and_is_safe_from_names(folder: Path, tmp_path: Path) -> None:
    html = report_page(folder / "small")
    assert "http://" not in html and "https://" not in html and "default-src 'none'" in html
    assert not re.search(r"<(link|img|iframe|object)\b|\bsrc=|@import|url\(", html)
    shutil.copytree(folder / "small", tmp_path / "evil")
    report = tmp_path / "evil" / "heat_report.json"
    report.write_text(report.read_text().replace("bert.encoder.layer.0.attention.self.query", EVIL.replace("/", "\\/")))
    parsed = Scripts(report_page(tmp_path / "evil"))
    assert len(parsed.scripts) == 2 and not set("<>&") & set(parsed.scripts[0][1])


def test_the_pictures_follow_the_choices(folder: Path, tmp_path: Path) -> None:
    script = """
      const count = (element, name) => (element.name === name) + element.children.reduce((n, c) => n + count(c, name), 0);
      out.rows = ids.get("kinds").children.length;
      out.cells = ids.get("kinds").children[0].children.length;
      out.models = count(ids.get("pareto"), "circle");
      out.measures = ids.get("measure").children.map(c => c.textContent);
      set("what", "value", "tensors");
      out.tensors = count(ids.get("pareto"), "circle");
      out.note = text("paretoNote");
      out.curves = [count(ids.get("curves"), "path"), count(ids.get("curves"), "circle")];
      set("measure", "value", "error");
      out.first = ids.get("kinds").children[0].children[1].textContent;
      out.said = ids.get("kinds").children[0].children[1].attributes.title;
    """
    found = run_page(report_page(folder / "small", [folder / "large"]), script, tmp_path)
    assert (found["rows"], found["cells"], found["models"], found["tensors"]) == (6, 3, 2, 12)
    errors = ["weight error, before training"]
    assert found["measures"] == ["rank", "parameters / dense", "EDP / dense", "MACs / dense", *errors]
    assert found["note"].endswith("of 12.")
    assert found["curves"] == [1 + 4, 2 + 2 + 2 + 2], "axes and four parts, each of two steps"
    first = CompressionReport.load(folder / "small").tensors[0]
    assert float(found["first"]) == pytest.approx(first.relative_error, rel=1e-3)
    assert found["said"].startswith(f"{first.name} (24×24)\nlow_rank 24:24, rank {first.setting.rank[0]}\n")


def test_models_that_cannot_be_compared(folder: Path, bert: Any, tmp_path: Path) -> None:
    HeatCompressor(bert).compress(HeatConfig(target_params_ratio=0.5, accelerator=None), save_directory=tmp_path / "plain")
    with pytest.raises(ValueError, match="plain is costed for another accelerator: None, not simba-l"):
        report_page(folder / "small", [tmp_path / "plain"])
    report = CompressionReport.load(tmp_path / "plain")
    dataclasses.replace(report, tensors=report.tensors[:3]).save(tmp_path / "plain")
    with pytest.raises(ValueError, match="plain has other matrices"):
        report_page(folder / "small", [tmp_path / "plain"])


def test_the_command_writes_the_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, large, out = str(folder / "small"), str(folder / "large"), tmp_path / "out"
    assert main(["report", small, "--beside", large, "--output", str(out)]) == 0
    assert "12 matrices, before" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {"report.html", "figure-12.png"}
    assert main(["report", small, "--output", str(out)]) == 2 and "pass overwrite" in capsys.readouterr().err
    assert main(["report", small, "--beside", large]) == 2 and "--beside puts others" in capsys.readouterr().err
    missing = str(tmp_path / "nothing")
    assert main(["report", small, "--beside", missing, "--output", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


def test_a_training_without_logged_losses_is_still_said(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "small", tmp_path / "quiet")
    state = tmp_path / "quiet" / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "log_history": [{"train_loss": 1.0, "step": 4}]}))
    found = run_page(report_page(tmp_path / "quiet"), 'out.curves = text("curvesNote");', tmp_path)
    assert found == {"curves": "Distilled in 4 steps; its losses were not logged."}


def test_errors_of_a_distilled_model_are_those_before_training(folder: Path, tmp_path: Path) -> None:
    texts = ["one two three", "four five"] * 12
    both = {}
    for name, rows in (("trained", folder / "small"), ("not trained", folder / "small-untrained")):
        shutil.copytree(rows, tmp_path / name)
        report = tmp_path / name / "heat_report.json"
        kept = CompressionReport.from_dict(json.loads(report.read_text()))
        tensors = tuple(dataclasses.replace(tensor, output_error=0.25) for tensor in kept.tensors)
        report.write_text(dataclasses.replace(kept, tensors=tensors, calibration_rows=len(texts)).to_json())
        (tmp_path / name / "README.md").unlink()  # no scores: the view shows errors
        both[name] = tmp_path / name
    script = """
      const titles = element => element.children.flatMap(c => c.name === "title" ? [c.textContent] : titles(c));
      out.heads = ids.get("head").children.map(c => c.textContent);
      out.up = ids.get("y").children.map(c => c.textContent);
      out.marks = titles(ids.get("pareto")).map(text => text.split("\\n").at(-1));
    """
    found = run_page(report_page(both["not trained"], [both["trained"]]), script, tmp_path)
    assert found["heads"][-2:] == ["weight error", "output error"]
    assert found["up"] == ["output error, before training"]
    measured = "output error{}: 0.25"
    assert found["marks"] == [measured.format(""), measured.format(", before training")]
    found = run_page(report_page(both["trained"]), script, tmp_path)
    assert found["heads"][-2:] == ["weight error, before training", "output error, before training"]
    assert all(label.endswith(", before training") for label in found["up"])


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_chromium(minilm: str, tmp_path: Path, width: int, dark: bool) -> None:
    """The page of the real MiniLM renders without an error; nothing is cut, and all is seen, by day and by night."""
    compressor = HeatCompressor.from_pretrained(minilm)
    compressor.compress(HeatConfig(target_edp_ratio=0.3), ["A man is playing a guitar.", "Nobody sings."] * 8, tmp_path / "m")
    history = [{"loss": 1.0, "divergence": 1 / step, "step": step, "stage": 1} for step in (1, 2)]
    (tmp_path / "m" / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": history}))
    found = in_chromium(report_page(tmp_path / "m"), tmp_path, width, dark)
    assert found == {**GOOD, "dark": dark, "marks": 38, "cells": 36, "bars": 28, "title": "m, compressed"}
