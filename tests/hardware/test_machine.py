"""The machine at hand as a cost model: what is measured and kept, what follows, and that searches obey it. No clock is read."""

from __future__ import annotations

import logging
import pickle
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clock import Clock
from conftest import small_model, token_ids

import heat_hf.hardware.machine.model as machine
from heat_hf import HeatConfig, TensorSetting, TensorShape
from heat_hf.encoders.between import between
from heat_hf.encoders.linears import encoder_linears, kind_of
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import Gemm, cost_model
from heat_hf.hardware.between import Between
from heat_hf.hardware.cost import NoGainError
from heat_hf.hardware.machine import MachineModel
from heat_hf.hardware.machine.curve import UNIT, Curve
from heat_hf.hardware.machine.measuring import Timing, beside, measure
from heat_hf.hardware.machine.runtimes import RUNTIMES, has_bfloat16
from heat_hf.search.ranks.groups import fits
from heat_hf.search.ranks.space import Costs, Matrix, undominated
from heat_hf.search.ranks.widths import narrowed
from heat_hf.search.shapes.search import ShapeSearch, search_shapes

SIZE, TOKENS = MatrixSize(384, 384), 128
BATCHES = [{"input_ids": token_ids(24, 6)}]


def low_rank(rank: int, size: MatrixSize = SIZE, format: str = "low_rank") -> TensorSetting:
    return TensorSetting(format, TensorShape.matrix(*size), (rank,))


def model(folder: Path, clock: Clock | None = None, **options: Any) -> MachineModel:
    return MachineModel(cache=folder, measure=clock or Clock(), threads=1, **options)


@pytest.mark.parametrize("format", ["low_rank", "pivoted", "fewer_outputs", "fewer_inputs", "shared_basis", "on_basis"])
@pytest.mark.parametrize("rank", [16, 48, 112, 160])
def test_ranks_between_measured_ones(format: str, rank: int, tmp_path: Path) -> None:
    clock, setting = Clock(), low_rank(rank, format=format)
    mine = model(tmp_path, clock)
    dense = mine.linear(SIZE, TOKENS).seconds
    assert dense == pytest.approx(clock.seconds(SIZE, TOKENS))
    assert mine.share(setting, TOKENS) * dense == pytest.approx(clock.seconds(setting, TOKENS), rel=0.03)
    assert mine.linear(SIZE, TOKENS).energy_pJ is None


def test_ranks_off_the_unit_take_longer(tmp_path: Path) -> None:
    mine = model(tmp_path)
    assert mine.share(low_rank(60), TOKENS) == pytest.approx(Clock().seconds(low_rank(60), TOKENS) / 1.8974e-5, rel=0.05)
    assert mine.share(low_rank(60), TOKENS) > mine.share(low_rank(64), TOKENS)
    assert mine.units == (UNIT,)


def test_several_ranks_by_their_work(tmp_path: Path) -> None:
    clock, mine = Clock(), model(tmp_path)
    setting = TensorSetting("tucker", TensorShape.parse("384:16x24", 384, 384), (96, 10, 12), "contract")
    near = mine.share(setting, TOKENS) * clock.seconds(SIZE, TOKENS)
    assert near == pytest.approx(clock.seconds(setting, TOKENS), rel=0.4)


def test_shapes_that_gain_nowhere_are_measured_once(tmp_path: Path) -> None:
    setting = TensorSetting("tucker", TensorShape.parse("384:16x24", 384, 384), (96, 10, 12))
    for slow, count in ((1.0, 4), (99.0, 1)):
        clock = Clock(slow=slow)
        model(tmp_path / str(count), clock).share(setting, TOKENS)
        assert len({what for what, _ in clock.measured if isinstance(what, TensorSetting)}) == count


def test_a_time_never_falls_with_the_rank() -> None:
    curve = Curve((10, 20, 30, 40), (0.1, 0.3, 0.2, 0.4), 1.0, 0.0)
    assert [curve.of_work(work) for work in (5, 10, 20, 30, 35, 80)] == pytest.approx([0.1, 0.1, 0.25, 0.25, 0.325, 0.8])


def test_a_race_that_was_disturbed_is_run_again() -> None:
    """The peer is timed twice; times that are far apart are nobody's fault, and do not count."""
    clock, races = Clock(), [3.0, 1.02]

    def disturbed(subjects: Sequence[Any]) -> list[Timing]:
        first, *others = clock(subjects)
        slower = races.pop(0)
        return [Timing(*(slower * seconds for seconds in first)), *others]

    ratios, rough = beside((SIZE, TOKENS), [(low_rank(64), TOKENS)], disturbed)
    assert ratios == [pytest.approx(clock.seconds(low_rank(64), TOKENS) / clock.seconds(SIZE, TOKENS) / 1.02**0.5)]
    assert not races and rough == pytest.approx(0.07), "the spread"
    races += [3.0, 2.0, 4.0]
    assert beside((SIZE, TOKENS), [(low_rank(64), TOKENS)], disturbed)[1] == pytest.approx(0.693, abs=1e-3), "the calmest"


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    clock = Clock()
    first = model(tmp_path, clock)
    figures = [first.linear(SIZE, TOKENS), *(first.setting(low_rank(rank), TOKENS) for rank in (16, 32, 100))]
    digest, count = first.digest, len(clock.measured)
    assert count < 25, "one race for each format, one for the dense layer, one for the series"

    def never(subjects: Sequence[Any]) -> list[Timing]:
        raise AssertionError("measured again")

    again = model(tmp_path, never)  # type: ignore[arg-type]
    assert [again.linear(SIZE, TOKENS), *(again.setting(low_rank(rank), TOKENS) for rank in (16, 32, 100))] == figures
    assert again.digest == digest
    with pytest.raises(AssertionError, match="measured again"):
        again.linear(SIZE, 2 * TOKENS)


def test_two_at_once_keep_the_same_figures(tmp_path: Path) -> None:
    """Both measure before either has written; the first one's figures are those of both."""
    one, clock = model(tmp_path), Clock(product=3e-7)

    def measure_late(subjects: Sequence[Any]) -> list[Timing]:
        one.linear(SIZE, TOKENS)
        return clock(subjects)

    two = model(tmp_path, measure_late)  # type: ignore[arg-type]
    assert two.linear(SIZE, TOKENS) == one.linear(SIZE, TOKENS) and two.digest == one.digest and clock.measured


def test_digests_tell_series_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = model(tmp_path / "a")
    assert mine.digest == model(tmp_path / "a").digest == model(tmp_path / "b").digest, "the same figures"
    digests = {mine.digest, model(tmp_path / "c", Clock(product=2e-7)).digest}
    digests.add(MachineModel(cache=tmp_path / "a", measure=Clock(), threads=2).digest)
    monkeypatch.setattr(machine, "device", lambda: {"device": "another", "cores": 1})
    digests.add(model(tmp_path / "a").digest)
    assert len(digests) == 4


def test_another_version_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    model(tmp_path, clock).linear(SIZE, TOKENS)
    before = len(clock.measured)
    monkeypatch.setattr(type(RUNTIMES["torch"]), "version", lambda self, precision: "9.9")
    model(tmp_path, clock).linear(SIZE, TOKENS)
    assert len(clock.measured) == 2 * before


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    model(tmp_path).setting(low_rank(16), TOKENS)
    (file,) = tmp_path.glob("machine-*")
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE texts SET text = '{\"works\": []' WHERE key LIKE '%low_rank%'")
    with pytest.raises(OSError, match=r"machine-4.sqlite is damaged at 'low_rank .*': delete it"):
        model(tmp_path).setting(low_rank(16), TOKENS)
    file.write_bytes(b"no database" * 100)
    with pytest.raises(OSError, match=r"machine-4.sqlite cannot be used \(file is not a database\): delete it"):
        model(tmp_path)
    file.unlink()
    assert model(tmp_path).setting(low_rank(16), TOKENS)
    with pytest.raises(OSError, match="cannot keep anything in"):
        model(file / "below")


def test_what_is_no_faster_is_a_misfit(tmp_path: Path) -> None:
    mine = model(tmp_path)
    assert mine.setting(low_rank(96), TOKENS).seconds < mine.linear(SIZE, TOKENS).seconds
    with pytest.raises(
        NoGainError, match=r"low_rank 384:384 of rank 192 takes 1.0. of the dense layer's time on cpu \(torch\)"
    ):
        mine.setting(low_rank(192), TOKENS)
    with pytest.raises(NoGainError):
        model(tmp_path / "slow", Clock(slow=9)).setting(low_rank(96), TOKENS)


def test_what_is_shared_gains_together(tmp_path: Path) -> None:
    """The first of three on a basis takes longer than the dense layer, and all three may take less than three."""
    names = ("shared_basis", "on_basis", "on_basis")
    costs = Costs({name: Matrix(SIZE) for name in "qkv"}, TOKENS, model(tmp_path))
    group = [tuple(low_rank(rank, format=name) for name in names) for rank in (224, 320)]
    shared = group[0][0]
    assert costs.one_run("q", shared).seconds > costs.one_run("q", None).seconds  # type: ignore[union-attr]
    assert [fits(costs, ("q", "k", "v"), own) for own in group] == [True, False]


def test_options_slower_than_dense_are_left_out(tmp_path: Path) -> None:
    costs = Costs({"a": Matrix(SIZE)}, TOKENS, model(tmp_path))
    kept = undominated(costs, "a", [(low_rank(64), 0.5), (low_rank(192), 0.1), (None, 0.0)])
    assert [own for own, _ in kept] == [low_rank(64), None], "192 has fewer parameters than dense, and no less time"


GELU, ATTENTION = Between(96, 1, "gelu", 4, 32), Between(12, 32, "", 4, 32)


@pytest.mark.parametrize(("work", "kept"), [(GELU, 40), (ATTENTION, 5)])
def test_what_is_between_matrices_counts_with_its_reader(work: Between, kept: int, tmp_path: Path) -> None:
    """All of it beside a dense or a factorized matrix, and of a narrower one what is left; nothing on a described chip."""
    clock, size = Clock(product=1e-9), MatrixSize(48, work.features)
    (setting,) = narrowed([size], kept * work.size)
    alone, counted = (Costs({"reader": Matrix(size, reads=reads)}, TOKENS, model(tmp_path, clock)) for reads in (None, work))
    for own, units in ((None, work.units), (low_rank(16, size), work.units), (setting, kept)):
        more = counted.one_run("reader", own).seconds - alone.one_run("reader", own).seconds  # type: ignore[union-attr]
        assert more == pytest.approx(clock.seconds(replace(work, units=units), TOKENS), rel=1e-6)
    assert {type(what) for what, _ in clock.measured} >= {Between}
    chip = Costs({"reader": Matrix(size, reads=work)}, TOKENS, cost_model("simba-l"))
    assert chip.one_run("reader", setting) == chip.model.setting(setting, TOKENS)  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "modernbert"])
def test_where_models_work_between_matrices(family: str) -> None:
    encoder = small_model(family)
    linears = encoder_linears(encoder)
    found = between(encoder, linears, 2, 16)
    kinds = {kind_of(name): (own.activation, own.features == linears[name].in_features) for name, own in found.items()}
    attention, reader, activation = {
        "bert": ("attention.output.dense", "output.dense", "gelu"),
        "distilbert": ("attention.out_lin", "ffn.lin2", "gelu"),
        "albert": ("albert_layers.0.attention.dense", "albert_layers.0.ffn_output", "gelu_new"),
        "modernbert": ("", "", ""),
    }[family]
    assert kinds == ({attention: ("", True), reader: (activation, True)} if reader else {})


def test_searches_of_shapes_leave_them_out(tmp_path: Path) -> None:
    encoder, few = small_model("bert", head=False), ShapeSearch(formats=("low_rank", "cp"), orders=(2,), budgets=4)
    table = search_shapes(encoder, model(tmp_path, Clock(slow=99, product=1e-9, format="cp")), 32, few)
    assert {candidate.format for candidate in table.candidates} == {"low_rank"}
    for candidate in table.candidates:
        assert candidate.seconds < table.sizes[candidate.size].dense_seconds and candidate.energy_pJ is None
    with pytest.raises(
        ValueError, match=r"cannot be pickled for other processes: use workers=1 \(it measures, and must be alone"
    ):
        search_shapes(encoder, model(tmp_path), 32, few, workers=2)
    with pytest.raises(TypeError):
        pickle.dumps(model(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tflite"}, "runtime must be one of torch, "),
        ({"precision": "int4"}, "precision must be one of float32, bfloat16, int8, got 'int4'"),
        ({"precision": "int8"}, "precision must be float32 or bfloat16 with runtime='torch', got 'int8'"),
        ({"accelerator": "simba-l", "runtime": "onnxruntime"}, "runtime='onnxruntime' needs accelerator='cpu', got 'simba-l'"),
        ({"accelerator": None, "runtime": "onnxruntime"}, "runtime='onnxruntime' needs accelerator='cpu', got 'None'"),
    ],
)
def test_what_cannot_be_measured(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeatConfig(**{"rank": 4, "accelerator": "cpu", **options})
    with pytest.raises(ValueError, match=r"must be|needs accelerator"):
        cost_model(**{"accelerator": "cpu", **options})


def test_a_runtime_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(RUNTIMES["openvino"]), "package", "no-such-package")
    with pytest.raises(ImportError, match=r"runtime='openvino' needs no-such-package: pip install 'heat-hf\[openvino\]'"):
        cost_model("cpu", tmp_path, runtime="openvino")
    monkeypatch.setattr(type(RUNTIMES["openvino"]), "package", "torch")
    monkeypatch.setattr(type(RUNTIMES["openvino"]), "quantizer", "no-such-quantizer")
    with pytest.raises(ImportError, match=r"runtime='openvino' needs no-such-quantizer: pip install 'heat-hf\[openvino\]'"):
        cost_model("cpu", tmp_path, runtime="openvino", precision="int8")
    assert cost_model("cpu", tmp_path, runtime="openvino").fingerprint["version"] == torch.__version__


def test_a_precision_without_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heat_hf.hardware.machine.runtimes.has_bfloat16", lambda: True)
    assert cost_model("cpu", tmp_path, precision="bfloat16").name == "cpu (torch bfloat16)"
    monkeypatch.setattr("heat_hf.hardware.machine.runtimes.has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="precision='bfloat16' needs a CPU with instructions for it"):
        cost_model("cpu", tmp_path, precision="bfloat16")
    assert HeatConfig(rank=4, accelerator="cpu", precision="bfloat16").precision == "bfloat16", "a plan of another machine"


def test_products_and_plans_are_dense_layers(tmp_path: Path) -> None:
    mine, plan = model(tmp_path), low_rank(32).plan(TOKENS)
    assert mine.gemm(Gemm(TOKENS, *SIZE)) == mine.linear(SIZE, TOKENS)
    assert mine.gemm(Gemm(TOKENS, *SIZE, 3)).seconds == pytest.approx(3 * mine.linear(SIZE, TOKENS).seconds)
    assert mine.plan(plan).seconds == pytest.approx(Clock().seconds(low_rank(32), TOKENS), rel=0.1)


def test_it_says_what_it_measures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        model(tmp_path).linear(SIZE, TOKENS)
    assert "measuring dense 384x384 128 on cpu (torch)" in caplog.text


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_real_measurement(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every format; all that can be said of a clock is that it goes on."""
    pytest.importorskip(RUNTIMES[runtime].package)
    monkeypatch.setattr("heat_hf.hardware.machine.measuring.MOST_REPEATS", 2)
    monkeypatch.setattr("heat_hf.hardware.machine.measuring.LEAST_REPEATS", 2)
    size, threads = MatrixSize(64, 48), torch.get_num_threads()
    formats = ["low_rank", "pivoted", "fewer_outputs", "fewer_inputs", "shared_basis", "on_basis"]
    settings: list[Any] = [low_rank(16, size, format) for format in formats]
    settings += [TensorSetting("cp", TensorShape.parse("64:6x8", 64, 48), (8,))]
    settings += [Between(32, 1, "gelu", 2, 4), Between(4, 16, "", 2, 4)]
    for precision in RUNTIMES[runtime].precisions:
        if precision == "bfloat16" and runtime != "torch" and not has_bfloat16():
            continue
        if precision == "int8" and RUNTIMES[runtime].quantizer:
            pytest.importorskip(RUNTIMES[runtime].quantizer)
        timings = measure([(one, 8) for one in [size, *settings]], runtime, precision, threads=1)
        assert all(0 < timing.lower <= timing.median <= timing.upper and timing.spread >= 0 for timing in timings)
    assert torch.get_num_threads() == threads
