"""The page of a search for ranks: its figures, its pictures under node, in a headless Chromium, and what stands beside it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from conftest import small_model
from pages import GOOD, Scripts, in_chromium, page_data, run_page

from heat_hf import CompressionReport, HeatCompressor, HeatConfig
from heat_hf.cli import main
from heat_hf.reports.card import Evaluation, Origin, model_card
from heat_hf.reports.figures.tradeoff import DIVERGENCE, panels_of
from heat_hf.reports.networks import Network, network_of, networks_of, require_of_search, require_same_search, retrained_pairs
from heat_hf.reports.rank_page import rank_page
from heat_hf.reports.ranks import RankRecord

EVIL = "</script><script>alert(1)</script><b>"
SUBNETS = [(0.2, 0.7), (0.4, 0.75), (0.6, 0.72), (0.8, 0.9)]


@pytest.fixture(scope="module")
def uniform() -> RankRecord:
    """Of a search that predicts nothing."""
    return HeatCompressor(small_model("bert")).search_ranks(
        HeatConfig(target_params_ratio=[0.4, 0.5, 0.7], rank_search="uniform", sequence_length=16)
    )


@pytest.fixture(scope="module")
def supernet(uniform: RankRecord) -> RankRecord:
    """The same networks as if a SuperNet's search had found them."""
    found = [
        dataclasses.replace(v, method="supernet", predicted_accuracy=0.7 + place / 10, expected_divergence=None)
        for place, v in enumerate(uniform.variants)
    ]
    fidelity = {
        "spearman": 0.9, "kendall": 0.8, "networks": 3, "measured": [0.7, 0.8, 0.9], "predicted": [0.71, 0.79, 0.85],
        "subnets": SUBNETS,
    }  # fmt: skip
    return dataclasses.replace(uniform, method="supernet", variants=tuple(found), fidelity=fidelity)


@pytest.fixture(scope="module")
def made(uniform: RankRecord, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of all its networks, with scores."""
    folders = []
    for place, variant in enumerate(uniform.variants):
        compressor, folder = HeatCompressor(small_model("bert")), tmp_path_factory.mktemp("made") / variant.name
        config = HeatConfig(target_params_ratio=0.5, sequence_length=16)
        report = compressor.compress(config, variant=variant, save_directory=folder)
        score = Evaluation("text-classification", "SST-2", "validation", 872, "accuracy", 0.8 + place / 100, 0.9)
        model_card(report, Origin(variant.name), [score]).save(folder / "README.md")
        folders.append(folder)
    return folders


def network(folder: Path) -> Network:
    return network_of(folder, CompressionReport.load(folder))


def test_the_page_has_the_networks_and_their_ranks(uniform: RankRecord) -> None:
    data = page_data(rank_page(uniform))
    assert [own["params"] for own in data["variants"]] == [v.params_ratio for v in uniform.variants]
    assert len(data["tensors"]) == 12 and {own["block"] for own in data["tensors"]} == {"0", "1"}
    first = next(iter(uniform.variants[0].settings.values()))
    assert first is not None and data["tensors"][0]["settings"][0]["rank"] == str(first.rank[0])
    assert data["fidelity"] is None and data["subnets"] == []


def test_the_pictures_follow_the_choices(supernet: RankRecord, made: list[Path], tmp_path: Path) -> None:
    script = """
      const count = (element, name) => (element.name === name) + element.children.reduce((n, c) => n + count(c, name), 0);
      const state = () => [count(ids.get("pareto"), "circle"), text("paretoNote"), text("paretoKey")];
      out.up = ids.get("y").children.map(c => c.textContent);
      out.cores = state();
      set("y", "value", "SST-2 validation, accuracy");
      out.scores = state();
      out.pairs = [count(ids.get("fidelity"), "circle"), text("fidelityNote")];
      const first = () => ids.get("kinds").children[0].children[1];
      out.first = first().textContent;
      set("variant", "value", "2");
      set("measure", "value", "params");
      out.share = [first().textContent, first().attributes.title];
      out.rows = ids.get("body").children.length;
    """
    found = run_page(rank_page(supernet, [network(folder) for folder in made]), script, tmp_path)
    assert found["up"] == ["accuracy with the SuperNet's cores", "SST-2 validation, accuracy"]
    assert found["cores"][0] == len(SUBNETS) + 3 and found["cores"][2] == "|supernet, found||4 SubNets, measured"
    assert found["scores"][0] == 3 and "3 of 3. Better is up" in found["scores"][1]
    assert found["pairs"] == [3, "Rank correlations: Spearman 0.900, Kendall 0.800."]
    first, last = (next(iter(supernet.variants[place].settings.values())) for place in (0, 2))
    assert first is not None and found["first"] == str(first.rank[0])
    assert last is not None and float(found["share"][0]) == pytest.approx(last.ratio, rel=1e-3)
    assert f"rank {last.rank[0]}" in found["share"][1] and found["rows"] == 12


def test_what_is_not_known_is_said(uniform: RankRecord, tmp_path: Path) -> None:
    found = run_page(rank_page(uniform), 'out.a = text("paretoNote"); out.b = text("fidelityNote");', tmp_path)
    assert found["a"] == "Neither accuracies nor divergences of these networks are known."
    assert found["b"].startswith("Ranks by uniform need no predicted accuracies.")


def test_the_page_needs_nothing_from_elsewhere_and_is_safe_from_names(uniform: RankRecord) -> None:
    html = rank_page(dataclasses.replace(uniform, model=EVIL))
    assert "http://" not in html and "https://" not in html and "default-src 'none'" in html
    assert not re.search(r"<(link|img|iframe|object)\b|\bsrc=|@import|url\(", html)
    assert len(Scripts(html).scripts) == 2 and not set("<>&") & set(Scripts(html).scripts[0][1])


def test_panels_are_of_scores_divergences_and_subnets(supernet: RankRecord, uniform: RankRecord, made: list[Path]) -> None:
    networks = [network(folder) for folder in made]
    (scores,) = panels_of(networks)
    assert (scores.title, scores.label, scores.dense) == ("SST-2 validation, accuracy", "accuracy", 0.9)
    assert [score for _, score in scores.methods["uniform, made"]] == [0.8, 0.81, 0.82]
    (subnets,) = panels_of(networks_of(supernet), SUBNETS)
    assert set(subnets.methods) == {"random SubNets, measured", "supernet, found"}
    diverging = [dataclasses.replace(own, divergence=0.1) for own in networks_of(uniform)]
    assert [panel.label for panel in panels_of(diverging)] == [DIVERGENCE]
    assert panels_of(networks[:1]) == [] and panels_of(networks_of(uniform)) == []


def test_networks_that_were_made_are_known_again(supernet: RankRecord, made: list[Path]) -> None:
    networks = [network(folder) for folder in made]
    expected = [pytest.approx(pair) for pair in ((0.8, 0.7), (0.81, 0.8), (0.82, 0.9))]
    assert retrained_pairs(supernet, networks) == expected
    assert retrained_pairs(supernet, networks[:2]) == [], "a correlation of two says nothing"


def test_what_cannot_be_compared(uniform: RankRecord, made: list[Path]) -> None:
    other = dataclasses.replace(uniform, key={**uniform.key, "weights": "other"})
    with pytest.raises(ValueError, match=r"r\.json is of another dense model: other, not"):
        require_same_search(uniform, other, "r.json")
    report = CompressionReport.load(made[0])
    with pytest.raises(ValueError, match="m is costed for another number of tokens: 17, not 16"):
        require_of_search(uniform, dataclasses.replace(report, tokens=17), "m")
    with pytest.raises(ValueError, match="m has 11 matrices, the record 12"):
        require_of_search(uniform, dataclasses.replace(report, tensors=report.tensors[1:]), "m")


def test_the_command_writes_page_and_figures(
    supernet: RankRecord, uniform: RankRecord, made: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = tmp_path / "own.json", tmp_path / "other.json"
    supernet.save(own)
    uniform.save(other)
    beside = ["--beside", str(other), *map(str, made)]
    assert main(["report", str(own), *beside, "--output", str(tmp_path / "out")]) == 0
    names = {"ranks.html", "ranks.png", "figure-9.png", "figure-12.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    assert len(page_data((tmp_path / "out" / "ranks.html").read_text())["networks"]) == 9
    assert main(["report", str(other), "--figures", "9", "--output", str(tmp_path / "no")]) == 2
    assert "it needs what a SuperNet's search found: heat-hf search ranks" in capsys.readouterr().err
    assert main(["report", str(other), *beside]) == 2 and "--beside puts others" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "change",
    [{"measured": [0.7]}, {"predicted": None}, {"subnets": [[0.1, "x"]]}, {"subnets": [0.1]}, {"spearman": None}],
    ids=str,
)
def test_damaged_figures_are_refused(supernet: RankRecord, change: dict, tmp_path: Path) -> None:
    file = tmp_path / "ranks.json"
    dataclasses.replace(supernet, fidelity={**(supernet.fidelity or {}), **change}).save(file)
    with pytest.raises(ValueError, match=r"ranks\.json"):
        RankRecord.load(file)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_chromium(supernet: RankRecord, tmp_path: Path, width: int, dark: bool) -> None:
    found = in_chromium(rank_page(supernet), tmp_path, width, dark)
    assert found == {**GOOD, "dark": dark, "marks": 7 + 3, "cells": 12, "bars": 0, "title": f"Ranks of {supernet.model}"}
