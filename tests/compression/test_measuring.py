"""What a search expects and what is measured in the end are in plan, report and JSON."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_model, token_ids

from heat_hf import CompressionReport, HeatCompressor, HeatConfig
from heat_hf.compression.refined_rows import held_out
from heat_hf.encoders.batches import sequences
from heat_hf.encoders.linears import encoder_linears, tensors_digest
from heat_hf.evaluation.quality import Quality
from heat_hf.reports.fidelity import Fidelity

BATCHES = [{"input_ids": rows} for rows in token_ids(48, 7).split(4)]
CONFIG = HeatConfig(rank_search="sensitivity", target_edp_ratio=0.5, sequence_length=16, refine_steps=2)


def loud() -> torch.nn.Module:
    """A model whose outputs move by more than rounding."""
    model = small_model("bert")
    with torch.no_grad():
        for linear in encoder_linears(model).values():
            linear.weight.mul_(16)
        model.classifier.weight.mul_(100)
    return model


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
    dense = loud()
    planned = HeatCompressor(dense).plan(CONFIG, BATCHES).fidelity
    assert 0 < planned.lower < planned.expected < planned.upper
    assert planned.upper / planned.expected == pytest.approx(planned.expected / planned.lower)
    assert (planned.measured, planned.rows) == (None, 0)
    assert tensors_digest(dense.parameters()) == tensors_digest(loud().parameters())
    found = HeatCompressor(loud()).search_ranks(CONFIG, BATCHES).variants[0]
    assert found.expected_divergence == planned.expected
    again = HeatCompressor(loud()).plan(CONFIG, variant=found).fidelity
    assert again == planned


def test_without_rows_to_measure_on_nothing_is_expected() -> None:
    compressor = HeatCompressor(small_model("bert"))
    statistics = compressor.statistics_of(CONFIG, BATCHES)
    assert compressor.plan(CONFIG, statistics=statistics).fidelity is None
    (found,) = compressor.search_ranks(CONFIG, statistics=statistics).variants
    assert found.loss > 0 and found.expected_divergence is None


def test_what_is_expected_is_what_the_projected_model_is_measured_at() -> None:
    dense = loud()
    planned = HeatCompressor(dense).plan(CONFIG, BATCHES).fidelity
    report = HeatCompressor(loud()).compress(replace(CONFIG, refine_steps=0), BATCHES)
    assert planned.expected == pytest.approx(report.fidelity.measured, rel=1e-5)
    assert report.fidelity.expected is None


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
