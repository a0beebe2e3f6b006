"""Layers on tiles that share what encodes and decodes them: one parameter in training, in copies and after loading."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from conftest import small_model
from safetensors.torch import load_file, save_file
from students import train
from test_tiled_models import QUICK, said

from heat_hf import CompressionReport, HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.checkpoints.weights import checksum
from heat_hf.encoders.linears import factorized_layers
from heat_hf.encoders.tiles import shared_encoders


@pytest.mark.parametrize(("scope", "kept"), [("size", 3), ("model", 1)])
def test_layers_share_encoders_in_copies_in_files_and_in_training(scope: str, kept: int, tmp_path: Path) -> None:
    model = small_model("bert")
    report = factorize(model, HeatConfig(**{**QUICK, "refine_steps": 0, "shared_encoders": scope}))
    assert report.compressed_model_parameters == model.num_parameters()
    model.save_pretrained(tmp_path / "saved")
    reports = CompressionReport.load(tmp_path / "saved")
    assert reports.compressed_model_parameters == model.num_parameters()
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    for other in (model, again, copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        layers = factorized_layers(other).values()
        assert len({id(layer.core_0) for layer in layers}) == len({id(layer.core_2) for layer in layers}) == kept
        assert len({id(layer.core_1) for layer in layers}) == len(layers)
        assert torch.equal(said(other.eval()), said(model.eval()))
    train(tmp_path / "run", again, small_model("bert"), max_steps=8)
    layers = factorized_layers(again).values()
    assert len({id(layer.core_0) for layer in layers}) == kept
    assert not torch.equal(next(iter(layers)).core_0, next(iter(factorized_layers(model).values())).core_0)
    again.save_pretrained(tmp_path / "trained")
    last = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained")
    assert torch.equal(said(last), said(again.eval()))


def test_shared_encoders_of_an_offloaded_model_are_saved(tmp_path: Path) -> None:
    model = small_model("bert")
    factorize(model, HeatConfig(**QUICK, refine_steps=0, shared_encoders="model"))
    model.save_pretrained(tmp_path / "saved")
    places = dict.fromkeys(["bert.embeddings", "bert.encoder.layer.0", "bert.pooler", "dropout", "classifier"], "cpu")
    places["bert.encoder.layer.1"] = "disk"
    loaded = type(model).from_pretrained(tmp_path / "saved", device_map=places, offload_folder=tmp_path / "offloaded")
    loaded.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    assert shared_encoders(again) == "model"
    assert torch.equal(said(again), said(model.eval()))


def test_shared_encoders_that_differ_in_a_file_are_damage(tmp_path: Path) -> None:
    model = small_model("bert")
    factorize(model, HeatConfig(**QUICK, refine_steps=0, shared_encoders="model"))
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(".core_2"))
    save_file({**tensors, name: tensors[name] + 1}, file, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["checksum"] = checksum([file])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="layers that share encoders differ in core_2"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
