"""README, documentation and CONTRIBUTING say what the code does: their blocks run word for word, their tables are right."""

from __future__ import annotations

import argparse
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fake_hub import TOKEN, FakeHub
from test_layout import LAYERS

import heat_hf
from benchmarks import tables
from benchmarks.provenance import CAPTION_WORDS, captioned
from heat_hf.cli import VERBS, build_parser, main
from heat_hf.encoders.linears import BLOCKS
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
    (folder / "reviews.csv").write_text("\n".join(["sentence,label", *(f"{own},{i % 2}" for i, own in enumerate(SENTENCES))]))
    torch.manual_seed(0)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(minilm)
    classifier.save_pretrained(folder / "my-classifier")
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(folder / "my-classifier")
    return folder


def run(command: list[str], folder: Path, **environment: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


def blocks_in_order(text: str) -> list[tuple[str, str, str]]:
    """Language, what follows it, and content of every block."""
    found = re.findall(r"^```(\w*) ?([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert 2 * len(found) == len(re.findall(r"^ *```", text, re.MULTILINE))
    return found


def work_through(page: Path, desk: Path, hub: FakeHub, names: dict[str, Any]) -> None:
    """Do what a reader of a page does: save files, run commands, run programs, one after the other."""
    for language, about, block in blocks_in_order(page.read_text()):
        if language == "yaml":
            (name,) = re.findall(r'title="(.+)"', about)
            (desk / name).write_text(block)
        elif language == "python":
            exec(compile(block, str(page), "exec"), names)
        else:
            assert language == "sh", f"{page.name} has a block of {language or 'no language'}, which no test runs"
            for line in block.replace("\\\n", " ").splitlines():
                if not line.startswith("make "):
                    command(line, desk, hub)


def command(line: str, desk: Path, hub: FakeHub) -> None:
    """Run a line of shell: our own command in this process, which saves loading everything again; all else in a shell."""
    program, *arguments = shlex.split(line, comments=True)
    if program != "heat-hf":
        run(["bash", "-euo", "pipefail", "-c", line], desk)
    elif arguments[0] == "push":  # the Hub's address is read when its client is loaded
        pushes = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        run(["bash", "-c", line], desk, **pushes)
    else:
        assert main(arguments) == 0, line


# Groups of pages that are read one after the other; later ones use what the first one made.
LEVELS = ("cost", "machine", "shapes", "ranks", "distillation")
READERS = {
    "readme": ["README.md"],
    "tutorials": [
        "docs/index.md",
        *(f"docs/{name}.md" for name in ("tutorials/classification", "tutorials/embeddings", "deploy")),
    ],
    "levels": ["docs/tutorials/accelerator.md", "docs/how/index.md", *(f"docs/how/{name}.md" for name in LEVELS)],
    "pages": [
        f"docs/{name}.md"
        for name in ("scale", "formats", "how/strassen-tile", "how/layout", "results", "comparison", "limits", "works-with")
    ],
}


@pytest.mark.parametrize("reader", READERS)
def test_every_block_runs(reader: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optimum")
    shutil.copytree(desk, tmp_path / "desk", symlinks=True)
    monkeypatch.chdir(tmp_path / "desk")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for bound, count in {"LEAST_REPEATS": 2, "MOST_REPEATS": 2, "MOST_RACES": 1}.items():  # what a clock says is not tested
        monkeypatch.setattr(f"heat_hf.hardware.machine.measuring.{bound}", count)
    with FakeHub() as hub:
        for page in READERS[reader]:
            work_through(ROOT / page, tmp_path / "desk", hub, {"__name__": "__main__"})


def test_no_page_is_left_out() -> None:
    read = {page for pages in READERS.values() for page in pages}
    assert {str(page.relative_to(ROOT)) for page in tables.pages() if "reference" not in page.parts} == read


def test_documentation_is_built_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")], ROOT)
    cli = (tmp_path / "site" / "reference" / "cli.html").read_text()
    for verb in VERBS:
        assert f"usage: heat-hf {verb}" in cli
    api = (tmp_path / "site" / "reference" / "api.html").read_text()
    for name in heat_hf.__all__:
        assert f'id="heat_hf.{name}"' in api
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', api)
    assert not loaded, "a page loads something from elsewhere"
    shapes = (tmp_path / "site" / "how" / "shapes.html").read_text()
    assert re.search(r'<a href="(../figures/figure-7-384x1536.png)"><img [^>]*src="\1"', shapes), "no full size to open"
    assert "(prefers-color-scheme: dark)" in shapes


def test_the_two_commands_are_make_targets() -> None:
    (block,) = (block for block in blocks(README, "sh") if block.startswith("make "))
    targets = re.findall(r"^make (\w+)", block, re.MULTILINE)
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_pages_name_every_format_family_verb_and_public_name() -> None:
    formats, api = ((ROOT / "docs" / name).read_text() for name in ("formats.md", "reference/api.md"))
    for name in FORMATS:
        assert f"| `{name}` |" in formats
    for family in BLOCKS:
        assert family in formats
    for verb in VERBS:
        assert f"| `heat-hf {verb}` |" in README
    assert sorted(re.findall(r"^::: heat_hf\.(.+)$", api, re.MULTILINE)) == sorted(heat_hf.__all__)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 150
    (table,) = re.findall(r"<!-- results:.*?<!-- end -->", README, re.DOTALL)
    assert len(re.findall(r"^\|", table, re.MULTILINE)) <= 2 + 8


def test_layout_names_what_there_is() -> None:
    """Modules, and names in them, that the page on the code's layout mentions."""
    text = (ROOT / "docs" / "how" / "layout.md").read_text()
    packages = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert packages == list(LAYERS)
    for dotted in re.findall(rf"`((?:{'|'.join(packages)})\.[\w.]+)`", text):
        pkgutil.resolve_name(f"heat_hf.{dotted}")


def test_captions_are_short() -> None:
    for page in tables.pages():
        for caption in re.findall(r"^!\[.*\n\n(.*(?:\n.+)*)", page.read_text(), re.MULTILINE):
            assert len(caption.split()) <= CAPTION_WORDS, f"{page.name}: {caption}"


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.stem)
def test_options_exist(page: Path) -> None:
    prose = re.sub(r"<!-- results:.*?<!-- end -->|(?:torchrun|accelerate launch) .*? -m", "", page.read_text(), flags=re.DOTALL)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", prose))
    assert options <= known_options(build_parser())


def known_options(parser: argparse.ArgumentParser) -> set[str]:
    found = {option for action in parser._actions for option in action.option_strings}
    verbs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found.union(*(known_options(own) for action in verbs for own in action.choices.values()))


def test_tables_agree_with_the_results() -> None:
    shown: list[str] = []
    for page in tables.pages():
        assert tables.render(page.read_text()) == page.read_text(), f"{page.name}: run `make results`"
        shown += re.findall(r"<!-- results:(\w+) -->", page.read_text())
    assert sorted(shown) == sorted(tables.TABLES), "each table stands on one page"


def test_a_long_caption_is_refused() -> None:
    captioned(["| a |"], "word " * CAPTION_WORDS, "source")
    with pytest.raises(ValueError, match="at most 40 words, this one has 41"):
        captioned(["| a |"], "word " * (CAPTION_WORDS + 1), "source")


@pytest.mark.parametrize(
    "block", blocks(CONTRIBUTING, "python"), ids=lambda block: re.findall(r"^class (\w+)", block, re.MULTILINE)[0]
)
def test_contributing_examples_work(block: str, desk: Path) -> None:
    run([sys.executable, "-c", block], desk)
