"""What starting up loads: neither torch nor Transformers before a verb needs them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from heat_hf import FORMATS
from heat_hf.cli import VERBS
from heat_hf.encoders.checkpoints.names import package_version

HEAVY = {
    "torch", "transformers", "accelerate", "datasets", "evaluate", "huggingface_hub", "matplotlib", "onnx", "onnxruntime",
    "optimum", "peft", "rich", "scipy", "sklearn", "tensorly",
}  # fmt: skip
AFTER = "\nimport resource, sys; print(*sys.modules); print(resource.getrusage(resource.RUSAGE_SELF).ru_utime)"
UNTIL_FORMATS_ARE_LIGHT = pytest.mark.xfail(strict=True, reason="heat_hf.formats loads torch; remove this mark with that")
SEARCH = ("search", "ranks", "--help")
MOST_SECONDS = 1.0


def started(program: str) -> tuple[set[str], float]:
    """Modules that a program has loaded, and its seconds of CPU."""
    done = subprocess.run([sys.executable, "-c", program + AFTER], capture_output=True, text=True, check=True)
    modules, seconds = done.stdout.splitlines()[-2:]
    return set(modules.split()), float(seconds)


def command(*arguments: str) -> str:
    run = f"heat_hf.cli.main({list(arguments)!r})"
    return f"import heat_hf.cli, contextlib\nwith contextlib.suppress(SystemExit): {run}"


def test_import_loads_no_library() -> None:
    modules, seconds = started("import heat_hf; heat_hf.__version__; dir(heat_hf)")
    assert not modules & (HEAVY | {"numpy"})
    assert not {"heat_hf.compression", "heat_hf.cli", "heat_hf.formats", "heat_hf.integrations.transformers"} & modules
    assert seconds < MOST_SECONDS


@UNTIL_FORMATS_ARE_LIGHT
@pytest.mark.parametrize("arguments", [(), ("--help",), ("--version",), *((verb, "--help") for verb in VERBS), SEARCH])
def test_help_loads_no_library(arguments: tuple[str, ...]) -> None:
    modules, seconds = started(command(*arguments))
    assert not modules & HEAVY
    assert seconds < MOST_SECONDS


@UNTIL_FORMATS_ARE_LIGHT
def test_a_product_is_costed_without_torch() -> None:
    modules, seconds = started(command("cost", "--gemm", "32x64x64", "--json"))
    assert not modules & (HEAVY - {"rich"})
    assert seconds < MOST_SECONDS


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from heat_hf.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"heat-hf {package_version()}\n"


def test_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    from heat_hf.cli import main

    with pytest.raises(SystemExit):
        main(["compress", "--help"])
    assert ", ".join(FORMATS) in " ".join(capsys.readouterr().out.split())
