"""Whatever holds factorized layers is saved as such, and what is damaged is refused by one sentence."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import small_model, token_ids
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    EncoderDecoderModel,
    PreTrainedModel,
)

from heat_hf import CompressionReport, HeatCompressor, HeatConfig
from heat_hf.encoders.linears import factorized_layers


def compressed() -> PreTrainedModel:
    model = small_model("bert")
    HeatCompressor(model).compress(HeatConfig(rank=4))
    return model


def through_torch(model: PreTrainedModel) -> PreTrainedModel:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_torch,
    "half and float": lambda model: model.half().float(),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_saved_and_loads_bit_by_bit(how: str, tmp_path: Path) -> None:
    model = COPIES[how](compressed())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(token_ids()).logits, model(token_ids()).logits)
    assert (tmp_path / "heat_model.safetensors").stat().st_mode & 0o044
    loaded.half().float()


def test_given_weights_are_saved(tmp_path: Path) -> None:
    """As accelerate and Trainer hand them over, gathered from everywhere, where the model itself holds a part."""
    model, wanted = compressed(), compressed()
    with torch.no_grad():
        for parameter in wanted.parameters():
            parameter.mul_(1.5)
    quantizer = model.hf_quantizer
    model.save_pretrained(tmp_path, state_dict=wanted.state_dict())
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(token_ids()).logits, wanted(token_ids()).logits)
    assert model.hf_quantizer is quantizer
    config = AutoConfig.from_pretrained(tmp_path)
    given = BertForSequenceClassification.from_pretrained(None, config=copy.deepcopy(small_model("bert").config), state_dict={})
    assert not factorized_layers(given)
    with pytest.raises(TypeError, match="NoneType"):  # Transformers' own
        AutoModelForSequenceClassification.from_pretrained(None, config=config, state_dict=model.state_dict())


ODD: dict[str, Callable[[Any], Any]] = {
    "left.weight_mask": lambda linear: prune.l1_unstructured(linear, "weight", 0.5),
    "left.parametrizations": parametrizations.weight_norm,
    "left.weight_u": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("name", ODD)
def test_what_could_not_be_loaded_is_not_saved(name: str, tmp_path: Path) -> None:
    model = compressed()
    query = model.bert.encoder.layer[1].attention.self.query
    ODD[name](query.left)
    with pytest.raises(ValueError, match=r"layer\.1\.attention\.self\.query cannot be saved as it is, see \S+left\.\S+: make"):
        model.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())
    if name == "left.weight_mask":
        prune.remove(query.left, "weight")
        model.save_pretrained(tmp_path / "model")
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        assert torch.equal(loaded(token_ids()).logits, model(token_ids()).logits)


def test_a_head_of_another_size(tmp_path: Path) -> None:
    model = compressed()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"other extents than .* num_labels: pass ignore_mismatched_sizes=True to begin"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    try:
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    except ValueError as error:
        assert "this version of Transformers cannot begin anew" in str(error)
        pytest.skip(f"Transformers {transformers.__version__} gives quantized models the file's extents")
    assert loaded(token_ids()).logits.shape == (3, 5)
    assert torch.equal(loaded.bert(token_ids())[0], model.bert(token_ids())[0])
    loaded.save_pretrained(tmp_path / "five")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "five")
    assert torch.equal(again(token_ids()).logits, loaded(token_ids()).logits)


@pytest.mark.parametrize("name", ["model", "checkpoint-3", "sharded"])
def test_without_heat_hf_the_error_names_it(name: str, tmp_path: Path) -> None:
    compressed().save_pretrained(tmp_path / name, **({"max_shard_size": "10KB"} if name == "sharded" else {}))
    program = "import sys; from transformers import AutoModel; AutoModel.from_pretrained(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, tmp_path / name], capture_output=True, text=True)
    assert done.returncode != 0 and "import_heat_hf_before_loading" in done.stderr


class Wrapper(PreTrainedModel):
    """A user's own model around a compressed one."""

    config_class = BertConfig
    _supports_sdpa = True

    def __init__(self, config: BertConfig, inner: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.inner = inner or AutoModelForSequenceClassification.from_config(config)
        self.scale = torch.nn.Linear(2, 2)
        self.post_init()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.scale(self.inner(ids).logits)


def test_a_model_around_a_compressed_one_is_saved_with_its_layers(tmp_path: Path) -> None:
    inner = compressed()
    model = Wrapper(inner.config, inner).eval()
    model.save_pretrained(tmp_path / "wrapper")
    loaded = Wrapper.from_pretrained(tmp_path / "wrapper").eval()
    assert factorized_layers(loaded) and torch.equal(loaded(token_ids()), model(token_ids()))
    inner.save_pretrained(tmp_path / "inner")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "inner")
    assert torch.equal(again(token_ids()).logits, inner(token_ids()).logits)


def test_a_composite_is_saved_with_its_layers(tmp_path: Path) -> None:
    encoder, decoder = small_model("bert").base_model, small_model("bert").config
    HeatCompressor(encoder).compress(HeatConfig(rank=4))
    decoder.is_decoder = decoder.add_cross_attention = True
    model = EncoderDecoderModel(encoder=encoder, decoder=BertLMHeadModel(decoder)).eval()
    model.save_pretrained(tmp_path)
    loaded = EncoderDecoderModel.from_pretrained(tmp_path).eval()
    inputs = {"input_ids": token_ids(), "decoder_input_ids": token_ids()}
    assert factorized_layers(loaded) and torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())["encoder"]


def test_an_encoder_becomes_a_decoder_whose_cross_attention_is_new(tmp_path: Path) -> None:
    encoder = small_model("bert").base_model
    HeatCompressor(encoder).compress(HeatConfig(rank=4))
    encoder.save_pretrained(tmp_path / "encoder")
    both = EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "encoder").eval()
    assert len(factorized_layers(both)) == 2 * len(factorized_layers(encoder))
    both.save_pretrained(tmp_path / "both")
    loaded = EncoderDecoderModel.from_pretrained(tmp_path / "both").eval()
    inputs = {"input_ids": token_ids(), "decoder_input_ids": token_ids()}
    assert torch.equal(loaded(**inputs).logits, both(**inputs).logits)


def test_a_dense_model_of_a_compressed_ones_configuration_is_saved_dense(tmp_path: Path) -> None:
    source = compressed()
    dense = AutoModelForSequenceClassification.from_config(source.config).eval()
    dense.save_pretrained(tmp_path / "dense")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    assert not factorized_layers(loaded) and torch.equal(loaded(token_ids()).logits, dense(token_ids()).logits)
    source.save_pretrained(tmp_path / "source")
    assert factorized_layers(AutoModelForSequenceClassification.from_pretrained(tmp_path / "source"))


def test_a_model_factorized_while_it_was_loaded_brings_its_report(tmp_path: Path) -> None:
    small_model("bert").save_pretrained(tmp_path / "dense")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense", quantization_config=HeatConfig(rank=4))
    model.save_pretrained(tmp_path / "out")
    assert CompressionReport.load(tmp_path / "out").tensors and "low_rank" in (tmp_path / "out" / "README.md").read_text()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    again.save_pretrained(tmp_path / "again")
    assert CompressionReport.load(tmp_path / "again") == CompressionReport.load(tmp_path / "out")


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "10KB"}])
def test_a_save_that_fails_leaves_the_old_folder_as_it_was(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compressed()
    model.save_pretrained(tmp_path / "out", max_shard_size="10KB")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    calls = []

    def torn(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == (1 if not options else 2):
            raise OSError("no space left on device")
        save_file(*args, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", torn)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(tmp_path / "out", **options)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    model.save_pretrained(tmp_path / "out", **options)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_another_layout_leaves_no_stale_files(tmp_path: Path) -> None:
    model = compressed()
    for options, files in (({"max_shard_size": "10KB"}, False), ({}, True), ({"max_shard_size": "10KB"}, False)):
        model.save_pretrained(tmp_path, **options)
        assert (tmp_path / "heat_model.safetensors").exists() is files
        assert (tmp_path / "heat_model.safetensors.index.json").exists() is not files
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(loaded(token_ids()).logits, model(token_ids()).logits)


def test_a_dequantized_model_is_saved_dense(tmp_path: Path) -> None:
    compressed().dequantize().save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def _config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


def _tensor(folder: Path, part: str, value: float | None) -> None:
    tensors = load_file(folder / "heat_model.safetensors")
    name = next(name for name in tensors if part in name)
    if value is None:
        del tensors[name]
    else:
        tensors[name].view(-1)[0] = value
    save_file(tensors, folder / "heat_model.safetensors", metadata={"format": "pt"})


def _setting(folder: Path, key: str, value: object) -> None:
    _config(folder, lambda c: next(iter(c["quantization_config"]["tensors"].values())).update({key: value}))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a setting is missing": (lambda f: _config(f, lambda c: c["quantization_config"]["tensors"].popitem()), "no tensor"),
    "one layer more": (lambda f: _config(f, lambda c: c.update(num_hidden_layers=3)), "no tensor|no linear"),
    "NaN": (lambda f: _tensor(f, "query", float("nan")), "NaN or infinity"),
    "infinity in a norm": (lambda f: _tensor(f, "LayerNorm", float("inf")), "LayerNorm.*NaN or infinity"),
    "a tensor is missing": (lambda f: _tensor(f, "output.dense.left.bias", None), "no tensor"),
    "many modes": (lambda f: _setting(f, "shape", [[24, *[1] * 20], [24]]), "modes"),
    "another rank": (lambda f: _setting(f, "rank", [3]), "extents"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(damage: str, tmp_path: Path) -> None:
    compressed().save_pretrained(tmp_path)
    change, said = DAMAGES[damage]
    change(tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_numbers_whose_sum_is_infinite_are_numbers(tmp_path: Path) -> None:
    model = compressed()
    with torch.no_grad():
        next(iter(factorized_layers(model).values())).bias.fill_(torch.finfo(torch.float32).max)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))


def _shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("heat_model-*.safetensors"))


def _fifo(folder: Path) -> None:
    (folder / _shards(folder)[0]).unlink()
    os.mkfifo(folder / _shards(folder)[0].replace("00002", "00001"))


def _torn(folder: Path) -> None:
    file = folder / _shards(folder)[1]
    file.write_bytes(file.read_bytes()[:-100])


def _climbing(folder: Path) -> None:
    index = folder / "heat_model.safetensors.index.json"
    name = _shards(folder)[0]
    (folder / name).rename(folder.parent / "elsewhere.safetensors")
    index.write_text(index.read_text().replace(name, "../elsewhere.safetensors"))


@pytest.mark.parametrize("damage", [_fifo, _torn, _climbing])
def test_a_damaged_sharded_folder_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    compressed().save_pretrained(tmp_path / "out", max_shard_size="10KB")
    damage(tmp_path / "out")
    program = "import sys, heat_hf; from transformers import AutoModel; AutoModel.from_pretrained(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "out"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and done.stderr.strip().splitlines()[-1].startswith(("ValueError", "OSError", "FileNotFound"))
