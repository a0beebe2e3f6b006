"""Reports of a cost model that knows no energies: times wherever others have EDPs, and no EDP anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import small_model, token_ids
from pages import page_data, run_page

from heat_hf import Cost, CostModel, Gemm, HeatCompressor, HeatConfig, RankRecord
from heat_hf.formats.plan import ContractionPlan
from heat_hf.reports.card import Evaluation, Origin, model_card, saved_files
from heat_hf.reports.figures.ranks import draw_rank_map
from heat_hf.reports.model_page import report_page
from recipes.evidence import result_row

SCORE = Evaluation("text-classification", "SST-2", "validation", 872, "accuracy", 0.9, 0.92)
BATCHES = [{"input_ids": token_ids(24, 6)}]


class Times(CostModel):
    """A nanosecond for a thousand multiply-accumulates, and as much for every product."""

    name, digest, units = "times", "abc", ()

    def gemm(self, gemm: Gemm) -> Cost:
        return Cost(gemm.macs * 1e-12 + 1e-9)

    def plan(self, plan: ContractionPlan) -> Cost:
        return Cost.total([Cost(step.macs * 1e-12 + 1e-9) for step in plan.steps])


@pytest.fixture(scope="module")
def compressor(tmp_path_factory: pytest.TempPathFactory) -> HeatCompressor:
    made = HeatCompressor(small_model("bert"))
    made.compress(budget(), BATCHES, tmp_path_factory.mktemp("times") / "model", cost_model=Times())
    return made


def budget() -> HeatConfig:
    """A quarter less than the dense layers take."""
    dense = HeatCompressor(small_model("bert")).plan(HeatConfig(rank=4, sequence_length=16), cost_model=Times()).hardware
    assert dense is not None
    return HeatConfig(target_latency=0.75 * dense.dense.seconds, rank_search="sensitivity", sequence_length=16)


def test_the_report(compressor: HeatCompressor) -> None:
    text = str(compressor.report)
    assert "time of the matrices on times (digest abc): " in text and "EDP" not in text


def test_the_card(compressor: HeatCompressor, tmp_path: Path) -> None:
    report = compressor.report
    assert report is not None and report.hardware is not None
    card = model_card(report, Origin("small-heat", "bert"), [SCORE])
    text, cost = str(card), report.hardware
    assert "EDP" not in text and "energy-delay" not in text
    assert f"{1 / cost.ratio:.2f} times less time on times." in text
    assert "as the cost model `times` (digest `abc`) gives it; energies are not known" in text
    assert "| parameters | time | error |" in text and "Time: of the\nfactorized layer" in text
    results = {result.metric_name: (result.metric_type, result.metric_value) for result in card.data.eval_results}
    assert results["time on times, 16 tokens, µs"] == ("latency", pytest.approx(cost.now.seconds * 1e6, rel=1e-5))
    assert results["time of the dense model on times, 16 tokens, µs"][1] == pytest.approx(cost.dense.seconds * 1e6, rel=1e-5)


def test_the_page(compressor: HeatCompressor, tmp_path: Path) -> None:
    report = compressor.report
    assert report is not None
    for name, content in saved_files(report, model_card(report, Origin("small-heat", "bert"), [SCORE])).items():
        (tmp_path / name).write_bytes(content)
    page = report_page(tmp_path)
    data = page_data(page)
    assert (data["measure"], data["levels"]) == ("time", None)
    assert [score["label"] for score in data["scores"]] == ["SST-2 validation, accuracy"], "times are no scores"
    assert [total["label"] for total in data["totals"]][-1] == "time of the matrices"
    ids = ("about", "measure", "x", "head", "levelsNote")
    shown = str(run_page(page, f"for (const id of {list(ids)}) out[id] = byId(id).textContent;", tmp_path))
    assert "Time on times (abc)" in shown and "time / that of the dense matrix" in shown and "EDP" not in shown


def test_the_record_and_its_picture(tmp_path: Path) -> None:
    record = HeatCompressor(small_model("bert")).search_ranks(budget(), BATCHES, tmp_path / "r.json", cost_model=Times())
    assert record.variants[0].measure == "time" and "EDP" not in str(record)
    assert RankRecord.load(tmp_path / "r.json") == record
    draw_rank_map(record, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 0


def test_a_record_with_energies_is_saved_as_it_was() -> None:
    record = HeatCompressor(small_model("bert")).search_ranks(HeatConfig(target_edp_ratio=0.6, sequence_length=16))
    assert "measure" not in record.to_dict()["variants"][0] and " EDP " in str(record)


def test_a_row_of_results(compressor: HeatCompressor) -> None:
    assert compressor.report is not None
    row = result_row(compressor.report, "text-classification", 0.9, 0.92)
    assert (row["edp_uJs"], row["edp_gain"], row["accelerator"]) == (None, None, "times")
