"""Whole blocks as one cascade: as good as the best of all schedules, within the room there is, better than layer by layer."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import small_model

from heat_hf import HeatConfig
from heat_hf.cli import main
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.cost import model_cost, outline
from heat_hf.encoders.flow import Block, FusedModel, blocks_of, fused_cost, fused_model
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.shape import TensorShape
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.analytic import AnalyticModel, cost_accelerator
from heat_hf.hardware.cascade import cost_gemm
from heat_hf.hardware.cost import MisfitError
from heat_hf.hardware.flow import Flow, Operation, Schedule
from heat_hf.hardware.gemm import Gemm
from heat_hf.hardware.mapper import Mapper
from heat_hf.hardware.spec import load_accelerator

LIKE_BERT = ["bert", "distilbert", "roberta", "xlm-roberta", "camembert", "electra", "albert"]


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> AnalyticModel:
    """What is mapped once is known to all tests, and to the command."""
    return cost_accelerator("simba-l", cache=tmp_path_factory.mktemp("cache"))


def chip(words: int | None = None) -> AnalyticModel:
    """simba-l with a shared buffer of its own size or of another."""
    accelerator = load_accelerator("simba-l")
    levels = (replace(level, words=words) if words and level.name == "GlobalBuffer" else level for level in accelerator.levels)
    return AnalyticModel(Mapper(replace(accelerator, levels=tuple(levels)), padding=True))


def block(hidden: int, inner: int, head: int, rank: int | None = None) -> Block:
    def matrix(rows: int, columns: int) -> tuple[MatrixSize, TensorSetting | None]:
        setting = None if rank is None else TensorSetting("low_rank", TensorShape.matrix(rows, columns), (rank,))
        return MatrixSize(rows, columns), setting

    square = matrix(hidden, hidden)
    return Block(square, square, square, square, matrix(inner, hidden), matrix(hidden, inner), head)


def least(flow: Flow) -> float:
    """The least EDP of all schedules: every set of values on chip, every number of tiles."""
    found = []
    for tiles in itertools.product(*flow.cuts.values()):
        for count in range(len(flow.between) + 1):
            for kept in itertools.combinations(flow.between, count):
                cost = flow.cost(Schedule(frozenset(kept), dict(zip(flow.runs, tiles, strict=True))))
                found += [] if cost is None else [cost.edp]
    return min(found)


@pytest.mark.parametrize("rank", [None, 8])
@pytest.mark.parametrize("words", [600, 1200, 2500, 6000])
def test_as_good_as_the_best_of_all(words: int, rank: int | None) -> None:
    """Attention and feed-forward network of a small block, with little room and with enough."""
    costs = chip(words)
    operations = block(32, 64, 16, rank).operations(costs, 16, 1)
    names = [operation.name for operation in operations]
    attention = names.index("scores Q·Kᵀ")
    network = next(place for place, name in enumerate(names) if name.startswith("widening"))
    for part in (operations[attention : attention + 4], operations[network - 1 :]):
        flow = Flow(part, costs.mapper)
        schedule, cost = flow.best()
        assert flow.fits(schedule) and cost.edp == pytest.approx(least(flow), rel=1e-9)


def test_without_room_it_is_the_sum_of_its_layers() -> None:
    """A buffer in which nothing can wait; with a large one only weights, the first and the last state cross to DRAM."""
    apart, together = chip(300), chip(2**24)
    operations = block(64, 256, 32).operations(apart, 32, 1)
    _, cost = Flow(operations, apart.mapper).best()
    alone = 0.0
    for operation in operations:
        gemm = operation.tile(1)
        ways = (gemm, replace(gemm, M=gemm.N, N=gemm.M)) if gemm.N == gemm.batch == 1 else (gemm,)
        alone += min((cost_gemm(way, apart.mapper) for way in ways), key=lambda own: own.edp).energy_pJ
    assert cost.energy_pJ == pytest.approx(alone, rel=0.02)
    everything = Flow(operations, together.mapper)
    schedule, cost = everything.best()
    assert {"scores", "context", "middle", "active", "outer"} <= schedule.kept
    moved = cost.accesses["DRAM"]
    words = 4 * 64 * 64 + 2 * 64 * 256  # weights
    assert sum(moved["weights"].values()) >= words
    assert sum(moved["outputs"].values()) <= 3 * 32 * 64, "the block's result, and keys and values, which are read as weights"


def test_what_waits_takes_room() -> None:
    """Two values of 40 words in a buffer of 100 leave no room for a third."""
    operations = [
        Operation("a", Gemm(40, 1, 8), (), "", "a"),
        Operation("b", Gemm(40, 1, 8), (), "", "b"),
        Operation("c", Gemm(40, 1, 8), (), "", "c"),
        Operation("all", Gemm(40, 1, 3), ("a", "b", "c"), "", "d"),
    ]
    flow = Flow(operations, chip(100).mapper)
    assert flow.fits(Schedule(frozenset("ab"), {})) and not flow.fits(Schedule(frozenset("abc"), {}))
    assert Flow(operations, chip(200).mapper).best()[0].kept == frozenset("abc")


def test_what_is_carried_stays_or_is_refused() -> None:
    operations = block(32, 64, 16).operations(chip(), 16, 1)
    with pytest.raises(MisfitError, match="x, y cannot stay on chip"):
        Flow(operations, chip(500).mapper, {"x": 512, "y": 512}).best()
    schedule, _ = Flow(operations, chip().mapper, {"x": 512, "y": 512}).best()
    assert {"x", "y"} <= schedule.kept


@pytest.mark.parametrize("family", LIKE_BERT)
def test_every_family_like_bert(family: str, costs: AnalyticModel) -> None:
    """Fused never costs more than layer by layer, and a factorized model less than the dense one."""
    model = small_model(family, head=False)
    factorize(model, HeatConfig(sequence_length=16, rank=3))
    now, dense = fused_model(model, costs, 16)
    apart = model_cost(model, costs, 16, 1, ("attention", "elementwise"))
    assert now.total.edp < apart.total.edp and dense.total.edp < apart.dense.edp
    assert sum(kind.count for kind in now.kinds) == model.config.num_hidden_layers
    assert now.total.energy_pJ < dense.total.energy_pJ


@pytest.mark.parametrize("family", ["modernbert", "deberta-v2", "mpnet"])
def test_others_are_refused(family: str, costs: AnalyticModel) -> None:
    with pytest.raises(ValueError, match=f"the blocks of {family} are not laid out like BERT's"):
        fused_model(small_model(family, head=False), costs, 16)


def test_blocks_that_are_alike_are_mapped_once() -> None:
    costs = chip()
    fused = fused_cost([block(32, 64, 16)] * 4, costs, 16, 1)
    assert sorted(kind.count for kind in fused.kinds) == ([1, 1, 2] if fused.carried else [4])
    assert fused.total.energy_pJ == pytest.approx(sum(kind.count * kind.cascade.energy_pJ for kind in fused.kinds))


def test_the_command(tmp_path: Path, costs: AnalyticModel, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model("bert", head=False)
    factorize(model, HeatConfig(sequence_length=16, rank=3))
    model.save_pretrained(tmp_path / "model")
    given = ["cost", str(tmp_path / "model"), "--sequence-length", "16", "--whole-blocks", "--cache", str(costs.mapper.cache)]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert "blocks, fused" in text and "dense blocks, fused" in text and "softmax" in text
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["whole_blocks"]
    now, _ = fused_model(tmp_path / "model", costs, 16)
    assert isinstance(now, FusedModel) and found["edp_J_s"] == pytest.approx(now.total.edp)
    assert sum(kind["blocks"] for kind in found["kinds"]) == len(blocks_of(*outline(tmp_path / "model")))
    assert main(["cost", "--gemm", "4x4x4", "--whole-blocks"]) == 2
    assert "--whole-blocks needs a MODEL" in capsys.readouterr().err
    assert main([*given, "--unfused"]) == 2
    assert "give one of them" in capsys.readouterr().err
