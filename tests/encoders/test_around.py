"""What is around the matrices: counted in reports and by `heat-hf cost`, with what heads, neurons and blocks leave of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, small_model, token_ids

from heat_hf import HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.around import EXTRAS, extras
from heat_hf.encoders.cost import model_cost
from heat_hf.encoders.dropping import dropped_setting
from heat_hf.encoders.linears import dense_linears, encoder_linears
from heat_hf.encoders.together import head_groups, inner_pairs, narrowed
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.analytic import AnalyticModel, cost_accelerator
from heat_hf.hardware.gemm import Gemm
from heat_hf.reports.compression import CompressionReport

CONFIG = HeatConfig(sequence_length=16, batch_size=2, refine_steps=0, rank=3)


@pytest.fixture(scope="module")
def costs() -> AnalyticModel:
    return cost_accelerator("simba-l")


def narrower(model: Any, heads: int, neurons: int) -> dict[str, TensorSetting | None]:
    """Settings by which the first block has so many heads and inner neurons; the others stay dense."""
    linears = encoder_linears(model)
    settings: dict[str, TensorSetting | None] = dict.fromkeys(linears)
    names, size = next(iter(head_groups(model, linears).items()))
    settings |= zip(names, narrowed([MatrixSize.of(linears[name]) for name in names], heads * size), strict=True)
    pair = inner_pairs(model, linears)[0]
    return settings | dict(zip(pair, narrowed([MatrixSize.of(linears[name]) for name in pair], neurons), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_report_and_the_saved_model_agree(family: str, costs: AnalyticModel, tmp_path: Path) -> None:
    """EDP of the whole model, before and after, in the report, in its text, and from the folder's configuration alone."""
    model = small_model(family, head=False)
    report = factorize(model, CONFIG)
    model.save_pretrained(tmp_path)
    whole = model_cost(tmp_path, costs, 16, 2, EXTRAS)
    assert report.whole is not None and report.hardware is not None
    assert report.whole.now.edp == pytest.approx(whole.total.edp, rel=1e-9)
    assert report.whole.dense.edp == pytest.approx(whole.dense.edp, rel=1e-9)
    assert report.hardware.ratio < report.whole.ratio < 1, "what is around the matrices gains nothing by low ranks"
    assert "EDP of the whole model" in str(report)
    assert model_cost(model, costs, 16, 2, EXTRAS).total.edp == pytest.approx(whole.total.edp, rel=1e-9)
    assert CompressionReport.from_dict(report.to_dict() | {"around": None}).whole is None


def test_heads_and_neurons_take_theirs_with_them(costs: AnalyticModel, tmp_path: Path) -> None:
    model = small_model("bert", head=False)
    batches = [{"input_ids": token_ids(16, 16), "attention_mask": torch.ones(16, 16, dtype=torch.long)}]
    settings = narrower(model, heads=1, neurons=8)
    found = {(extra.name, extra.gemm): extra for extra in extras(model, dense_linears(model), settings, 16, 2)}
    assert found["scores Q·Kᵀ", Gemm(16, 16, 6, 2)].repeats == found["scores Q·Kᵀ", Gemm(16, 16, 6, 8)].repeats == 1
    assert found["activation", Gemm(2 * 16 * 8, 1, 1)].dense == Gemm(2 * 16 * 48, 1, 1)
    report = factorize(model, CONFIG, batches, settings)
    model.save_pretrained(tmp_path)
    assert report.around is not None and report.around.ratio < 1 and report.whole is not None
    assert model_cost(tmp_path, costs, 16, 2, EXTRAS).total.edp == pytest.approx(report.whole.now.edp, rel=1e-9)


def test_blocks_that_go_take_all_of_it_with_them() -> None:
    model = small_model("bert", head=False)
    linears = encoder_linears(model)
    gone = {name: dropped_setting(MatrixSize.of(one)) if ".0." in name else None for name, one in linears.items()}
    found = extras(model, dense_linears(model), gone, 16, 2)
    left = sum(extra.repeats for extra in found if extra.gemm is not None)
    assert left == sum(extra.repeats for extra in extras(model, dense_linears(model), {}, 16, 2)) - 8
    assert all(extra.gemm in (None, extra.dense) for extra in found)


def test_shared_blocks_count_as_often_as_they_run() -> None:
    model = small_model("albert", head=False)
    settings = narrower(model, heads=2, neurons=8)
    found = extras(model, dense_linears(model), settings, 16, 1)
    assert {(extra.gemm, extra.repeats) for extra in found if extra.name == "softmax"} == {(Gemm(2 * 16 * 16, 1, 1), 2)}


def test_where_it_is_not_known_nothing_is_said() -> None:
    model = small_model("bert", head=False)
    model.config.model_type = "unheard-of"
    report = factorize(model, HeatConfig(sequence_length=16, rank=3, modules=["intermediate"]))
    assert report.around is None and report.whole is None and "whole model's" not in str(report)
    assert not any("whole" in name for name, *_ in report.figures)
