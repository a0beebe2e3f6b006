"""The package: its public names, and the built wheel in an environment of its own."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

import heat_hf

ROOT = Path(__file__).parents[1]


def test_public_names_exist() -> None:
    assert {*heat_hf.__all__, "__version__"} <= set(dir(heat_hf))
    for name in heat_hf.__all__:
        assert getattr(heat_hf, name) is not None
    assert re.match(r"\d+\.\d+", heat_hf.__version__)
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = heat_hf.missing


def test_public_names_are_the_same_for_type_checkers() -> None:
    """What is imported for types, what is listed, and what is found at run time."""
    tree = ast.parse(Path(heat_hf.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert typed == heat_hf._HOMES
    assert sorted(typed) == sorted(heat_hf.__all__)


def pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if "==" in line]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_lower_bounds_are_the_lowest_versions_tested_with() -> None:
    lowest, newest = pins("constraints-lowest.txt"), pins("constraints.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    for requirement in project["dependencies"] + extras:
        name, _, bound = requirement.partition(">=")
        if not bound:
            assert name.startswith("heat-hf[")
            continue
        assert Version(bound) == Version(lowest[name]) <= Version(newest[name]), f"{requirement} is tested with {lowest[name]}"


def test_the_versions_on_the_works_with_page_are_those_tested() -> None:
    page = (ROOT / "docs" / "works-with.md").read_text()
    rows = re.findall(r"^\| ([\w-]+)[^|]*\| ([\d.]+) \| ([\d.]+) \|", page, re.MULTILINE)
    assert len(rows) > 8
    for name, *versions in rows:
        assert versions == [pins("constraints-lowest.txt")[name], pins("constraints.txt")[name]], name


@pytest.mark.slow
def test_the_built_wheel_in_a_clean_environment(tmp_path: Path, minilm: str) -> None:
    """Only the wheel and its declared dependencies: the command works, and Optimum finds its verb."""

    def run(*command: object, **options: object) -> str:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "build", "--outdir", tmp_path, ROOT)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"heat-hf[onnx,optimum] @ file://{wheel}")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    options = {"cwd": tmp_path, "env": environment}
    command = ["compress", minilm, "--target-params-ratio", "0.6", "--output", "out"]
    assert "36 matrices, before" in run(python.with_name("heat-hf"), *command, **options)
    assert "36 matrices, before" in run(python.with_name("optimum-cli"), "heat", "report", "out", **options)
    run(python.with_name("heat-hf"), "search", "shapes", minilm, "--formats", "low_rank", "--output", "t.parquet", **options)
    run(python.with_name("heat-hf"), "report", "t.parquet", "--output", "drawn", **options)
    assert "<svg" in (tmp_path / "drawn" / "shapes.html").read_text()
    run(python.with_name("heat-hf"), "report", "out", "--output", "page", **options)
    assert "Every matrix" in (tmp_path / "page" / "report.html").read_text()
    optimum = (python.with_name("optimum-cli"), "heat")
    for verb in ("compress", "cost", "export", "push"):
        assert f"usage: optimum-cli heat {verb}" in run(*optimum, verb, "--help", **options)
    assert "EDP" in run(*optimum, "cost", "--gemm", "32x64x64", **options)
    run(*optimum, "compress", minilm, "--target-params-ratio", "0.5", "--output", "half", **options)
    assert "int8" in run(*optimum, "export", "half", "--int8", "--output", "half-onnx", **options)
    refused = subprocess.run([*optimum, "push", "nothing", "me/x"], capture_output=True, text=True, **options)
    assert refused.returncode == 2 and "nothing" in refused.stderr
    pipe = "import heat_hf; from transformers import pipeline; print(len(pipeline('feature-extraction', 'out')('A b.')[0]))"
    assert run(python, "-c", pipe, **options).strip() == "5"
    load = "import heat_hf; from transformers import AutoModel; print(AutoModel.from_pretrained('out').encoder.layer[0])"
    assert "FactorizedLinear" in run(python, "-c", load, **options)
