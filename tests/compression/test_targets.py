"""Where models are saved: nothing is lost, nothing half-written stays."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from conftest import small_model

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.encoders.checkpoints.storage import atomic_directory
from heat_hf.encoders.linears import factorized_layers


def test_existing_targets(tmp_path: Path) -> None:
    config = HeatConfig(target_params_ratio=0.5)
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "precious").write_text("work")
    file.write_text("work")
    for target, message in ((full, "not empty"), (file, "is a file")):
        model = small_model("bert")
        with pytest.raises(FileExistsError, match=message):
            HeatCompressor(model).compress(config, save_directory=target)
        assert not factorized_layers(model)
    assert (full / "precious").read_text() == "work"
    HeatCompressor(small_model("bert")).compress(config, save_directory=full, overwrite=True)
    assert not (full / "precious").exists()
    assert (full / "heat_model.safetensors").exists()
    (tmp_path / "empty").mkdir()
    HeatCompressor(small_model("bert")).compress(HeatConfig(target_params_ratio=0.5), save_directory=tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "full"]


def test_read_only_target() -> None:
    model = small_model("bert")
    with pytest.raises(OSError, match="cannot write into /proc"):  # read-only even for root
        HeatCompressor(model).compress(HeatConfig(target_params_ratio=0.5), save_directory="/proc/heat")
    assert not factorized_layers(model)


def test_full_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("bert")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match="MiB free, the result needs"):
        HeatCompressor(model).compress(HeatConfig(target_params_ratio=0.5), save_directory=tmp_path / "out")
    assert not factorized_layers(model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_fills_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    if overwrite:
        out.mkdir()
        (out / "precious").write_text("work")
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full_disk)
    compressor = HeatCompressor(small_model("bert"))
    with pytest.raises(OSError, match="No space left"):
        compressor.compress(HeatConfig(target_params_ratio=0.5), save_directory=out, overwrite=overwrite)
    assert sorted(p.name for p in tmp_path.rglob("*")) == (["out", "precious"] if overwrite else [])
    monkeypatch.undo()
    compressor.save(out, overwrite)  # the work is not lost
    assert (out / "heat_model.safetensors").exists()


def test_interrupted_directories_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "out", overwrite=False) as folder:
        (folder / "half").write_text("written")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_saving_before_compressing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="call compress first"):
        HeatCompressor(small_model("bert")).save(tmp_path / "out")
