"""Compression for the machine at hand: every way to choose ranks obeys it, and reports say what it gains. No clock is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clock import Clock
from conftest import small_model, token_ids

import heat_hf.hardware.machine.model as machine
from heat_hf import HeatCompressor, HeatConfig
from heat_hf.cli import main
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import cost_model
from heat_hf.hardware.cost import Cost
from heat_hf.reports.card import Origin, model_card
from heat_hf.reports.compression import CompressionReport

BATCHES = [{"input_ids": token_ids(24, 6)}]


def config(**options: Any) -> HeatConfig:
    return HeatConfig(sequence_length=16, refine_steps=0, accelerator="cpu", **options)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What `accelerator="cpu"` reads instead of the time."""
    own = Clock(product=1e-9, ragged=1.1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "measure_in", lambda *_: own)
    return own


def simba(report: CompressionReport) -> float:
    """EDP of the matrices on the paper's accelerator, as a fraction of the dense ones'."""
    costs, tensors = cost_model("simba-l"), report.tensors
    dense = [costs.linear(MatrixSize(t.rows, t.columns), report.tokens) for t in tensors]
    now = [d if t.setting is None else costs.setting(t.setting, report.tokens) for t, d in zip(tensors, dense, strict=True)]
    return Cost.total(now).edp / Cost.total(dense).edp


@pytest.mark.parametrize("method", ["sensitivity", "uniform", "tensorly", "random", "manual", "pareto"])
def test_every_method_keeps_a_share_of_the_time(method: str, clock: Clock, tmp_path: Path) -> None:
    compressor = HeatCompressor(small_model("bert"))
    report = compressor.compress(config(rank_search=method, target_latency_ratio=0.8), BATCHES)
    assert report.hardware is not None and report.hardware.ratio <= 0.8
    assert report.accelerator == "cpu (torch)" and report.request["accelerator"] == "cpu"
    assert HeatConfig(**{k: v for k, v in report.request.items() if k != "quant_method"}).accelerator == "cpu"
    for tensor in report.tensors:
        assert tensor.setting is None or tensor.hardware.now.seconds < tensor.hardware.dense.seconds  # type: ignore[union-attr]
    assert "time of the matrices and what is between them on cpu (torch)" in str(report)
    chip = simba(report)
    assert [name for name, *_ in report.figures] == ["time of the matrices", "EDP of the matrices on simba-l"]
    assert report.figures[1][3] / report.figures[1][2] == pytest.approx(chip)
    assert "; EDP on simba-l" in str(report) and f"×{chip:.3f} |" in str(model_card(report, Origin("x")))
    assert list((tmp_path / "heat-hf").iterdir()), "kept in the user's cache folder"


def test_ranks_that_do_not_gain_stay_dense(clock: Clock) -> None:
    """Of rank 8, matrices of 24×24 are no faster; those of 48×24 are, by far."""
    clock.product = 3e-9
    report = HeatCompressor(small_model("bert")).compress(config(rank=8))
    dense = [tensor for tensor in report.tensors if tensor.setting is None]
    assert {(t.rows, t.columns) for t in dense} == {(24, 24)} and len(dense) < len(report.tensors)
    assert f"{len(dense)} of {len(report.tensors)} matrices stay dense." in str(report)


def test_ranks_that_gain_nowhere_are_refused(clock: Clock) -> None:
    clock.slow = 9.0
    for options in ({"rank": 8}, {"target_params_ratio": 0.6}, {"target_latency_ratio": 0.6}):
        with pytest.raises(ValueError, match=r"no matrix would run faster on cpu \(torch\)|cannot be reached by this method"):
            HeatCompressor(small_model("bert")).compress(config(**options))


def test_energies_are_not_known(clock: Clock) -> None:
    with pytest.raises(
        ValueError,
        match=r"target_edp_ratio needs energies, and the cost model cpu \(torch\) has none: use target_latency_ratio",
    ):
        HeatCompressor(small_model("bert")).compress(config(target_edp_ratio=0.5))


def test_on_the_command_line(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_model("bert").save_pretrained(tmp_path / "bert")
    command = ["compress", str(tmp_path / "bert"), "--accelerator", "cpu", "--sequence-length", "16", "--dry-run", "--json"]
    assert main([*command, "--target-latency-ratio", "0.8"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accelerator"] == "cpu (torch)" and clock.measured
    assert 0.5 < report["total"]["hardware"]["seconds"] / report["total"]["hardware"]["dense_seconds"] <= 0.8
    assert main([*command, "--target-latency-ratio", "0.8", "--precision", "int8"]) == 2
    assert "precision must be float32 or bfloat16 with runtime='torch', got 'int8'" in capsys.readouterr().err
    assert main(["cost", "--matrix", "24x24", "--accelerator", "cpu"]) == 2
    assert "'cpu' is this machine" in capsys.readouterr().err
