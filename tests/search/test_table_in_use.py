"""Compression and baselines with a cost table."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from conftest import small_model

from heat_hf import HeatConfig
from heat_hf.compression.compressor import HeatCompressor
from heat_hf.search.shapes.pareto import front, select
from heat_hf.search.shapes.search import ShapeSearch, search_shapes
from heat_hf.search.shapes.table import CostTable


def test_compress_takes_the_tables_choice(encoder: transformers.PreTrainedModel, cost_table: CostTable, tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    cost_table.save(file)
    config = HeatConfig(
        decomposition="cp", rank_search="pareto", cost_table=str(file), sequence_length=32, target_params_ratio=0.6
    )
    model = small_model("bert", head=False)
    report = HeatCompressor(model).compress(config, save_directory=tmp_path / "out")
    for tensor in report.tensors:
        size = f"{tensor.setting.shape.rows}x{tensor.setting.shape.columns}"
        wanted = select(cost_table.of(size, "cp"), cost_table.sizes[size], max_ratio=0.6)
        assert (tensor.setting.shape, tensor.setting.rank) == (wanted.setting.shape, wanted.rank)
        assert tensor.setting.ratio <= 0.6
    saved = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert set(saved) == {"quant_method", "tensors", "tokens", "accelerator", "heat_version", "weights_file", "checksum"}
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids)[0], model(ids)[0])


def test_an_edp_budget_is_of_all_matrices_together(cost_table: CostTable, tmp_path: Path) -> None:
    """The best combination of the sizes' settings, against all combinations."""
    cost_table.save(tmp_path / "table.parquet")
    config = HeatConfig(
        decomposition="cp",
        rank_search="pareto",
        cost_table=str(tmp_path / "table.parquet"),
        target_edp_ratio=0.8,
        sequence_length=32,
    )
    report = HeatCompressor(small_model("bert", head=False)).plan(config)
    assert report.hardware is not None
    assert report.hardware.now.edp <= 0.8 * report.hardware.dense.edp * (1 + 1e-9)
    counts = {size: info.matrices for size, info in cost_table.sizes.items()}
    dense = [
        sum(n * getattr(cost_table.sizes[s], name) for s, n in counts.items()) for name in ("dense_energy_pJ", "dense_seconds")
    ]
    losses = []
    for combination in itertools.product(*(front(cost_table.of(size, "cp")) for size in counts)):
        energy, seconds, loss = (
            sum(n * value(c) for n, c in zip(counts.values(), combination, strict=True))
            for value in (lambda c: c.energy_pJ, lambda c: c.seconds, lambda c: c.error**2)
        )
        if energy * seconds <= 0.8 * dense[0] * dense[1]:
            losses.append(loss)
    chosen = {f"{t.setting.shape.rows}x{t.setting.shape.columns}": t.setting for t in report.tensors}
    found = sum(
        n * next(c.error**2 for c in cost_table.of(size, "cp") if c.setting == chosen[size]) for size, n in counts.items()
    )
    assert found == pytest.approx(min(losses))
    with pytest.raises(ValueError, match=r"target_edp_ratio, .*: no choice keeps edp within 0.0001: the least .* is 0\.\d"):
        HeatCompressor(small_model("bert", head=False)).plan(replace(config, target_edp_ratio=1e-4))


def test_without_a_table_pareto_searches_first(encoder: transformers.PreTrainedModel) -> None:
    config = HeatConfig(decomposition="low_rank", rank_search="pareto", sequence_length=32, modules=["layer.0.attention.self"])
    report = HeatCompressor(small_model("bert", head=False)).plan(config)
    found = search_shapes(encoder, tokens=32, search=ShapeSearch(formats=("low_rank",)), modules=config.modules)
    knee = select(found.of("24x24"), found.sizes["24x24"])
    assert {tensor.setting.rank for tensor in report.tensors} == {knee.rank}


@pytest.mark.parametrize("method", ["tensorly", "manual", "random"])
@pytest.mark.parametrize("name", ["cp", "tucker", "ttm", "low_rank"])
def test_baselines_are_settings_anyone_can_ask_for(method: str, name: str) -> None:
    config = HeatConfig(decomposition=name, rank_search=method, target_params_ratio=0.5, sequence_length=32, seed=3)
    model = small_model("bert", head=False)
    report = HeatCompressor(model).plan(config)
    assert 0.3 < report.params_ratio < 0.67  # uniform ranks of small modes come in large steps
    ranks = {tensor.setting.rank for tensor in report.tensors}
    assert len(ranks) > (3 if method == "random" else 1)
    again = HeatCompressor(small_model("bert", head=False)).plan(config)
    assert [t.setting for t in again.tensors] == [t.setting for t in report.tensors]


def test_a_table_gives_baselines_its_shapes(
    encoder: transformers.PreTrainedModel, cost_table: CostTable, tmp_path: Path
) -> None:
    cost_table.save(tmp_path / "table.parquet")
    options = {"decomposition": "ttm", "target_params_ratio": 0.5, "sequence_length": 32}
    plans = {}
    for method in ("pareto", "tensorly", "uniform"):
        config = HeatConfig(rank_search=method, cost_table=str(tmp_path / "table.parquet"), **options)
        plans[method] = [t.setting.shape for t in HeatCompressor(small_model("bert", head=False)).plan(config).tensors]
    assert plans["pareto"] == plans["tensorly"] == plans["uniform"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rank_search": "best"},
            "rank_search must be one of uniform, pareto, sensitivity, supernet, tensorly, manual, random, got 'best'",
        ),
        (
            {"rank_search": "tensorly"},
            "give exactly one of target_params_ratio, target_edp_ratio, target_latency_ratio, target_latency and rank",
        ),
        ({"target_edp_ratio": 0.2, "accelerator": None}, "target_edp_ratio needs an accelerator"),
        ({"rank_search": "pareto", "target_edp_ratio": 1.5}, "target_edp_ratio must be between 0 and 1, both excluded"),
        ({"rank_search": "pareto", "target_edp_ratio": 0.5, "target_params_ratio": 0.5}, "give exactly one of"),
        ({"rank_search": "tensorly", "rank": 4}, "rank_search='tensorly' finds the ranks: leave out rank, got 4"),
        ({"rank_search": "pareto", "rank": 4}, "finds the ranks"),
        ({"rank_search": "pareto", "shape": "6x4:24"}, "rank_search='pareto' finds the shapes"),
        ({"rank_search": "pareto", "accelerator": None}, "needs an accelerator"),
        ({"cost_table": "t.parquet", "rank": 4, "accelerator": None}, "cost_table needs an accelerator"),
    ],
)
def test_contradictory_configurations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeatConfig(decomposition="cp", **options)


def test_a_budget_no_candidate_keeps(encoder: transformers.PreTrainedModel, cost_table: CostTable, tmp_path: Path) -> None:
    cost_table.save(tmp_path / "table.parquet")
    config = HeatConfig(
        decomposition="cp",
        rank_search="pareto",
        cost_table=str(tmp_path / "table.parquet"),
        target_params_ratio=0.001,
        sequence_length=32,
    )
    with pytest.raises(ValueError, match=r"matrices of 24x24: max_ratio=0.001 is below what any candidate reaches"):
        HeatCompressor(small_model("bert", head=False)).plan(config)
    missing = HeatConfig(decomposition="tucker", rank_search="pareto", cost_table=config.cost_table, sequence_length=32)
    with pytest.raises(ValueError, match="no tucker candidates"):
        HeatCompressor(small_model("bert", head=False)).plan(missing)
