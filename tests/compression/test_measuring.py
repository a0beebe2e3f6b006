"""What a search expects and what is measured in the end are in plan, report and JSON."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from conftest import small_model, token_ids

from heat_hf import CompressionReport, HeatCompressor, HeatConfig
from heat_hf.compression.measuring import WITHIN
from heat_hf.compression.refinement import held_out
from heat_hf.encoders.batches import sequences
from heat_hf.evaluation.quality import Quality
from heat_hf.reports.fidelity import Fidelity

BATCHES = [{"input_ids": rows} for rows in token_ids(48, 7).split(4)]
CONFIG = HeatConfig(rank_search="sensitivity", target_edp_ratio=0.5, sequence_length=16, refine_steps=2)


def test_the_finished_model_is_measured_on_rows_that_it_did_not_learn_from(tmp_path: Path) -> None:
    dense = small_model("bert")
    compressor = HeatCompressor(copy.deepcopy(dense))
    report = compressor.compress(CONFIG, BATCHES, tmp_path / "model")
    rows = [BATCHES[number] for number in held_out(len(BATCHES))]
    assert report.fidelity.measured == pytest.approx(Quality(dense, rows).both(compressor.model)[1])
    assert report.fidelity.rows == sum(map(sequences, rows)) == 4
    assert CompressionReport.load(tmp_path / "model").fidelity == report.fidelity
    assert f"measured {report.fidelity.measured:.4f} on 4 rows" in str(report)


def test_a_plan_says_what_is_expected_within_bounds() -> None:
    planned = HeatCompressor(small_model("bert")).plan(CONFIG, BATCHES).fidelity
    assert 0 < planned.lower * WITHIN == pytest.approx(planned.expected) == pytest.approx(planned.upper / WITHIN)
    assert (planned.measured, planned.rows) == (None, 0)
    found = HeatCompressor(small_model("bert")).search_ranks(CONFIG, BATCHES).variants[0]
    again = HeatCompressor(small_model("bert")).plan(CONFIG, variant=found).fidelity
    assert again == planned


def test_nothing_is_expected_of_ranks_that_no_search_weighed() -> None:
    report = HeatCompressor(small_model("bert")).plan(HeatConfig(rank=4, sequence_length=16))
    assert report.fidelity is None
    assert "Divergence" not in str(report)


@pytest.mark.parametrize("damage", [{"measured": float("nan")}, {"expected": "much"}, {"rows": -1}, {"upper": True}])
def test_damaged_figures_are_refused(damage: dict) -> None:
    data = json.loads(json.dumps(Fidelity(0.1, 0.05, 0.2, 0.12, 8).to_dict()))
    assert Fidelity.from_dict(data) == Fidelity(0.1, 0.05, 0.2, 0.12, 8)
    with pytest.raises(ValueError, match=next(iter(damage))):
        Fidelity.from_dict({**data, **damage})
