"""A bench of small models: all ways run, are scored as `heat-hf evaluate` does, and compared by times that a test makes up."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import heat_hf.integrations.bench as bench_module
from heat_hf import HeatCompressor, HeatConfig
from heat_hf.cli import main
from heat_hf.hardware.machine.race import race
from heat_hf.hardware.machine.runtimes import RUNTIMES, has_bfloat16
from heat_hf.integrations.bench import Way, ways
from heat_hf.integrations.memory import peak_memory
from heat_hf.integrations.precision import in_int8
from heat_hf.reports.bench import Pass

NO_BFLOAT16 = "bfloat16: this CPU has no instructions for it"
Calls = Mapping[str, Callable[[], Any]]


class Track:
    """Runs every contestant once, and then says what each took: the first 4 s, the second 2 s, the third 1 s, and so on."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, calls: Calls, repeats: int, rounds: object) -> dict[str, list[float]]:
        shapes = {tuple(call().logits.shape) for call in calls.values()}
        (shape,) = shapes
        self.shapes.append(shape)
        return {name: [4.0 / 2**number * (1 + i) for i in range(repeats)] for number, name in enumerate(calls)}


@pytest.fixture
def track(monkeypatch: pytest.MonkeyPatch) -> Track:
    own = Track()
    monkeypatch.setattr(bench_module, "race", own)
    return own


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Says whether the CPU has instructions for it; until told otherwise it has none."""

    def say(found: bool) -> None:
        monkeypatch.setattr(bench_module, "has_bfloat16", lambda: found)

    say(False)
    return say


@pytest.fixture
def only_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no other runtime were installed."""
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setattr(type(RUNTIMES[name]), "package", f"no-{name}")


def heat(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "heat"
    HeatCompressor.from_pretrained(str(checkpoint)).compress(HeatConfig(target_params_ratio=0.5), save_directory=folder)
    return folder


def found(line: list[object], capsys: Any) -> dict[str, Any]:
    assert main(["bench", *map(str, line), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_dense_and_compressed_in_every_way(checkpoint: Path, track: Track, capsys: Any, monkeypatch: Any) -> None:
    pytest.importorskip("onnxruntime")
    place, folder, data = checkpoint.parent, heat(checkpoint), checkpoint.parent / "labels.csv"
    before = {own.name for own in place.iterdir()}
    line: list[object] = [
        checkpoint,
        folder,
        "--runtimes",
        "torch",
        "onnxruntime",
        "--batch-size",
        1,
        3,
        "--sequence-length",
        5,
    ]
    line += ["--task", "text-classification", "--data", data, "--output", place / "out", "--repeats", 3, "--threads", 1]
    asked: list[tuple[Any, ...]] = []

    def peak(*what: Any) -> int:
        asked.append((*what[:2], what[2].is_dir(), *what[3:]))
        return len(asked)

    monkeypatch.setattr(bench_module, "peak_memory", peak)
    result = found([*line, "--memory"], capsys)
    ways = [("torch", "float32"), ("torch", "int8"), ("onnxruntime", "float32"), ("onnxruntime", "int8")]
    entries = result["entries"]
    assert [(own["model"], own["runtime"], own["precision"]) for own in entries] == [
        (str(model), *way) for model in (checkpoint, folder) for way in ways
    ]
    assert track.shapes == [(1, 2), (3, 2)]
    assert asked == [(*way, True, [(1, 5, 1), (3, 5, 1)]) for way in ways] * 2, "every model is in a folder still"
    assert [own["memory"] for own in entries] == list(range(1, 9))
    assert [own["times"][1]["ratio"] for own in entries] == [2.0**-number for number in range(8)]
    assert [own["times"][0]["seconds"] for own in entries] == [8.0 * 2.0**-number for number in range(8)]
    sizes = [own["bytes"] for own in entries]
    assert sizes[3] < 0.5 * sizes[2]
    assert sizes[1] < sizes[0]
    for model, first in ((checkpoint, entries[0]), (folder, entries[4])):
        assert main(["evaluate", str(model), "--task", "text-classification", "--data", str(data), "--json"]) == 0
        assert first["score"] == json.loads(capsys.readouterr().out)[str(model)]["accuracy"]
    assert result["rows"] == 4 and result["threads"] == [1] and set(result["versions"]) == {"torch", "onnxruntime"}
    assert json.loads((place / "out" / "bench.json").read_text()) == result
    assert (place / "out" / "bench.png").is_file()
    assert {own.name for own in place.iterdir()} == before | {"out"}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says it")
def test_memory_is_what_a_model_adds(checkpoint: Path) -> None:
    """More for longer inputs, whose attention has more to hold; nothing is known of what cannot be loaded."""
    few, many = (peak_memory("torch", "float32", checkpoint, [Pass(size, 32)]) for size in (1, 4096))
    assert few is not None and many is not None and 0 < few < many - 4096 * 32 * 24 * 4
    assert peak_memory("torch", "float32", checkpoint / "nowhere", [Pass(1, 32)]) is None


def test_openvino_runs_beside_the_others(checkpoint: Path, track: Track, capsys: Any) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'heat-hf[openvino]'")
    line: list[object] = [checkpoint, "--runtimes", "openvino", "torch", "--sequence-length", 4, "--batch-size", 2]
    result = found([*line, "--precisions", "float32"], capsys)
    assert [own["runtime"] for own in result["entries"]] == ["torch", "openvino"]
    assert result["left_out"] == []
    assert result["use"][0]["by"] == f"heat-hf export {checkpoint} --runtime openvino --output DIR"
    assert track.shapes == [(2, 2)]


def test_openvino_int8_is_calibrated_or_left_out(checkpoint: Path, track: Track, capsys: Any) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed: pip install 'heat-hf[openvino]'")
    line: list[object] = [checkpoint, "--runtimes", "openvino", "--sequence-length", 4, "--batch-size", 2]
    result = found(line, capsys)
    assert result["left_out"] == [NO_BFLOAT16, "openvino int8: needs --calibration-file"]
    result = found([*line, "--calibration-file", checkpoint.parent / "sentences.txt"], capsys)
    assert [own["precision"] for own in result["entries"]] == ["float32", "int8"]
    assert result["entries"][1]["bytes"] < 0.5 * result["entries"][0]["bytes"]


def test_what_is_not_installed_is_named(only_torch: None, checkpoint: Path, track: Track, capsys: Any) -> None:
    assert main(["bench", str(checkpoint), "--sequence-length", "4"]) == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("left out: "))
    assert "pip install 'heat-hf[onnx]'" in line and "pip install 'heat-hf[openvino]'" in line
    assert "torch int8" in out and "for 1 × 4, 8 × 4: dense in torch int8, 0.50, 0.50 of the time" in out
    assert main(["bench", str(checkpoint), "--runtimes", "openvino"]) == 2
    assert "needs no-openvino: pip install" in capsys.readouterr().err


def test_ways(only_torch: None) -> None:
    assert ways(None, ["float32"])[0] == [Way("torch", "float32")]
    assert ways(["torch"], None) == ([Way("torch", "float32"), Way("torch", "int8")], [NO_BFLOAT16])
    with pytest.raises(ValueError, match=f"leave nothing to run: {NO_BFLOAT16}"):
        ways(["torch"], ["bfloat16"])
    with pytest.raises(ValueError, match="--precisions bfloat16: onnxruntime does not run in it"):
        ways(["onnxruntime"], ["bfloat16"])


def test_bfloat16_in_pytorch(
    only_torch: None, checkpoint: Path, track: Track, bfloat16: Callable[[bool], None], capsys: Any
) -> None:
    bfloat16(True)
    line: list[object] = [heat(checkpoint), "--task", "text-classification", "--data", checkpoint.parent / "labels.csv"]
    result = found([*line, "--sequence-length", 4, "--batch-size", 2, "--precisions", "bfloat16", "float32"], capsys)
    single, half = result["entries"]
    assert (single["precision"], half["precision"]) == ("float32", "bfloat16") and half["score"] is not None
    assert half["bytes"] < 0.6 * single["bytes"]
    assert result["use"][0]["by"] == "model.bfloat16()"


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no instructions for bfloat16")
def test_bfloat16_in_openvino(checkpoint: Path, bfloat16: Callable[[bool], None], monkeypatch: Any, capsys: Any) -> None:
    """The same file, other figures; memory is measured of it, too."""
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'heat-hf[openvino]'")
    bfloat16(True)
    said: list[torch.Tensor] = []

    def look(calls: Calls, repeats: int, rounds: object) -> dict[str, list[float]]:
        said.extend(call().logits for call in calls.values())
        return {name: [2.0 - number] * repeats for number, name in enumerate(calls)}

    monkeypatch.setattr(bench_module, "race", look)
    line: list[object] = [checkpoint, "--runtimes", "openvino", "--precisions", "bfloat16", "float32", "--memory"]
    result = found([*line, "--sequence-length", 8, "--batch-size", 2], capsys)
    assert [own["precision"] for own in result["entries"]] == ["float32", "bfloat16"]
    assert all(own["memory"] for own in result["entries"])
    assert 0 < float((said[0] - said[1]).abs().max()) < 0.05
    assert result["use"][0]["by"].endswith("--runtime openvino --output DIR, then OpenVinoModel(DIR, bfloat16=True)")


def test_linears_of_low_rank_multiply_in_int8(checkpoint: Path) -> None:
    model = transformers.AutoModel.from_pretrained(heat(checkpoint)).eval()
    ids = torch.arange(1, 7)[None]
    small = in_int8(model)
    with torch.inference_mode():
        apart = float((small(input_ids=ids)[0] - model(input_ids=ids)[0]).abs().max())
    assert 0 < apart < 0.1
    assert {type(own).__module__ for name, own in small.named_modules() if name.endswith(".left")} == {
        "torch.ao.nn.quantized.dynamic.modules.linear"
    }


def test_each_runtime_is_opened_with_each_number_of_threads(checkpoint: Path, monkeypatch: Any, capsys: Any) -> None:
    kind = pytest.importorskip("heat_hf.integrations.onnx").OnnxModel
    opened, own, raced = [], kind._open, []

    def look(calls: Calls, repeats: int, rounds: object) -> dict[str, list[float]]:
        raced.append((torch.get_num_threads(), [call().logits.shape for call in calls.values()]))
        return {name: [1.0] * repeats for name in calls}

    def note(model: Any, path: Path, threads: int | None, bfloat16: bool) -> None:
        opened.append(threads)
        own(model, path, threads, bfloat16)

    monkeypatch.setattr(kind, "_open", note)
    monkeypatch.setattr(bench_module, "race", look)
    line: list[object] = [checkpoint, "--runtimes", "torch", "onnxruntime", "--precisions", "float32", "--threads", 2, 1, 2]
    result = found([*line, "--batch-size", 3, "--sequence-length", 4], capsys)
    assert opened == [None, 2, 1], "to check the export, and then each"
    assert raced == [(2, [(3, 2)] * 2), (1, [(3, 2)] * 2)]
    assert result["threads"] == [2, 1]
    assert [[time["threads"] for time in entry["times"]] for entry in result["entries"]] == [[2, 1]] * 2


def test_threads_are_given_back(checkpoint: Path, only_torch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def look(calls: Calls, repeats: int, rounds: object) -> dict[str, list[float]]:
        counts.append(torch.get_num_threads())
        return {name: [1.0, 1.0] for name in calls}

    monkeypatch.setattr(bench_module, "race", look)
    before = torch.get_num_threads()
    command = ["bench", str(checkpoint), "--threads", str(before + 1), "--sequence-length", "4", "--batch-size", "1"]
    assert main(command) == 0
    assert counts == [before + 1] and torch.get_num_threads() == before


def test_rounds_go_through_a_progress_bar() -> None:
    seen: list[range] = []

    def watched(rounds: range) -> Any:
        seen.append(rounds)
        return rounds

    assert [len(own) for own in race({"a": int, "b": int}, 3, watched).values()] == [3, 3]
    assert seen == [range(5)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{model} --runtimes tensorrt", "must be one of torch, onnxruntime, openvino, got 'tensorrt'"),
        ("{model} --precisions int4", "--precisions must be of float32, bfloat16, int8, got 'int4'"),
        ("{model} --batch-size 0", "--batch-size: must be a whole number from 1"),
        ("{model} --sequence-length 4 -3", "--sequence-length: must be a whole number from 1"),
        ("{model} --sequence-length 4 513", "--sequence-length must be at most 512, the positions of {model}, got 513"),
        ("{model} --data {data}", "--task and --data go together"),
        ("{model} --task text-classification", "--task and --data go together"),
        ("{model} --task chess --data {data}", "unknown task 'chess'"),
        ("{model} --task text-classification --data {model}/no.csv", "no data file"),
        ("{model} --task sentence-similarity --data {data}", "no column 'sentence1'"),
        ("{model} {model}", "MODEL must be named once each"),
        ("{model} {model}/nowhere", "nowhere"),
        ("{model} --output {model}", "is not empty; pass overwrite"),
        ("{model} --calibration-file {model}/no.txt", "no data file"),
        ("{model} --repeats 1", "--repeats: must be a whole number from 2"),
    ],
)
def test_bad_input_is_told_before_any_work(
    only_torch: None, checkpoint: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    names = {"model": checkpoint, "data": checkpoint.parent / "labels.csv"}
    before = sorted(checkpoint.parent.rglob("*"))
    assert main(["bench", *line.format(**names).split()]) == 2
    captured = capsys.readouterr()
    assert message.format(**names) in captured.err and len(captured.err.splitlines()) == 1
    assert not captured.out and sorted(checkpoint.parent.rglob("*")) == before


def test_a_failure_leaves_nothing(only_torch: None, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no more")

    monkeypatch.setattr(bench_module, "race", fail)
    before = sorted(checkpoint.parent.rglob("*"))
    assert main(["bench", str(checkpoint), "--output", str(checkpoint.parent / "out"), "--sequence-length", "4"]) == 2
    assert "no more" in capsys.readouterr().err
    assert sorted(checkpoint.parent.rglob("*")) == before


def test_half_precision_is_timed_in_single(only_torch: None, checkpoint: Path, track: Track, capsys: Any) -> None:
    transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).half().save_pretrained(checkpoint)
    result = found([checkpoint, "--precisions", "float32", "--sequence-length", 4], capsys)
    (entry,) = result["entries"]
    assert entry["bytes"] > 1.9 * (checkpoint / "model.safetensors").stat().st_size
