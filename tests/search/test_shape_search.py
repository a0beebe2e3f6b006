"""Level 1: the Pareto front and its choice, the cost table, and the search that fills it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from conftest import SMALL_SEARCH, small_model

from heat_hf import HeatConfig
from heat_hf.compression.compressor import HeatCompressor
from heat_hf.encoders.linears import weights_digest
from heat_hf.formats.decomposition import decompose
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import load_accelerator
from heat_hf.hardware.analytic import AnalyticModel
from heat_hf.hardware.mapper import Mapper
from heat_hf.search.journal import Journal
from heat_hf.search.shapes.pareto import select
from heat_hf.search.shapes.search import ShapeSearch, search_shapes
from heat_hf.search.shapes.table import CostTable
from heat_hf.search.shapes.worker import Row


@pytest.fixture(scope="module")
def checkpoint(encoder: transformers.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    encoder.save_pretrained(folder)
    return folder


def test_a_candidate_has_the_error_and_cost_of_its_setting(
    encoder: transformers.PreTrainedModel, cost_table: CostTable
) -> None:
    linears = dict(encoder.named_modules())
    mapper = Mapper(load_accelerator("simba-l"), padding=True)
    assert set(cost_table.sizes) == {"24x24", "48x24", "24x48"}
    assert {c.format for c in cost_table.candidates} == set(SMALL_SEARCH.formats)
    for size, info in cost_table.sizes.items():
        (name,) = info.sampled
        dense = AnalyticModel(mapper).cascade_of(MatrixSize.parse(size), 32)
        assert (info.dense_energy_pJ, info.dense_seconds) == (dense.energy_pJ, dense.seconds)
        assert info.matrices == (8 if size == "24x24" else 2)
        for found in cost_table.of(size)[::3]:
            setting = found.setting
            assert found.parameters == setting.parameters < setting.dense_parameters
            cost = AnalyticModel(mapper).cascade_of(setting, 32)
            assert (found.energy_pJ, found.seconds) == (cost.energy_pJ, cost.seconds)
            reached = decompose(setting.codec, linears[name].weight, setting.shape, setting.rank).relative_error
            slack = 2e-6 if found.format != "cp" else 0.2 * reached
            assert found.error == pytest.approx(reached, abs=max(2e-6, slack))


def test_averaging_over_layers(encoder: transformers.PreTrainedModel) -> None:
    search = replace(SMALL_SEARCH, formats=("low_rank",), layers=None)
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


def test_the_table_survives_the_disk(cost_table: CostTable, tmp_path: Path) -> None:
    cost_table.save(tmp_path / "a.parquet")
    loaded = CostTable.load(tmp_path / "a.parquet")
    assert loaded == cost_table
    loaded.save(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]
    with pytest.raises(ValueError, match="no matrix size '9x9'; it has 24x24"):
        cost_table.of("9x9")
    with pytest.raises(ValueError, match="no tucker candidates of size 24x24; it has low_rank, cp, ttm"):
        cost_table.of("24x24", "tucker")


def test_damaged_and_foreign_tables_are_refused(cost_table: CostTable, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "table.parquet"
    with pytest.raises(FileNotFoundError, match=r"no cost table .*heat-hf search shapes"):
        CostTable.load(file)
    cost_table.save(file)
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
        "--formats", *SMALL_SEARCH.formats, "--orders", "2", "3", "--top-k", "1", "--budgets", "2", *options,
    ]  # fmt: skip


def test_any_number_of_processes_gives_the_same_bytes(cost_table: CostTable, checkpoint: Path, tmp_path: Path) -> None:
    table = replace(cost_table, model=checkpoint.name)
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


def search_until_something_is_kept(command: list[str], journal: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A search that has a result on disk, and the processes that it has started."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.02)
    return process, [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for_their_end(processes: list[int]) -> None:
    deadline = time.monotonic() + 120
    for process in processes:
        while Path(f"/proc/{process}/cmdline").exists() and Path(f"/proc/{process}/cmdline").read_text():
            assert time.monotonic() < deadline, "a pool process outlived its parent"
            time.sleep(0.1)


def test_a_killed_search_goes_on_where_it_stopped(cost_table: CostTable, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "table.parquet"
    journal = tmp_path / "table.parquet.partial" / "part-0.jsonl"
    process, children = search_until_something_is_kept(search_command(checkpoint, output, "--workers", "2"), journal)
    process.kill()
    process.communicate()
    assert not output.exists()
    kept = sum(bool(line) for line in journal.read_text().splitlines())
    with journal.open("a") as file:
        file.write('\n["24x24 cp 24:24", [[1], 0.5')  # a line torn by the crash
    again = [sys.executable, *search_command(checkpoint, output, "--workers", "1", "--json")]
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    everything = sum(space["shapes"] for info in cost_table.sizes.values() for space in info.spaces.values())
    assert 0 < kept < everything
    assert f"/{everything - kept} " in done.stderr, "only what was missing is searched"
    replace(cost_table, model=checkpoint.name).save(tmp_path / "whole.parquet")
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not journal.parent.exists()
    wait_for_their_end(children)  # pool processes end with the one that started them


def test_a_killed_process_of_a_search_ends_it_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "table.parquet"
    journal = tmp_path / "table.parquet.partial" / "part-0.jsonl"
    process, children = search_until_something_is_kept(search_command(checkpoint, output, "--workers", "2"), journal)
    os.kill(children[-1], signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in said
    assert "heat-hf: a process of the search was killed, as where memory runs out" in said


def test_a_table_of_another_search_is_never_taken_for_this_one(
    encoder: transformers.PreTrainedModel, cost_table: CostTable, tmp_path: Path
) -> None:
    output = tmp_path / "table.parquet"
    cost_table.save(output)
    written = output.stat().st_mtime_ns
    assert search_shapes(encoder, tokens=32, search=SMALL_SEARCH, output=output) == cost_table
    assert output.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"its accelerator is 'simba-l', wanted is 'edge-npu'.*--overwrite"):
        search_shapes(encoder, "edge-npu", tokens=32, search=SMALL_SEARCH, output=output)
    with pytest.raises(ValueError, match="its tokens is 32, wanted is 64"):
        search_shapes(encoder, tokens=64, search=SMALL_SEARCH, output=output)
    with pytest.raises(ValueError, match="its options is"):
        search_shapes(encoder, tokens=32, search=replace(SMALL_SEARCH, seed=1), output=output)
    with pytest.raises(ValueError, match="its digests is"):
        search_shapes(small_model("bert", head=False, seed=1), tokens=32, search=SMALL_SEARCH, output=output)
    assert CostTable.load(output) == cost_table
    few = ShapeSearch(formats=("low_rank",), budgets=1)
    other = search_shapes(encoder, "edge-npu", tokens=32, search=few, output=output, overwrite=True)
    assert CostTable.load(output) == other
    assert other.accelerator == "edge-npu"


def test_an_accelerator_of_the_same_name_is_another_one(
    encoder: transformers.PreTrainedModel, cost_table: CostTable, tmp_path: Path
) -> None:
    """The digest tells them apart, not the name."""
    cost_table.save(tmp_path / "table.parquet")
    shipped = (Path(load_accelerator.__code__.co_filename).with_name("accelerators") / "simba_l.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(shipped.replace("mac_pJ: 0.1", "mac_pJ: 0.2"))
    with pytest.raises(ValueError, match=f"accelerator_digest is '{cost_table.accelerator_digest}', wanted is"):
        search_shapes(encoder, str(tmp_path / "mine.yaml"), tokens=32, search=SMALL_SEARCH, output=tmp_path / "table.parquet")
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


def test_rows_without_a_key_are_of_no_search(encoder: transformers.PreTrainedModel, tmp_path: Path) -> None:
    """A search that was killed while it removed its journal leaves them; another seed gives other rows of the same names."""
    output, few = tmp_path / "table.parquet", ShapeSearch(formats=("low_rank",), budgets=1)
    with pytest.raises(KeyboardInterrupt), Journal(output, {}, overwrite=False) as journal:
        journal.write("24x24 low_rank 24:24", [Row([1], 0.9, 48, 1, 1.0, 1.0)])
        raise KeyboardInterrupt
    (tmp_path / "table.parquet.partial" / "key.json").unlink()
    assert search_shapes(encoder, tokens=32, search=few, output=output) == search_shapes(encoder, tokens=32, search=few)


def test_a_search_killed_when_its_table_was_there_leaves_nothing(encoder: transformers.PreTrainedModel, tmp_path: Path) -> None:
    output, few = tmp_path / "table.parquet", ShapeSearch(formats=("low_rank",), budgets=1)
    table = search_shapes(encoder, tokens=32, search=few, output=output)
    with pytest.raises(KeyboardInterrupt), Journal(output, table.key, overwrite=False):
        raise KeyboardInterrupt
    (tmp_path / ".table.parquet.heat-hf-abc").mkdir()
    assert search_shapes(encoder, tokens=32, search=few, output=output) == table
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
