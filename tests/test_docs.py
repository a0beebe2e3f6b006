"""README and CONTRIBUTING say what the code does: their blocks run word for word, their tables agree with the result files."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import tables
from heat_hf.cli import VERBS, build_parser
from heat_hf.encoder import BLOCKS
from heat_hf.formats import FORMATS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
SENTENCES = [
    f"The {a} {b} the {c}." for a in ("dog", "child", "train") for b in ("sees", "passes") for c in ("bridge", "house")
]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, minilm: str) -> Path:
    """A folder in which the README's names exist: the checkpoint (in place of the Hub's) and the user's own files."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "sentence-transformers").mkdir()
    (folder / "sentence-transformers" / "all-MiniLM-L6-v2").symlink_to(minilm)
    (folder / "sentences.txt").write_text("\n".join(SENTENCES))
    rows = [f"{a},{b},{i}" for i, (a, b) in enumerate(zip(SENTENCES, reversed(SENTENCES), strict=True))]
    (folder / "pairs.csv").write_text("\n".join(["sentence1,sentence2,score", *rows]))
    return folder


def run(command: list[str], folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


def test_readme_python_blocks_run(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    (search,) = re.findall(r"^heat-hf search shapes .*", README, re.MULTILINE)
    run(["bash", "-c", search], desk)
    found = blocks(README, "python")
    assert len(found) >= 4
    for block in found:
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})


def test_readme_shell_blocks_run(desk: Path) -> None:
    pytest.importorskip("optimum")
    commands = [block for block in blocks(README, "sh") if not block.startswith("make ")]
    assert len(commands) >= 1
    for block in commands:
        run(["bash", "-euo", "pipefail", "-c", block], desk)


def test_the_two_commands_are_make_targets() -> None:
    (block,) = (block for block in blocks(README, "sh") if block.startswith("make "))
    targets = re.findall(r"^make (\w+)", block, re.MULTILINE)
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_readme_names_every_format_family_and_verb() -> None:
    for name in FORMATS:
        assert f"| `{name}` |" in README
    for family in BLOCKS:
        assert family in README
    for verb in VERBS:
        assert f"heat-hf {verb}" in README or f"heat {verb}" in README


def test_readme_options_exist() -> None:
    prose = re.sub(r"<!-- results:.*?<!-- end -->|torchrun .*? -m", "", README, flags=re.DOTALL)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", prose))
    assert options <= known_options(build_parser())


def known_options(parser: argparse.ArgumentParser) -> set[str]:
    found = {option for action in parser._actions for option in action.option_strings}
    verbs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found.union(*(known_options(own) for action in verbs for own in action.choices.values()))


def test_tables_agree_with_the_results() -> None:
    assert tables.render(README) == README, "run `make results`"


def test_contributing_format_example_works(tmp_path: Path) -> None:
    run([sys.executable, "-c", blocks(CONTRIBUTING, "python")[0]], tmp_path)


def test_contributing_accelerator_example_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-npu.yaml").write_text(blocks(CONTRIBUTING, "yaml")[0])
    exec(compile(blocks(CONTRIBUTING, "python")[1], "CONTRIBUTING.md", "exec"), {})
    assert capsys.readouterr().out.startswith("256 256\n")
