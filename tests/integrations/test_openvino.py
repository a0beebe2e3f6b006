"""Exports of a small model: what OpenVINO computes is what the model computes, and its folder is served like any other."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import SENTENCES

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.cli import main
from heat_hf.integrations.exported import EXPORTED, load_exported
from heat_hf.integrations.onnx import OnnxModel
from heat_hf.integrations.openvino import OpenVinoModel, export_openvino

FILES = {"openvino_model.xml", "openvino_model.bin"}


@pytest.fixture
def openvino() -> Any:
    return pytest.importorskip("openvino", reason="openvino is not installed: pip install 'heat-hf[openvino]'")


@pytest.fixture
def compressed(checkpoint: Path) -> Path:
    """A classifier of low rank."""
    folder = checkpoint.parent / "heat"
    HeatCompressor.from_pretrained(str(checkpoint)).compress(HeatConfig(target_params_ratio=0.5), save_directory=folder)
    return folder


def outputs(folder: Path, inputs: Any) -> torch.Tensor:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("kind", ["dense", "heat"])
def test_the_command_writes_what_openvino_runs_at_any_size(
    openvino: Any, checkpoint: Path, compressed: Path, kind: str, capsys: Any
) -> None:
    folder, out = checkpoint.parent / kind, checkpoint.parent / "exported"
    assert main(["export", str(folder), "--runtime", "openvino", "--output", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["file"]) == out / "openvino" / "openvino_model.xml"
    assert found["runtime"] == "openvino" and not found["int8"]
    written = list((out / "openvino").iterdir())
    assert {file.name for file in written} == FILES
    assert found["bytes"] == sum(file.stat().st_size for file in written)
    weights = sum(own.stat().st_size for own in folder.glob("*.safetensors"))
    assert found["bytes"] > 0.9 * weights  # float32, not half
    exported = load_exported(out)
    assert isinstance(exported, OpenVinoModel)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    for texts in (SENTENCES[:1], SENTENCES):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        torch.testing.assert_close(exported(**inputs).logits, outputs(folder, inputs), atol=1e-5, rtol=1e-4)


def test_evaluate_scores_the_folder(openvino: Any, compressed: Path, capsys: Any) -> None:
    out, place = compressed.parent / "exported", compressed.parent
    assert main(["export", str(compressed), "--runtime", "openvino", "--output", str(out)]) == 0
    command = ["evaluate", str(out), "--task", "text-classification", "--data", str(place / "labels.csv"), "--json"]
    capsys.readouterr()
    assert main([*command, "--baseline", str(compressed)]) == 0
    exported, plain = json.loads(capsys.readouterr().out).values()
    assert exported["accuracy"] == plain["accuracy"]


def test_a_sentence_encoder_has_its_modules_beside_it(openvino: Any, minilm: str, tmp_path: Path) -> None:
    model, tokenizer = transformers.AutoModel.from_pretrained(minilm), transformers.AutoTokenizer.from_pretrained(minilm)
    path = export_openvino(model, tokenizer, tmp_path / "out")
    assert path == tmp_path / "out" / OpenVinoModel.file
    assert {"modules.json", "config.json", "tokenizer.json", "1_Pooling"} <= {own.name for own in (tmp_path / "out").iterdir()}


def test_int8_is_calibrated(openvino: Any, compressed: Path, capsys: Any) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed: pip install 'heat-hf[openvino]'")
    small, single, sentences = (compressed.parent / name for name in ("small", "single", "sentences.txt"))
    command = ["export", str(compressed), "--runtime", "openvino", "--json", "--output"]
    assert main([*command, str(single)]) == 0
    whole = json.loads(capsys.readouterr().out)["bytes"]
    assert main([*command, str(small), "--int8", "--calibration-file", str(sentences)]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] < 0.5 * whole
    assert {file.name for file in (small / "openvino").iterdir()} == FILES
    inputs = transformers.AutoTokenizer.from_pretrained(small)(SENTENCES, padding=True, return_tensors="pt")
    found, wanted = OpenVinoModel(small)(**inputs).logits, outputs(compressed, inputs)
    assert 0 < float((found - wanted).abs().max()) < 0.1


def test_what_cannot_be_exported_leaves_nothing(openvino: Any, checkpoint: Path, capsys: Any, monkeypatch: Any) -> None:
    before, out = sorted(checkpoint.parent.rglob("*")), str(checkpoint.parent / "out")
    command = ["export", str(checkpoint), "--runtime", "openvino", "--output", out]
    assert main([*command, "--int8"]) == 2
    assert "int8 for OpenVINO needs rows of text: --calibration-file" in capsys.readouterr().err
    monkeypatch.setattr("heat_hf.integrations.exporting.TOLERANCE", 0.0)
    assert main(command) == 2
    assert "OpenVINO's logits differs from the model's" in capsys.readouterr().err
    assert sorted(checkpoint.parent.rglob("*")) == before


def test_another_runtime_is_refused(checkpoint: Path, capsys: Any) -> None:
    assert main(["export", str(checkpoint), "--runtime", "tensorrt", "--output", str(checkpoint.parent / "out")]) == 2
    assert "--runtime must be one of onnxruntime, openvino, got 'tensorrt'" in capsys.readouterr().err
    assert not (checkpoint.parent / "out").exists()


def test_without_the_package_it_says_what_to_install(checkpoint: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(["export", str(checkpoint), "--runtime", "openvino", "--output", str(checkpoint.parent / "out")]) == 2
    assert "exporting needs openvino: pip install 'heat-hf[openvino]'" in capsys.readouterr().err


def test_what_lies_in_a_folder_chooses_the_runtime(tmp_path: Path, monkeypatch: Any) -> None:
    assert load_exported(tmp_path) is None
    assert load_exported("nowhere/at/all") is None
    opened: list[Any] = []
    for kind in EXPORTED.values():
        monkeypatch.setattr(kind, "__init__", lambda self, folder, _: opened.append((type(self), folder)))
        path = tmp_path / kind.__name__ / kind.file
        path.parent.mkdir(parents=True)
        path.touch()
        load_exported(tmp_path / kind.__name__)
    assert opened == [(OnnxModel, tmp_path / "OnnxModel"), (OpenVinoModel, tmp_path / "OpenVinoModel")]


def test_a_folder_without_the_file_is_refused(openvino: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no openvino/openvino_model\.xml"):
        OpenVinoModel(tmp_path)


def test_bfloat16_is_refused_where_it_cannot_be(openvino: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match="bfloat16=True: ONNX Runtime does not compute in it on CPUs"):
        OnnxModel(tmp_path, bfloat16=True)
    monkeypatch.setattr("heat_hf.hardware.machine.runtimes.has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="needs a CPU with instructions for it"):
        OpenVinoModel(tmp_path, bfloat16=True)
