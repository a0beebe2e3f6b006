"""What damaged and hostile folders say: one sentence with the file and what is wrong, in Python and on the command line."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from damages import MARK, changed, weights, without_checksum
from fuzzed_folders import ASKED, sound_folders
from safetensors.torch import load_file, save_file

from heat_hf import CompressionReport
from heat_hf.encoders.checkpoints.hub import push_folder
from heat_hf.encoders.checkpoints.sentence_encoder import sentence_encoder
from heat_hf.encoders.linears import model_class_of

Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sound")
    sound_folders(place)
    return place


@pytest.fixture
def folders(sound: Path, tmp_path: Path) -> Path:
    """Of every kind one, to be damaged; beside them rows to evaluate on."""
    return Path(shutil.copytree(sound, tmp_path / "folders"))


def said(asked: str, folder: Path, scratch: Path) -> str:
    """What a folder is refused with."""
    with pytest.raises((ValueError, OSError)) as caught:
        ASKED[asked](folder, scratch)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def _set(**values: Any) -> Change:
    return lambda content: content.update(values)


def _quantization(**values: Any) -> Change:
    return lambda content: content["quantization_config"].update(values)


def _setting(**values: Any) -> Change:
    return lambda content: next(iter(content["quantization_config"]["tensors"].values())).update(values)


CONFIGURATIONS: dict[str, tuple[Change, str]] = {
    "NaN": (_set(layer_norm_eps=float("nan")), "config.json is damaged: .*not JSON compliant"),
    "another type": (_set(num_attention_heads=True), "config.json is damaged: .*num_attention_heads.*expected int, got bool"),
    "a type that Transformers takes": (_set(chunk_size_feed_forward="x"), "chunk_size_feed_forward must be a int, got 'x'"),
    "no class": (_set(architectures=None), "has no architectures"),
    "a class that is none": (_set(architectures=[5]), "architectures must name one class"),
    "more layers than can be built": (
        _set(num_hidden_layers=10**9),
        "num_hidden_layers must be a whole number from 1 to 1,000",
    ),
    "extents that cannot be": (_set(hidden_size=10**12), "cannot be loaded"),
    "code for attention": (_set(_attn_implementation="somebody/kernel"), "names code on the Hub"),
    "another method": (_quantization(quant_method="gptq"), "quantization_config is not that of a factorized model"),
    "no version": (_quantization(heat_version="new"), "heat_version of the quantization_config must be a version, got 'new'"),
    "a name that is none": (_quantization(weights_file=[]), r"weights_file of the quantization_config must be text, got \[\]"),
    "a climbing name": (
        _quantization(weights_file="../x.safetensors"),
        "inside the model dir|outside the checkpoint's folder",
    ),
    "a format of another type": (_setting(format=[]), "setting of '.*' is damaged"),
    "ten thousand modes": (_setting(shape=[[24, *[1] * 9999], [24]]), "10001 modes"),
    "a huge rank": (_setting(rank=[10**400]), "setting of '.*' is damaged"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations(name: str, folders: Path) -> None:
    change, message = CONFIGURATIONS[name]
    changed(folders / "single" / "config.json", change)
    assert re.search(message, said("load", folders / "single", folders))


def _deep(file: Path) -> None:
    file.write_text("[" * 100_000)


def _large(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(2**30)  # takes no room on the disk


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _latin(file: Path) -> None:
    file.write_bytes('{"schön": 1}'.encode("latin-1"))


# Layout, file, what asks for it.
ASKED_FOR = [
    ("single", "config.json", "load"),
    ("single", "config.json", "cost"),
    ("sharded", "heat_model.safetensors.index.json", "load"),
    ("sharded", "modules.json", "evaluate"),
    ("sharded", "1_Pooling/config.json", "evaluate"),
    ("sharded", "config_sentence_transformers.json", "evaluate"),
    ("single", "heat_report.json", "report"),
    ("single", "trainer_state.json", "page"),
    ("single", "tokenizer.json", "evaluate"),
    ("single", "tokenizer_config.json", "evaluate"),
]


@pytest.mark.parametrize("damage", [_deep, _large, _fifo, _latin], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(("layout", "file", "asked"), ASKED_FOR)
def test_files(layout: str, file: str, asked: str, damage: Callable[[Path], None], folders: Path) -> None:
    damage(folders / layout / file)
    with pytest.raises((ValueError, OSError)) as caught:
        ASKED[asked](folders / layout, folders)
    assert "\n" not in str(caught.value)
    assert file in str(caught.value) or str(folders / layout) in str(caught.value)


def test_a_version_of_the_future(folders: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heat_hf.encoders.config.package_version", lambda: "1.0")
    changed(folders / "single" / "config.json", _quantization(heat_version="99.0"))
    with caplog.at_level(logging.WARNING):
        ASKED["load"](folders / "single", folders)
    assert [record.message for record in caplog.records if "99.0" in record.message] == [
        "a checkpoint was written by heat_hf '99.0', this is 1.0: update heat_hf"
    ]


def _rewritten(folder: Path, tensor: str, value: torch.Tensor | None) -> None:
    file = next(file for file in weights(folder) if tensor in load_file(file))
    tensors = load_file(file)
    tensors |= {tensor: value} if value is not None else {}
    save_file({name: tensors[name] for name in tensors if value is not None or name != tensor}, file, {"format": "pt"})
    without_checksum(folder)


@pytest.mark.parametrize("layout", ["single", "sharded", "checkpoint-7"])
def test_a_bit_of_the_weights(layout: str, folders: Path) -> None:
    file = weights(folders / layout)[-1]
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert "the weights are not those that were saved" in said("load", folders / layout, folders)
    without_checksum(folders / layout)
    ASKED["load"](folders / layout, folders)


def test_a_tensor_outside_the_blocks_is_missing(folders: Path) -> None:
    """Where Transformers makes one up, and only logs it."""
    _rewritten(folders / "sharded", "embeddings.LayerNorm.weight", None)
    assert "has no tensor embeddings.LayerNorm.weight" in said("load", folders / "sharded", folders)
    _rewritten(folders / "single", "classifier.bias", None)
    assert "has no tensor classifier.bias" in said("load", folders / "single", folders)
    transformers.AutoModel.from_pretrained(folders / "single")  # has no use for it


def test_a_tensor_of_another_type(folders: Path) -> None:
    _rewritten(folders / "single", "classifier.bias", torch.zeros(2, dtype=torch.int32))
    assert "tensor classifier.bias is of type I32" in said("load", folders / "single", folders)


def test_an_adapter_that_cannot_be_read(folders: Path) -> None:
    _deep(folders / "single" / "adapter_config.json")
    assert "RecursionError" in said("load", folders / "single", folders)


def test_checkpoints_of_others_raise_what_they_did(folders: Path) -> None:
    changed(folders / "dense" / "head" / "config.json", _set(num_hidden_layers=True))
    with pytest.raises(Exception, match="\n") as caught:
        transformers.AutoModel.from_pretrained(folders / "dense" / "head")
    assert type(caught.value).__name__ == "StrictDataclassFieldValidationError"


MODULES: dict[str, tuple[str, Change, str]] = {
    "a path that climbs": ("modules.json", lambda c: c[1].update(path="../../single"), "must be in a folder of the checkpoint"),
    "the whole checkpoint": ("modules.json", lambda c: c[1].update(path=""), "must be in a folder of the checkpoint"),
    "no module": ("modules.json", lambda c: c.insert(1, 5), "a module must have a type and a path, got 5"),
    "no width": ("1_Pooling/config.json", lambda c: c.clear(), "1_Pooling/config.json is damaged: it has no word_embedding"),
    "a flag": ("1_Pooling/config.json", _set(pooling_mode_cls_token="no"), "pooling_mode_cls_token must be a bool, got 'no'"),
    "a huge layer": ("2_Dense/config.json", _set(in_features=10**9), "does not hold the weights of the checkpoint's module"),
    "an activation": ("2_Dense/config.json", _set(activation_function=5), "activation_function must be a str, got 5"),
    "a similarity": ("config_sentence_transformers.json", _set(similarity_fn_name="best"), "similarity_fn_name must be one of"),
    "a length": ("sentence_bert_config.json", _set(max_seq_length="long"), "max_seq_length must be a int, got 'long'"),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str, folders: Path) -> None:
    file, change, message = MODULES[name]
    changed(folders / "sharded" / file, change)
    with pytest.raises(ValueError, match=message) as caught:
        ASKED["evaluate"](folders / "sharded", folders)
    assert "\n" not in str(caught.value)


def test_lost_modules(folders: Path) -> None:
    (folders / "sharded" / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"1_Pooling/config.json is damaged: it has no word_embedding_dimension"):
        ASKED["evaluate"](folders / "sharded", folders)
    (folders / "sharded" / "modules.json").unlink()
    assert "has config_sentence_transformers.json, but no modules.json" in said("evaluate", folders / "sharded", folders)


def test_a_module_that_is_a_link_out_of_the_folder(folders: Path) -> None:
    shutil.rmtree(folders / "sharded" / "1_Pooling")
    (folders / "sharded" / "1_Pooling").symlink_to("/")
    assert "must be in a folder of the checkpoint" in said("evaluate", folders / "sharded", folders)


def test_an_adapter_of_itself(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    assert not sentence_encoder(tmp_path).files


def test_classes_that_are_no_models() -> None:
    for name in ("pipeline", "BertTokenizer", "utils", "AutoTokenizer"):
        assert model_class_of(type("Config", (), {"architectures": [name]})) is transformers.AutoModel


REPORTS: dict[str, tuple[Change, str]] = {
    "a total": (lambda c: c["total"].update(params_ratio=0.1), "its totals are not those of its tensors"),
    "a count": (lambda c: c["tensors"][0].update(rows="24"), "rows must be a whole number"),
    "a name": (lambda c: c.update(base_model=5), "base_model must be a str, got 5"),
    "no tensors": (lambda c: c.update(tensors=[]), "ZeroDivisionError"),
    "a device": (lambda c: c.update(accelerator=[]), r"accelerator must be a str, got \[\]"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports(name: str, folders: Path) -> None:
    change, message = REPORTS[name]
    changed(folders / "single" / "heat_report.json", change)
    with pytest.raises(ValueError, match=f"heat_report.json is damaged: .*{message}"):
        CompressionReport.load(folders / "single")


def test_a_history_that_is_none(folders: Path) -> None:
    (folders / "single" / "trainer_state.json").write_text('{"log_history": [{"loss": 1, "hidden": 2}]}')
    assert "trainer_state.json is damaged: KeyError: 'step'" in said("page", folders / "single", folders)


def test_a_tokenizer_with_values_of_other_types(folders: Path) -> None:
    changed(folders / "single" / "tokenizer.json", _set(padding=True))
    assert "has a tokenizer that cannot be used: Exception" in said("evaluate", folders / "single", folders)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_setting(shape=[[48], [24]]), "does not fit a 24×24 matrix"),
        (lambda c: c["quantization_config"]["tensors"].update({"encoder.layer.9.output.dense": _first(c)}), "no linear layer"),
    ],
)
def test_costs_of_what_does_not_fit(change: Change, message: str, folders: Path) -> None:
    changed(folders / "sharded" / "config.json", change)
    assert message in said("cost", folders / "sharded", folders)


def _first(config: dict[str, Any]) -> Any:
    return next(iter(config["quantization_config"]["tensors"].values()))


def _fifo_beside(folder: Path) -> None:
    os.mkfifo(folder / "vocab.txt")


def _link_out(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to(folder.parent / "rows.json")


def _torn(folder: Path) -> None:
    weights(folder)[0].write_bytes(weights(folder)[0].read_bytes()[:-9])


def _lost_shard(folder: Path) -> None:
    weights(folder)[-1].unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_fifo_beside, "vocab.txt is no regular file"), (_link_out, "leads out of the folder"),
     (_torn, "not a whole safetensors file"), (_lost_shard, "No such file")],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_what_is_damaged_is_not_pushed(damage: Callable[[Path], None], message: str, layout: str, folders: Path) -> None:
    damage(folders / layout)
    with pytest.raises((ValueError, OSError), match=message):
        push_folder(folders / layout, "me/model")


def test_nothing_runs(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code and pickles in a folder that says that they are its model."""
    monkeypatch.chdir(folders)
    (folders / "single" / "own.py").write_text(f"open({MARK!r}, 'w')")
    classes = {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"}
    changed(folders / "single" / "config.json", _set(auto_map=classes, model_type="own"))
    assert "trust_remote_code" in said("load", folders / "single", folders)
    assert not list(folders.rglob(MARK))


def test_a_folder_that_was_changed_on_purpose(folders: Path, tmp_path: Path) -> None:
    """Saved again, it has the checksum of what it is now."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folders / "single")
    with torch.no_grad():
        model.classifier.bias.add_(1)
    model.save_pretrained(tmp_path / "again")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(loaded.classifier.bias, model.classifier.bias)
