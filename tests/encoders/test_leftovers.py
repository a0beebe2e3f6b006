"""What killed processes leave beside a target goes with the next one, and nothing else does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from heat_hf.encoders.checkpoints.storage import atomic_directory, atomic_file, check_target, temporary_directory

WRITER = """
import sys, tempfile, time
from heat_hf.encoders.checkpoints.storage import {call}
tempfile.tempdir = sys.argv[2]
with {call}({arguments}) as place:
    ({path}).write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
FILE = WRITER.format(call="atomic_file", arguments="sys.argv[1]", path="place")
DIRECTORY = WRITER.format(call="atomic_directory", arguments="sys.argv[1], overwrite=True", path='place / "model"')
TEMPORARY = WRITER.format(call="temporary_directory", arguments="", path='place / "model"')


def writer(program: str, target: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(target), str(target.parent)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_killed_file_goes_with_the_next(tmp_path: Path) -> None:
    stop(writer(FILE, tmp_path / "ranks.json"))
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_file(tmp_path / "ranks.json") as file:
        file.write_text("whole")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("ranks.json", "whole")]


def test_a_killed_directory_goes_with_the_check(tmp_path: Path) -> None:
    """Before any work; names with signs that mean something in patterns included."""
    stop(writer(DIRECTORY, tmp_path / "a[b]*"))
    assert len(list(tmp_path.iterdir())) == 1
    check_target(tmp_path / "a[b]*", overwrite=False)
    assert not list(tmp_path.iterdir())


def test_killed_temporary_files_go_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    living = writer(TEMPORARY, tmp_path / "any")
    stop(writer(TEMPORARY, tmp_path / "any"))
    assert len(list(tmp_path.iterdir())) == 2
    with temporary_directory() as folder:
        assert len(list(tmp_path.iterdir())) == 2, "that of the living one, and the new one"
        (folder / "model").write_text("half")
    stop(living)


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    process = writer(DIRECTORY, tmp_path / "model")
    try:
        with atomic_directory(tmp_path / "model", overwrite=False) as folder:
            (folder / "model").write_text("whole")
        (scratch,) = tmp_path.glob(".*")
        assert (scratch / "model" / "model").read_text() == "half"
    finally:
        stop(process)
    assert (tmp_path / "model" / "model").read_text() == "whole"


def test_files_of_others_stay(tmp_path: Path) -> None:
    others = [tmp_path / name for name in (".model-backup", ".model", ".models.heat-hf-x", "model.heat-hf-1")]
    for other in others:
        other.mkdir()
    check_target(tmp_path / "model", overwrite=False)
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    """What was to be replaced is put back."""
    old = tmp_path / ".model.heat-hf-abc" / ".replaced"
    old.mkdir(parents=True)
    (old / "weights").write_text("before")
    with pytest.raises(FileExistsError, match="not empty"):
        check_target(tmp_path / "model", overwrite=False)
    assert [(file.name, (file / "weights").read_text()) for file in tmp_path.iterdir()] == [("model", "before")]


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    """The second to end is told, and the first's result is whole."""
    with (
        pytest.raises(FileExistsError, match="written by another process meanwhile"),
        atomic_directory(tmp_path / "model", overwrite=False) as late,
    ):
        (late / "weights").write_text("late")
        with atomic_directory(tmp_path / "model", overwrite=False) as early:
            (early / "weights").write_text("early")
    assert (tmp_path / "model" / "weights").read_text() == "early"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_stopped_between_the_two_renames(stop: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C where the target is moved away already: it is back, and nothing is beside it."""
    rename, moves = Path.rename, []

    def stopped(self: Path, target: Path) -> Path:
        moves.append(self)
        if len(moves) == 2:
            raise stop
        return rename(self, target)

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("before")
    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(stop), atomic_directory(tmp_path / "model", overwrite=True) as folder:
        (folder / "weights").write_text("after")
    assert [(file.name, (file / "weights").read_text()) for file in tmp_path.iterdir()] == [("model", "before")]


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), Exception("No space left on device (os error 28)"),
     RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")],
)  # fmt: skip
def test_a_full_disk_is_told_by_name(error: Exception, tmp_path: Path) -> None:
    """Python, Rust's tokenizers and PyTorch each have an error of their own for it."""
    with pytest.raises(OSError, match=r"cannot write .*/model: "), atomic_directory(tmp_path / "model", overwrite=False):
        raise error


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no disk"), atomic_directory(tmp_path / "model", overwrite=False):
        raise RuntimeError("no disk")
