"""Exports of the real MiniLM: what ONNX Runtime and torch.export compute is what the model computes."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from conftest import small_model

import heat_hf
from heat_hf import HeatCompressor, HeatConfig
from heat_hf.cli import main
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.linears import BLOCKS, encoder_linears
from heat_hf.encoders.together import head_groups, narrowed
from heat_hf.evaluation.tasks.sentence_similarity import sentence_embeddings
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.machine.graphs import OPSET
from heat_hf.integrations.exporting import written
from heat_hf.integrations.onnx import OnnxModel, export_onnx

SENTENCES = ["A man is playing a guitar.", "Two dogs run along the beach while it rains.", "The market fell today.", "No."]


@pytest.fixture(scope="module")
def folder(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compressed MiniLM."""
    place = tmp_path_factory.mktemp("onnx") / "heat"
    HeatCompressor.from_pretrained(minilm).compress(HeatConfig(target_params_ratio=0.5), save_directory=place)
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return transformers.AutoModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_the_export_runs_in_onnx_runtime_at_any_size(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    path = export_onnx(model, tokenizer, tmp_path / "out")
    (opset,) = (own.version for own in onnx.load(path).opset_import if own.domain == "")
    assert opset == OPSET
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows, tokens in ((1, 1), (1, 9), (5, 3), (2, 200)):
        ids = torch.randint(1000, 2000, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        with torch.no_grad():
            wanted = model(**inputs).last_hidden_state.numpy()
        (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_model_with_fewer_heads_is_exported(minilm: str, tokenizer: Any, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    settings: dict[str, Any] = dict.fromkeys(encoder_linears(model))
    for block, (names, size) in enumerate(head_groups(model, settings).items()):
        sizes = [MatrixSize.of(model.get_submodule(name)) for name in names]
        settings |= zip(names, narrowed(sizes, (2 * block + 1) * size), strict=True)  # one of 12 heads to eleven
    batch = dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    factorize(model, HeatConfig(target_params_ratio=0.5, refine_steps=0), [batch], settings)
    with torch.no_grad():
        wanted = model(**batch).last_hidden_state.numpy()
    path = export_onnx(model, tokenizer, tmp_path / "out")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_int8_is_small_and_close_and_reloads(folder: Path, model: Any, tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    assert main(["export", str(folder), "--output", str(tmp_path / "int8"), "--int8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["int8"] and found["opset"] == OPSET
    assert found["bytes"] < 0.35 * (folder / "heat_model.safetensors").stat().st_size
    exported = OnnxModel(tmp_path / "int8")
    own, other = (sentence_embeddings(each, tokenizer, SENTENCES) for each in (exported, model))
    cosines = (own * other).sum(1)
    assert float(cosines.min()) > 0.98
    assert not torch.equal(own, other)


def test_evaluate_takes_exported_models(folder: Path, model: Any, tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    export_onnx(model, tokenizer, tmp_path / "out")
    rows = [f"{a},{b},{i}" for i, (a, b) in enumerate(zip(SENTENCES, reversed(SENTENCES), strict=True))]
    (tmp_path / "pairs.csv").write_text("\n".join(["sentence1,sentence2,score", *rows]))
    command = ["evaluate", str(tmp_path / "out"), "--task", "sentence-similarity", "--data", str(tmp_path / "pairs.csv")]
    assert main([*command, "--baseline", str(folder), "--json"]) == 0
    exported, plain = json.loads(capsys.readouterr().out).values()
    assert exported["spearman"] == pytest.approx(plain["spearman"])
    assert main([*command, "--baseline", str(folder)]) == 0


def test_heads_are_exported_with_their_labels(minilm: str, tmp_path: Path) -> None:
    names = {0: "bad", 1: "good"}
    dense = transformers.AutoModelForSequenceClassification.from_pretrained(minilm, id2label=names).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    HeatCompressor(dense, tokenizer).compress(HeatConfig(target_params_ratio=0.5), save_directory=tmp_path / "heat")
    assert main(["export", str(tmp_path / "heat"), "--output", str(tmp_path / "onnx")]) == 0
    exported = OnnxModel(tmp_path / "onnx")
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(exported(**inputs).logits, dense(**inputs).logits, atol=1e-4, rtol=1e-4)
    assert exported.config.id2label == names


@pytest.mark.parametrize("decomposition", ["pivoted", "cp", "tucker", "ttm"])
def test_every_format_is_exported(minilm: str, decomposition: str, tmp_path: Path) -> None:
    compressor = HeatCompressor.from_pretrained(minilm)
    config = HeatConfig(decomposition=decomposition, rank=8, accelerator=None, modules=[r"layer\.0\."])
    compressor.compress(config)
    path = export_onnx(compressor.model, compressor.tokenizer, tmp_path / "out")  # checks itself
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "Attention"]
    turned = [node for node in nodes if "q_num_heads" not in {own.name for own in node.attribute}]
    assert len(turned) <= (decomposition != "pivoted"), "what attention reads and answers is not copied for it"


def test_torch_export_and_compile_take_the_model_whole(model: Any, tokenizer: Any) -> None:
    inputs = dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    found = torch._dynamo.explain(model)(**inputs)
    assert found.graph_break_count == 0
    dims = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens", max=512)}
    program = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, dims), strict=False)
    other = dict(tokenizer(SENTENCES[:2], padding=True, return_tensors="pt"))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(**other)[0], model(**other)[0], atol=1e-5, rtol=1e-5)


def test_what_cannot_be_exported_leaves_nothing(
    model: Any, tokenizer: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no onnx/model\.onnx"):
        OnnxModel(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        export_onnx(model, tokenizer, tmp_path / "full")
    assert main(["export", str(tmp_path / "missing"), "--output", str(tmp_path / "out")]) == 2
    assert "missing" in capsys.readouterr().err
    monkeypatch.setattr("heat_hf.integrations.exporting.TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="differs from the model's"):
        export_onnx(model, tokenizer, tmp_path / "out")
    assert sorted(own.name for own in tmp_path.iterdir()) == ["full"]


def test_without_the_packages_it_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert "pip install 'heat-hf[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_exporting_is_quiet(model: Any, tokenizer: Any, tmp_path: Path, caplog: Any, recwarn: Any) -> None:
    with caplog.at_level(logging.WARNING):
        export_onnx(model, tokenizer, tmp_path / "out")
    assert not [own for own in caplog.records if own.name.startswith("torch.onnx")]
    assert not [own for own in recwarn if "axis" in str(own.message) or "training mode" in str(own.message)]


class Words:
    """A tokenizer of small models: numbers for words, whatever they are."""

    model_input_names = ("input_ids", "attention_mask")

    def __call__(self, texts: list[str], **_: Any) -> transformers.BatchEncoding:
        counts = torch.tensor([len(text.split()) for text in texts])
        mask = (torch.arange(int(counts.max())) < counts[:, None]).long()
        return transformers.BatchEncoding({"input_ids": 5 * mask + mask.cumsum(1), "attention_mask": mask})

    def save_pretrained(self, folder: Path) -> None:
        """There are no files."""


@pytest.mark.parametrize("family", [family for family in BLOCKS if family != "bert"])
def test_every_family_runs(family: str, tmp_path: Path) -> None:
    """`place` compares what the file gives with the model's outputs."""
    with written(small_model(family, head=False), Words()) as graph:
        graph.place(OnnxModel, tmp_path / "out")


@pytest.mark.parametrize("whole", [False, True])
def test_what_runs_is_fused(whole: bool, minilm: str, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Attention and GELU are an operation each; additions stay apart from layer norms, whose joint kernel takes far longer."""
    own = transformers.AutoModel.from_pretrained(minilm).eval() if whole else model
    path, blocks = export_onnx(own, tokenizer, tmp_path / "out"), own.config.num_hidden_layers
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized").graph.node)
    assert kinds["Attention"] == kinds["BiasGelu"] == blocks
    assert kinds["LayerNormalization"] == kinds["Sum"] == 2 * blocks + 1
    assert not {"SkipLayerNormalization", "Softmax", "IsNaN", "Erf"} & set(kinds)


def test_a_file_says_nothing_of_the_machine_it_was_written_on(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    content = export_onnx(model, tokenizer, tmp_path / "out").read_bytes()
    assert str(Path(heat_hf.__file__).parent).encode() not in content
    assert str(Path(transformers.__file__).parent).encode() not in content
