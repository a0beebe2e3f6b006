"""Loading arguments reach configuration, tokenizer and model, and pickled weights are refused for what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import small_model

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.cli import main
from heat_hf.encoders.linears import model_class_of

CODE = """
import transformers

class OwnConfig(transformers.BertConfig):
    model_type = "own"

class OwnModel(transformers.BertModel):
    config_class = OwnConfig

class OwnForSequenceClassification(transformers.BertForSequenceClassification):
    config_class = OwnConfig
"""


def with_code(folder: Path, head: bool) -> Path:
    """A checkpoint with modelling code of its own."""
    small_model("bert", head).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    auto = {
        "AutoConfig": "OwnConfig",
        "AutoModel": "OwnModel",
        "AutoModelForSequenceClassification": "OwnForSequenceClassification",
    }
    config |= {
        "model_type": "own",
        "architectures": [auto["AutoModelForSequenceClassification" if head else "AutoModel"]],
        "auto_map": {name: f"modeling_own.{cls}" for name, cls in auto.items()},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(CODE)
    return folder


@pytest.mark.parametrize("head", [True, False])
def test_code_of_the_checkpoint(head: bool, tmp_path: Path) -> None:
    folder = with_code(tmp_path / "dense", head)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        HeatCompressor.from_pretrained(folder, trust_remote_code=False)
    compressor = HeatCompressor.from_pretrained(folder, trust_remote_code=True)
    assert type(compressor.model).__name__ == ("OwnForSequenceClassification" if head else "OwnModel")
    config = HeatConfig(target_params_ratio=0.5, modules=["layer"])
    compressor.compress(config, save_directory=tmp_path / "out")
    assert (tmp_path / "out" / "modeling_own.py").is_file()
    loader = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
    loaded = loader.from_pretrained(tmp_path / "out", trust_remote_code=True)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids)[0], compressor.model(ids)[0])


def test_a_class_of_the_checkpoint() -> None:
    class Config:
        architectures = ("OwnForTokens",)
        auto_map = {"AutoConfig": "m.OwnConfig", "AutoModelForTokenClassification": "owner/name--m.OwnForTokens"}  # noqa: RUF012

    assert model_class_of(Config()) is transformers.AutoModelForTokenClassification
    Config.architectures = ("NobodyKnows",)
    assert model_class_of(Config()) is transformers.AutoModel
    Config.architectures = None
    assert model_class_of(Config()) is transformers.AutoModel


def test_subfolder(minilm: str, tmp_path: Path) -> None:
    small_model("bert").save_pretrained(tmp_path / "inner" / "model")
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path / "inner" / "model")
    compressor = HeatCompressor.from_pretrained(tmp_path, subfolder="inner/model")
    assert isinstance(compressor.model, transformers.BertForSequenceClassification)
    assert compressor.tokenizer is not None
    with pytest.raises((OSError, ValueError), match=r"nowhere|config.json"):
        HeatCompressor.from_pretrained(tmp_path, subfolder="nowhere")


@pytest.mark.parametrize("name", ["revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "code_revision"])
def test_options_reach_all_that_is_loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm: str) -> None:
    small_model("bert").save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path)
    value = {"local_files_only": True, "trust_remote_code": False, "cache_dir": str(tmp_path / "cache")}.get(name, "main")
    seen: dict[str, Any] = {}
    for loader in (transformers.AutoConfig, transformers.AutoTokenizer, transformers.BertForSequenceClassification):
        load = loader.from_pretrained

        def recorded(*args: Any, load: Any = load, loader: Any = loader, **kwargs: Any) -> Any:
            seen.setdefault(loader.__name__, kwargs.get(name))
            return load(*args, **kwargs)

        monkeypatch.setattr(loader, "from_pretrained", recorded)
    HeatCompressor.from_pretrained(tmp_path, **{name: value})
    own_code = name == "code_revision"  # a class of Transformers has no code to load
    assert seen == {"AutoConfig": value, "AutoTokenizer": value, "BertForSequenceClassification": None if own_code else value}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("subfolder", ["", "inner"])
def test_pickled_weights(sharded: bool, subfolder: str, tmp_path: Path) -> None:
    model, folder = small_model("bert"), tmp_path / subfolder
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if sharded:
        (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
        index = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), "pytorch_model-00001-of-00001.bin")}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match=r"has its weights in pytorch_model.bin.*, a pickle, which can run code"):
        HeatCompressor.from_pretrained(tmp_path, subfolder=subfolder)


@pytest.mark.parametrize("value", [False, 0])
def test_pickled_weights_that_are_asked_for(value: object, tmp_path: Path) -> None:
    small_model("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"use_safetensors=.* asks for pickled weights"):
        HeatCompressor.from_pretrained(tmp_path, use_safetensors=value)
    HeatCompressor.from_pretrained(tmp_path, use_safetensors=True)
    HeatCompressor.from_pretrained(tmp_path, use_safetensors=None)


def test_the_command_line_loads_code_that_is_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_code(tmp_path / "checkpoint" / "inner", head=True)
    (folder / "modeling_own.py").rename(folder.parent / "modeling_own.py")  # where Transformers looks for it
    options = ["--target-params-ratio", "0.5", "--modules", "layer", "--output", str(tmp_path / "out")]
    command = ["compress", str(folder.parent), "--subfolder", "inner", *options]
    assert main([*command, "--trust-remote-code"]) == 0
    assert (tmp_path / "out" / "modeling_own.py").is_file()
    capsys.readouterr()
    assert main([*command[:-1], str(tmp_path / "other")]) == 2
    assert "trust_remote_code" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
