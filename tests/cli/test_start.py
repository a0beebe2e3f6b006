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
AFTER = "\nimport sys; print(*sys.modules)"
SEARCH = ("search", "ranks", "--help")


def started(program: str) -> set[str]:
    """Modules that a program has loaded."""
    done = subprocess.run([sys.executable, "-c", program + AFTER], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def command(*arguments: str) -> str:
    run = f"heat_hf.cli.main({list(arguments)!r})"
    return f"import heat_hf.cli, contextlib\nwith contextlib.suppress(SystemExit): {run}"


def test_import_loads_no_library() -> None:
    modules = started("import heat_hf; heat_hf.__version__; dir(heat_hf)")
    assert not modules & (HEAVY | {"numpy"})
    assert not {"heat_hf.compression", "heat_hf.cli", "heat_hf.formats", "heat_hf.integrations.transformers"} & modules


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--version",), *((verb, "--help") for verb in VERBS), SEARCH])
def test_help_loads_no_library(arguments: tuple[str, ...]) -> None:
    modules = started(command(*arguments))
    assert not modules & HEAVY


def test_a_product_is_costed_without_torch() -> None:
    modules = started(command("cost", "--gemm", "32x64x64", "--json"))
    assert not modules & (HEAVY - {"rich"})


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
