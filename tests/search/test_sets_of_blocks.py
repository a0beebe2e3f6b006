"""Whole blocks as candidates of a search: what is measured, what is chosen, what it costs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from deep import deep_model, settings_of, silent
from grouped import OPTIONS, batches

from heat_hf import CompressionReport, HeatCompressor, HeatConfig
from heat_hf.encoders.dropping import drop_blocks
from heat_hf.encoders.linears import block_of, encoder_linears
from heat_hf.reports.ranks import RankRecord


def test_measured_divergences_weigh_less_where_losses_are_understated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice follows what a projected network is measured at: the more that is, the sooner blocks go."""
    from heat_hf.compression.job import Job

    config = HeatConfig(**OPTIONS, target_params_ratio=0.3, blocks=True, refine_steps=0)
    numbers, asked = [], list[Any]()
    for apart in (0.0, 1e6):
        monkeypatch.setattr(Job, "_diverges", lambda job, settings, apart=apart: asked.append(settings) or apart)
        report = HeatCompressor(silent(deep_model(blocks=6), 9)).compress(config, batches())
        numbers.append(0 if report.dropped is None else len(report.dropped.blocks))
    assert numbers[0] < numbers[1] and len(asked) == 2, "one network is projected to see"


@pytest.mark.parametrize("accelerator", [None, "simba-l"])
@pytest.mark.parametrize("more", [{}, {"widths": True, "groups": True}])
def test_a_block_that_says_nothing_goes(accelerator: str | None, more: dict[str, Any], tmp_path: Path) -> None:
    target = {"target_params_ratio": [0.25, 0.3]} if accelerator is None else {"target_edp_ratio": [0.45, 0.6]}
    options = {**OPTIONS, **more, **target, "accelerator": accelerator}
    model = silent(deep_model(), 1)
    configs = [HeatConfig(**options, blocks=blocks) for blocks in (True, False)]
    found = [HeatCompressor(model).search_ranks(config, batches()) for config in configs]
    for ours, theirs in zip(found[0].variants, found[1].variants, strict=True):
        assert ours.loss < theirs.loss
        gone = {block_of(name) for name, setting in ours.settings.items() if setting and setting.format == "dropped"}
        assert "bert.encoder.layer.1" in gone
        limited = ours.params_ratio if accelerator is None else ours.edp_ratio
        assert limited <= ours.budget * (1 + 1e-9) and ours.expected_divergence is not None
    found[0].save(tmp_path / "record.json")
    record = RankRecord.load(tmp_path / "record.json")
    assert record == found[0] and "dropped" in str(record)
    report = HeatCompressor(model).compress(HeatConfig(**{**options, **dict.fromkeys(target, 0.5)}), batches(),
                                            variant=record.variants[0])  # fmt: skip
    assert {t.name: t.setting for t in report.tensors} == dict(record.variants[0].settings)
    again = CompressionReport.from_dict(json.loads(report.to_json()))
    assert again == report and again.dropped is not None and again.dropped.of == 4


def test_a_choice_with_blocks_is_never_worse_and_what_a_set_loses_is_measured() -> None:
    from heat_hf.compression.job import Job
    from heat_hf.evaluation.quality import Quality

    model = deep_model(blocks=6)
    config = HeatConfig(**OPTIONS, target_params_ratio=[0.15, 0.4, 0.8], blocks=True)
    job = Job(model, config, batches())
    curves = config.method._curves(job.problem)  # type: ignore[attr-defined]
    assert [len(gone) for gone in curves.gone] == [1] * 6 + [2] * 4 + [3] * 4
    quality = Quality(model, batches())
    for gone, lost in curves.gone.items():
        short = copy.deepcopy(model)
        drop_blocks(short, gone)
        assert quality.both(short)[1] == pytest.approx(lost, rel=1e-4)
    alone = HeatCompressor(model).search_ranks(HeatConfig(**OPTIONS, target_params_ratio=[0.15, 0.4, 0.8]), batches())
    ours = HeatCompressor(model).search_ranks(config, batches())
    for one, other in zip(ours.variants, alone.variants, strict=True):
        assert one.loss <= other.loss * (1 + 1e-9)


def test_costs_are_those_of_the_saved_model(tmp_path: Path) -> None:
    from heat_hf.encoders.cost import model_cost
    from heat_hf.hardware.analytic import cost_model
    from heat_hf.reports.model_page import page_data

    model = HeatCompressor(silent(deep_model(), 2))
    config = HeatConfig(**{**OPTIONS, "accelerator": "simba-l"}, target_edp_ratio=0.4, blocks=True, refine_steps=0)
    report = model.compress(config, batches(), tmp_path / "model")
    assert report.dropped is not None and report.hardware is not None
    costed = model_cost(str(tmp_path / "model"), cost_model("simba-l"), 16)
    assert report.hardware.now.edp == pytest.approx(costed.total.edp)
    page = page_data(tmp_path / "model")
    assert sum(page["levels"]["energy"]["now"]) < sum(page["levels"]["energy"]["dense"])
    card = (tmp_path / "model" / "README.md").read_text()
    assert str(report.dropped) in card


def test_a_machine_counts_what_is_between_the_matrices_of_blocks_that_stay() -> None:
    from heat_hf.hardware.between import Between
    from heat_hf.hardware.cost import Cost
    from heat_hf.hardware.gemm import Gemm
    from heat_hf.hardware.protocol import CostModel
    from heat_hf.search.ranks.space import Costs, matrices_of

    class Machine(CostModel):
        name, digest, units = "machine", "0", ()

        def gemm(self, gemm: Gemm) -> Cost:
            return Cost(1.0)

        def between(self, work: Between, units: int) -> Cost:
            return Cost(10.0)

    model = deep_model()
    linears = encoder_linears(model)
    costs = Costs(matrices_of(model, linears, 1, 16), 16, Machine())
    assert costs.dense.seconds == 4 * (6 + 20)
    assert costs.total(settings_of(model, [1, 3])).seconds == 2 * (6 + 20)


def test_the_option() -> None:
    from heat_hf.cli import build_parser
    from heat_hf.cli.values import heat_config

    line = ["search", "ranks", "some/model", "--output", "there", "--target-edp-ratio", "0.3"]
    assert [heat_config(build_parser().parse_args([*line, *more])).blocks for more in ([], ["--blocks"])] == [False, True]
