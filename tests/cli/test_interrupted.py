"""Ctrl-C and SIGTERM: one line that says what is kept, the shell's exit codes, and nothing half written."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from heat_hf.cli import main


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
@pytest.mark.parametrize("kept", [(), (".partial",), (".checkpoints", ".partial")])
def test_one_line_and_the_shells_code(
    number: int, code: int, word: str, kept: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupted(args: object) -> None:
        from heat_hf.encoders.checkpoints.storage import atomic_directory

        with atomic_directory(tmp_path / "out", overwrite=False) as folder:
            (folder / "half").write_text("")
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, of which this may be one, ignore it
    for end in kept:
        (tmp_path / f"out{end}").mkdir()
    monkeypatch.setattr("heat_hf.cli.cost._check", interrupted)
    assert main(["cost", "--gemm", "1x2x3", "--output", str(tmp_path / "out")]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"heat-hf: {word}")
    assert all(f"out{end}" in line for end in kept)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"out{end}" for end in kept)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_line_is_not_on_that_of_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bars = []

    def interrupted(args: object) -> None:
        bars.append(tqdm(total=3, file=sys.stderr))
        raise KeyboardInterrupt

    monkeypatch.setattr("heat_hf.cli.cost._check", interrupted)
    assert main(["cost", "--gemm", "1x2x3"]) == 130
    assert "heat-hf: interrupted" in capsys.readouterr().err.splitlines()
