"""Wrong command lines, drawn from every verb's own options: exit 2, one line that names the option, nothing left on disk."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import require_told

from heat_hf.cli import build_parser, main

NUMBERS = ("many", "", "nan", "-3", "0", "9" * 400, "1e999", "0x10", "1.5e", "None", "١٢٣x", "inf", "1\n2")
CHECKED = (  # by the verbs themselves, before anything is loaded
    ("bench", "MODEL"),
    ("bench m --runtimes tensorrt", "runtime"),
    ("bench m --precisions int4", "--precisions"),
    ("bench m --data no.csv", "--task"),
    ("bench m --task text-classification --data no.csv", "no.csv"),
    ("compress m --target-params-ratio 0.5", "--output"),
    ("compress m --decomposition svd --rank 2 --output o", "decomposition"),
    ("compress m --target-params-ratio 0.5 --rank 3 --output o", "rank"),
    ("compress m --rank 1,a --output o", "--rank"),
    ("compress m --variant HEAT-a1 --output o", "--variant"),
    ("compress m --rank 4 --output o --calibration-file no.txt", "no.txt"),
    ("compress m --rank 4 --accelerator no-such --output o", "no-such"),
    ("cost", "--gemm"),
    ("cost --gemm 1x2", "--gemm"),
    ("cost --gemm 0x2x3", "--gemm"),
    (f"cost --gemm {'9' * 5000}x2x3", "--gemm"),
    ("cost --gemm 1x2x3 --format cp", "--format"),
    ("cost --gemm 1x2x3 --count attention", "--count"),
    ("cost --gemm 1x2x3 --export timeloop", "--export"),
    ("cost --gemm 1x2x3 --objective beauty", "objective"),
    ("cost --matrix 10x10 --format cp --rank x", "--rank"),
    ("search ranks m --rank-search pareto --output o --target-edp-ratio 0.5", "--rank-search"),
    ("distill m --teacher t --train-file f --output o --early-stopping-patience 2", "--eval-file"),
    ("distill m --teacher t --train-file f --output o --arguments nonsense=1", "--arguments"),
    ("export m --output o --runtime tensorrt", "--runtime"),
    ("report a b c", "FORMAT SHAPE RANK"),
    ("report no.parquet", "no.parquet"),
    ("report no.json", "no.json"),
    ("report cp 2:a 3", "SHAPE"),
    ("report cp 2:2 1 --figures 6", "--output"),
    ("report cp 2:2 1 --figures 8", "--figures"),
    ("report m --beside n", "--beside"),
)


def verbs(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[list[str], argparse.ArgumentParser]]:
    """Every verb that does something, with its parser."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in inner:
        for name, own in action.choices.items():
            yield from verbs(own, (*path, name))
    if not inner:
        yield list(path), parser


def complete(parser: argparse.ArgumentParser) -> list[str]:
    """What a verb must be given."""
    line: list[str] = []
    for action in parser._actions:
        if not action.option_strings and action.nargs not in ("?", "*"):
            line.append("nowhere")
        elif action.required:
            line += [action.option_strings[0], "nowhere"]
    return line


def wrong_lines() -> list[tuple[list[str], str]]:
    """Lines, and the option that each message must name."""
    lines = [(line.split(), name) for line, name in CHECKED]
    for verb, parser in verbs(build_parser()):
        whole = [*verb, *complete(parser)]
        lines += [([*whole, f"--no-such-{i}"], f"--no-such-{i}") for i in range(3)]
        for action in parser._actions:
            option = action.option_strings[-1] if action.option_strings else None
            if option is None or option in ("-h", "--help"):
                continue
            if action.nargs != 0:
                lines.append(([*whole, option], option))
            else:
                lines.append(([*whole, f"{option}=yes"], option))
            if action.choices:
                lines.append(([*whole, option, "none-of-these"], option))
            if action.required:
                lines.append((verb, option))
            if option == "--output":
                lines += [([*whole, f"{option}={bad}"], option) for bad in ("", "  ", "taken/below", "taken/far/below", "a\0b")]
            lines += [([*whole, f"{option}={bad}"], option) for bad in NUMBERS if _refusable(action, bad)]
    return lines


def _refusable(action: argparse.Action, text: str) -> bool:
    """Whether a number is no right value: none is 0 but a seed or no step, none is infinite but seconds' or memory's bound."""
    if action.type is None or action.option_strings[-1] in ("--output", "--layers"):
        return False
    return not (text == "0" and action.option_strings[-1] in ("--seed", "--refine-steps"))


def check(line: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) == 2, line
    out, err = capsys.readouterr()
    assert not out, line
    assert len(err.splitlines()) == 1, (line, err)
    assert name.lstrip("-").replace("_", "-") in err.replace("_", "-"), (line, err)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("seed", range(3))
def test_some_wrong_lines(seed: int, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line, name in random.Random(seed).sample(wrong_lines(), 20):
        check(line, name, capsys)
    assert [file.name for file in place.iterdir()] == ["taken"]


@pytest.mark.slow
def test_all_wrong_lines(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = wrong_lines()
    for line, name in lines:
        check(line, name, capsys)
    assert [file.name for file in place.iterdir()] == ["taken"]
    require_told(
        "{total} wrong command lines all end in exit code 2 and one line that names the option", Counter(refused=len(lines))
    )


@pytest.mark.parametrize("line", [["compress"], ["cost", "--gemm=x"], ["search", "ranks", "m", "--output="]])
def test_in_a_process_of_its_own(line: list[str], place: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "heat_hf.cli", *line], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (2, 1, "")
    assert [file.name for file in place.iterdir()] == ["taken"]


def test_nobody_reads_what_is_printed() -> None:
    """As with `| head -1`: quiet."""
    command = f"{sys.executable} -m heat_hf.cli cost --gemm 64x64x64 | true"
    done = subprocess.run(["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_a_bug_still_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr("heat_hf.cli.cost._check", fail)
    with pytest.raises(AssertionError, match="a bug"):
        main(["cost", "--gemm", "1x2x3"])


@pytest.mark.parametrize(
    "error", [OverflowError("too\nlarge"), MemoryError(), RecursionError("deep"), ValueError("two\nlines"), OSError(28, "full")]
)
def test_bad_input_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("heat_hf.cli.cost._check", fail)
    assert main(["cost", "--gemm", "1x2x3"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
