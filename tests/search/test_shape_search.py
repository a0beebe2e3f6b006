"""Level 1: the Pareto front and its choice, the cost table, and the search that fills it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from heat_hf import HeatConfig
from heat_hf.compression.compressor import HeatCompressor
from heat_hf.encoders.linears import weights_digest
from heat_hf.formats.decomposition import decompose
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import load_accelerator
from heat_hf.hardware.analytic import AnalyticModel
from heat_hf.hardware.mapper import Mapper
from heat_hf.search.journal import Journal
from heat_hf.search.shapes.pareto import SLACK, front, knees, pareto_front, select
from heat_hf.search.shapes.search import ShapeSearch, search_shapes
from heat_hf.search.shapes.table import Candidate, CostTable, SizeInfo
from heat_hf.search.shapes.worker import Row

SMALL = ShapeSearch(formats=("low_rank", "cp", "ttm"), orders=(2, 3), top_k=1, budgets=2)
DENSE = SizeInfo(1, "d", ("w",), 100.0, 1e-6, {})


def candidate(error: float, parameters: int, energy: float, seconds: float, rank: int = 1, **changes: object) -> Candidate:
    whole = Candidate("10x10", "cp", "10:10", (rank,), error, parameters, 1000, energy, seconds)
    return replace(whole, **changes)


@given(
    points=arrays(np.float64, st.tuples(st.integers(0, 30), st.integers(1, 4)), elements=st.integers(0, 4).map(float)),
)
@settings(max_examples=200, deadline=None)
def test_the_front_is_exactly_what_no_point_dominates(points: np.ndarray) -> None:
    expected = [not any((other <= row).all() and (other < row).any() for other in points) for row in points]
    assert pareto_front(points).tolist() == expected


def test_the_front_refuses_what_has_no_order() -> None:
    with pytest.raises(ValueError, match="without NaN"):
        pareto_front([[1.0, float("nan")]])
    with pytest.raises(ValueError, match="n×k array"):
        pareto_front([1.0, 2.0])
    assert front([]) == []


def test_a_budget_takes_the_least_error_and_lets_edp_decide_near_it() -> None:
    best = candidate(0.500, 50, 80.0, 1e-6, rank=1)
    near = candidate(0.500 * (1 + SLACK / 2), 50, 40.0, 1e-6, rank=2)
    far = candidate(0.500 * (1 + 2 * SLACK), 50, 10.0, 1e-6, rank=3)
    large = candidate(0.100, 90, 90.0, 1e-6, rank=4)
    everything = [large, far, near, best]
    assert select(everything, DENSE, max_ratio=0.5) == near
    assert select(everything, DENSE, max_ratio=0.5, slack=0.0) == best
    assert select(everything, DENSE, max_ratio=0.95) == large
    assert select(everything, DENSE, max_edp=15e-18) == far
    with pytest.raises(ValueError, match=r"max_ratio=0.2 is below what any candidate reaches, 0.5"):
        select(everything, DENSE, max_ratio=0.2)
    with pytest.raises(ValueError, match="max_edp=1e-20 is below"):
        select(everything, DENSE, max_edp=1e-20)
    cheap = candidate(0.9, 95, 5.0, 1e-6)
    with pytest.raises(ValueError, match="no candidate keeps both"):
        select([best, cheap], DENSE, max_ratio=0.5, max_edp=10e-18)
    with pytest.raises(ValueError, match="no candidate"):
        select([], DENSE)


def test_without_a_budget_the_knee_with_the_least_error_is_taken() -> None:
    tiny = candidate(0.95, 5, 5.0, 5e-8, rank=1)
    knee = candidate(0.30, 30, 30.0, 3e-7, rank=2)  # ratio + error = 0.6
    other = candidate(0.25, 60, 30.0, 3e-7, rank=3)  # the knee of energy, latency and EDP
    large = candidate(0.05, 95, 120.0, 9e-7, rank=4)
    points = [large, other, knee, tiny]
    assert knees(points, DENSE) == [knee, other, other, other]
    assert select(points, DENSE) == other
    free = candidate(0.0, 99, 200.0, 1e-6, rank=5)
    assert select([*points, free], DENSE) == other, "what costs more than the dense layer has no say"
    assert select([free], DENSE) == free


def test_ties_do_not_depend_on_the_order() -> None:
    same = [candidate(0.5, 50, 50.0, 5e-7, **other) for other in (
        {"format": "tucker", "rank": (2, 2)}, {"format": "low_rank"}, {"format": "cp"}, {"format": "cp", "shape": "2x5:10"},
    )]  # fmt: skip
    assert {select(order, DENSE).format for order in (same, same[::-1])} == {"low_rank"}
    assert len(front(same)) == 4, "equal points do not dominate each other"


@pytest.fixture(scope="module")
def encoder() -> transformers.PreTrainedModel:
    return small_model("bert", head=False)


@pytest.fixture(scope="module")
def checkpoint(encoder: transformers.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    encoder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table(encoder: transformers.PreTrainedModel) -> CostTable:
    return search_shapes(encoder, tokens=32, search=SMALL)


def test_a_candidate_has_the_error_and_cost_of_its_setting(encoder: transformers.PreTrainedModel, table: CostTable) -> None:
    linears = dict(encoder.named_modules())
    mapper = Mapper(load_accelerator("simba-l"), padding=True)
    assert set(table.sizes) == {"24x24", "48x24", "24x48"}
    assert {c.format for c in table.candidates} == set(SMALL.formats)
    for size, info in table.sizes.items():
        (name,) = info.sampled
        dense = AnalyticModel(mapper).cascade_of(MatrixSize.parse(size), 32)
        assert (info.dense_energy_pJ, info.dense_seconds) == (dense.energy_pJ, dense.seconds)
        assert info.matrices == (8 if size == "24x24" else 2)
        for found in table.of(size)[::3]:
            setting = found.setting
            assert found.parameters == setting.parameters < setting.dense_parameters
            cost = AnalyticModel(mapper).cascade_of(setting, 32)
            assert (found.energy_pJ, found.seconds) == (cost.energy_pJ, cost.seconds)
            reached = decompose(setting.codec, linears[name].weight, setting.shape, setting.rank).relative_error
            slack = 2e-6 if found.format != "cp" else 0.2 * reached
            assert found.error == pytest.approx(reached, abs=max(2e-6, slack))


def test_averaging_over_layers(encoder: transformers.PreTrainedModel) -> None:
    search = replace(SMALL, formats=("low_rank",), layers=None)
    every = search_shapes(encoder, tokens=32, search=search, modules=["attention.self"])
    (info,) = every.sizes.values()
    assert len(info.sampled) == info.matrices == 6
    found = every.candidates[0]
    linears = dict(encoder.named_modules())
    errors = [
        decompose(found.setting.codec, linears[n].weight, found.setting.shape, found.rank).relative_error for n in info.sampled
    ]
    assert found.error == pytest.approx(sum(errors) / 6, abs=2e-6)
    two = search_shapes(encoder, tokens=32, search=replace(search, layers=2), modules=["attention.self"])
    assert len(two.sizes["24x24"].sampled) == 2


def test_the_table_survives_the_disk(table: CostTable, tmp_path: Path) -> None:
    table.save(tmp_path / "a.parquet")
    loaded = CostTable.load(tmp_path / "a.parquet")
    assert loaded == table
    loaded.save(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]
    with pytest.raises(ValueError, match="no matrix size '9x9'; it has 24x24"):
        table.of("9x9")
    with pytest.raises(ValueError, match="no tucker candidates of size 24x24; it has low_rank, cp, ttm"):
        table.of("24x24", "tucker")


def test_damaged_and_foreign_tables_are_refused(table: CostTable, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "table.parquet"
    with pytest.raises(FileNotFoundError, match=r"no cost table .*heat-hf search shapes"):
        CostTable.load(file)
    table.save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        CostTable.load(file)
    flipped = bytearray(whole)
    flipped[200] ^= 0xFF
    file.write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        CostTable.load(file)
    pq.write_table(pa.table({"x": [1, 2]}), file)
    with pytest.raises(ValueError, match="not a cost table of version 2: its columns are x"):
        CostTable.load(file)


def search_command(checkpoint: Path, output: Path, *options: str) -> list[str]:
    return [
        "-m", "heat_hf.cli", "search", "shapes", str(checkpoint), "--output", str(output), "--sequence-length", "32",
        "--formats", *SMALL.formats, "--orders", "2", "3", "--top-k", "1", "--budgets", "2", *options,
    ]  # fmt: skip


def test_any_number_of_processes_gives_the_same_bytes(table: CostTable, checkpoint: Path, tmp_path: Path) -> None:
    table = replace(table, model=str(checkpoint))
    table.save(tmp_path / "here.parquet")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, command in (
        ("launched", [*launch, *search_command(checkpoint, tmp_path / "launched.parquet")]),
        ("workers", [sys.executable, *search_command(checkpoint, tmp_path / "workers.parquet", "--workers", "2")]),
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("search space") == 1, "only the first process prints"
        assert (tmp_path / f"{name}.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["here.parquet", "launched.parquet", "workers.parquet"]


def test_a_killed_search_goes_on_where_it_stopped(table: CostTable, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "table.parquet"
    journal = tmp_path / "table.parquet.partial" / "part-0.jsonl"
    process = subprocess.Popen(
        [sys.executable, *search_command(checkpoint, output, "--workers", "2")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.02)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    before = journal.read_text()
    with journal.open("a") as file:
        file.write('\n["24x24 cp 24:24", [[1], 0.5')  # a line torn by the crash
    done = subprocess.run(
        [sys.executable, *search_command(checkpoint, output, "--workers", "1", "--json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kept = sum(bool(line) for line in before.splitlines())
    everything = sum(space["shapes"] for info in table.sizes.values() for space in info.spaces.values())
    assert 0 < kept < everything
    assert f"/{everything - kept} " in done.stderr, "only what was missing is searched"
    replace(table, model=str(checkpoint)).save(tmp_path / "whole.parquet")
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not journal.parent.exists()
    for child in children:  # pool processes end with the one that started them
        while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_text():
            assert time.monotonic() < deadline, "a pool process outlived its parent"
            time.sleep(0.1)


def test_a_table_of_another_search_is_never_taken_for_this_one(
    encoder: transformers.PreTrainedModel, table: CostTable, tmp_path: Path
) -> None:
    output = tmp_path / "table.parquet"
    table.save(output)
    written = output.stat().st_mtime_ns
    assert search_shapes(encoder, tokens=32, search=SMALL, output=output) == table
    assert output.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"its accelerator is 'simba-l', wanted is 'edge-npu'.*--overwrite"):
        search_shapes(encoder, "edge-npu", tokens=32, search=SMALL, output=output)
    with pytest.raises(ValueError, match="its tokens is 32, wanted is 64"):
        search_shapes(encoder, tokens=64, search=SMALL, output=output)
    with pytest.raises(ValueError, match="its options is"):
        search_shapes(encoder, tokens=32, search=replace(SMALL, seed=1), output=output)
    with pytest.raises(ValueError, match="its digests is"):
        search_shapes(small_model("bert", head=False, seed=1), tokens=32, search=SMALL, output=output)
    assert CostTable.load(output) == table
    few = ShapeSearch(formats=("low_rank",), budgets=1)
    other = search_shapes(encoder, "edge-npu", tokens=32, search=few, output=output, overwrite=True)
    assert CostTable.load(output) == other
    assert other.accelerator == "edge-npu"


def test_an_accelerator_of_the_same_name_is_another_one(
    encoder: transformers.PreTrainedModel, table: CostTable, tmp_path: Path
) -> None:
    """The digest tells them apart, not the name."""
    table.save(tmp_path / "table.parquet")
    shipped = (Path(load_accelerator.__code__.co_filename).with_name("accelerators") / "simba_l.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(shipped.replace("mac_pJ: 0.1", "mac_pJ: 0.2"))
    with pytest.raises(ValueError, match=f"accelerator_digest is '{table.accelerator_digest}', wanted is"):
        search_shapes(encoder, str(tmp_path / "mine.yaml"), tokens=32, search=SMALL, output=tmp_path / "table.parquet")
    config = HeatConfig(
        decomposition="cp",
        rank_search="pareto",
        cost_table=str(tmp_path / "table.parquet"),
        accelerator=str(tmp_path / "mine.yaml"),
        sequence_length=32,
    )
    with pytest.raises(ValueError, match="accelerator_digest"):
        HeatCompressor(small_model("bert", head=False)).plan(config)


def test_what_is_left_of_another_search_is_not_mixed_in(encoder: transformers.PreTrainedModel, tmp_path: Path) -> None:
    output = tmp_path / "table.parquet"
    with pytest.raises(KeyboardInterrupt), Journal(output, {"tokens": 64}, overwrite=False) as journal:
        journal.write("24x24 low_rank 24:24", [Row([1], 0.9, 48, 1, 1.0, 1.0)])
        raise KeyboardInterrupt
    assert journal.read(Row) == {"24x24 low_rank 24:24": [Row([1], 0.9, 48, 1, 1.0, 1.0)]}
    few = ShapeSearch(formats=("low_rank",), budgets=1)
    with pytest.raises(ValueError, match="partial holds another search: its table_version is None"):
        search_shapes(encoder, tokens=32, search=few, output=output)
    (tmp_path / "table.parquet.partial" / "key.json").write_text('{"table_')
    with pytest.raises(ValueError, match="partial holds another search: its table_version is None"):
        search_shapes(encoder, tokens=32, search=few, output=output)
    done = search_shapes(encoder, tokens=32, search=few, output=output, overwrite=True)
    assert done == search_shapes(encoder, tokens=32, search=few)
    assert [file.name for file in tmp_path.iterdir()] == ["table.parquet"]


def test_bad_searches_are_refused_before_any_work(encoder: transformers.PreTrainedModel, tmp_path: Path) -> None:
    for options, message in (
        ({"formats": ()}, "formats must name at least one"),
        ({"formats": ("cp", "cp")}, "each once"),
        ({"formats": ("svd",)}, "unknown decomposition 'svd'"),
        ({"layers": 0}, "layers must be a positive integer, got 0"),
        ({"budgets": -1}, "budgets must be a positive integer"),
        ({"top_k": True}, "top_k must be a positive integer"),
    ):
        with pytest.raises(ValueError, match=message):
            ShapeSearch(**options)
    with pytest.raises(ValueError, match=r"24×24 matrix cannot be folded to order 9: .*24 = 2·2·2·3"):
        search_shapes(encoder, search=ShapeSearch(orders=(9,)), output=tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="tokens and workers must be at least 1"):
        search_shapes(encoder, tokens=0)
    broken = small_model("bert", head=False)
    broken.encoder.layer[0].output.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the weight of encoder.layer.0.output.dense holds NaN"):
        search_shapes(broken, output=tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


def test_an_empty_candidate_set_is_an_error() -> None:
    """A 1×n matrix has no smaller factorization."""
    model = small_model("bert", head=True)
    model.encoder_head = torch.nn.Linear(7, 1)
    with pytest.raises(ValueError, match=r"no candidate.* 1x7"):
        search_shapes(model, search=ShapeSearch(), modules=["encoder_head"])


def test_digests_are_of_weights_not_names() -> None:
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert weights_digest({"a": first, "b": second}) == weights_digest({"x": first, "y": second})
    assert weights_digest({"a": first, "b": second}) != weights_digest({"b": second, "a": first})
    assert len({weights_digest({"a": first.bfloat16()}), weights_digest({"a": first.float()})}) == 2


def test_another_accelerator_chooses_another_shape() -> None:
    """On 256 MACs with a 16-wide vector Tucker folds a matrix that it leaves whole on 4,096 with a 32-wide one."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        num_hidden_layers=1, hidden_size=192, intermediate_size=384, num_attention_heads=4, vocab_size=50
    )
    model = transformers.BertModel(config)
    search = ShapeSearch(formats=("tucker",), orders=(2, 3), top_k=2, budgets=4)
    chosen = {}
    for accelerator in ("simba-l", "edge-npu"):
        found = search_shapes(model, accelerator, 128, search, modules=["self.query"])
        chosen[accelerator] = select(found.of("192x192"), found.sizes["192x192"])
    assert str(chosen["simba-l"].shape) == "192:192"
    assert str(chosen["edge-npu"].shape) == "12x16:192"


def test_compress_takes_the_tables_choice(encoder: transformers.PreTrainedModel, table: CostTable, tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    table.save(file)
    config = HeatConfig(
        decomposition="cp", rank_search="pareto", cost_table=str(file), sequence_length=32, target_params_ratio=0.6
    )
    model = small_model("bert", head=False)
    report = HeatCompressor(model).compress(config, save_directory=tmp_path / "out")
    for tensor in report.tensors:
        size = f"{tensor.setting.shape.rows}x{tensor.setting.shape.columns}"
        wanted = select(table.of(size, "cp"), table.sizes[size], max_ratio=0.6)
        assert (tensor.setting.shape, tensor.setting.rank) == (wanted.setting.shape, wanted.rank)
        assert tensor.setting.ratio <= 0.6
    saved = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert set(saved) == {"quant_method", "tensors", "tokens", "accelerator", "heat_version", "weights_file"}
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids)[0], model(ids)[0])


def test_an_edp_budget_is_of_all_matrices_together(table: CostTable, tmp_path: Path) -> None:
    """The best combination of the sizes' settings, against all combinations."""
    table.save(tmp_path / "table.parquet")
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
    counts = {size: info.matrices for size, info in table.sizes.items()}
    dense = [sum(n * getattr(table.sizes[s], name) for s, n in counts.items()) for name in ("dense_energy_pJ", "dense_seconds")]
    losses = []
    for combination in itertools.product(*(front(table.of(size, "cp")) for size in counts)):
        energy, seconds, loss = (
            sum(n * value(c) for n, c in zip(counts.values(), combination, strict=True))
            for value in (lambda c: c.energy_pJ, lambda c: c.seconds, lambda c: c.error**2)
        )
        if energy * seconds <= 0.8 * dense[0] * dense[1]:
            losses.append(loss)
    chosen = {f"{t.setting.shape.rows}x{t.setting.shape.columns}": t.setting for t in report.tensors}
    found = sum(n * next(c.error**2 for c in table.of(size, "cp") if c.setting == chosen[size]) for size, n in counts.items())
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


def test_a_table_gives_baselines_its_shapes(encoder: transformers.PreTrainedModel, table: CostTable, tmp_path: Path) -> None:
    table.save(tmp_path / "table.parquet")
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
        ({"rank_search": "tensorly"}, "give exactly one of target_params_ratio, target_edp_ratio, target_latency and rank"),
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


def test_a_budget_no_candidate_keeps(encoder: transformers.PreTrainedModel, table: CostTable, tmp_path: Path) -> None:
    table.save(tmp_path / "table.parquet")
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
