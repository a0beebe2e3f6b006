"""Registration with Transformers in every order of imports, each in a process of its own that loads a compressed checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import small_model

from heat_hf import HeatCompressor, HeatConfig

LOAD = """
def loaded(folder):
    from transformers import AutoModel
    return sum(type(module).__name__ == "FactorizedLinear" for module in AutoModel.from_pretrained(folder).modules())
"""
ORDERS = {
    "heat_hf first": "import heat_hf\nfrom transformers import AutoModel",
    "Transformers first": "from transformers import AutoModel\nimport heat_hf",
    "Transformers first, its models later": "import transformers\nimport heat_hf",
    "only its registry": "import transformers.quantizers.auto\nimport heat_hf",
    "its own quantizer": "import heat_hf.integrations.transformers",
    "a module that imports modeling code": "import heat_hf.compression.factorize",
    "twice, and again": (
        "import importlib, heat_hf, heat_hf.integrations.registration as registration\n"
        "importlib.reload(heat_hf); importlib.reload(registration); importlib.reload(heat_hf)\n"
        "import transformers.quantizers.auto as registry\n"
        "importlib.reload(heat_hf); importlib.reload(registry)"
    ),
    "in threads": (
        "import importlib, threading\n"
        "names = ['heat_hf', 'transformers.modeling_utils', 'heat_hf.compression.factorize']\n"
        "threads = [threading.Thread(target=importlib.import_module, args=(name,)) for name in names]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]"
    ),
}  # fmt: skip
SPAWN = """
import multiprocessing, sys

def count(model):
    return sum(type(module).__name__ == "FactorizedLinear" for module in model.modules())

if __name__ == "__main__":
    import heat_hf
    from transformers import AutoModel
    model = AutoModel.from_pretrained(sys.argv[1])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(count, (model,)) == count(model) == 12
"""
FAILS = """
import sys
import heat_hf
sys.modules["transformers.quantizers.base"] = None
try:
    import transformers.quantizers.auto
except ImportError as error:
    assert "transformers.quantizers.base" in str(error)
else:
    raise AssertionError("the error was swallowed")
del sys.modules["transformers.quantizers.base"]
assert loaded(sys.argv[1]) == 12
"""


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registration") / "compressed"
    HeatCompressor(small_model("bert")).compress(HeatConfig(rank=4), save_directory=folder)
    return folder


def run(*command: object) -> None:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_a_compressed_checkpoint_loads(compressed: Path, order: str) -> None:
    run("-c", f"{ORDERS[order]}\n{LOAD}\nimport sys\nassert loaded(sys.argv[1]) == 12", compressed)


def test_spawned_processes_unpickle_models(compressed: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SPAWN)
    run(tmp_path / "program.py", compressed)


def test_a_failing_import_is_not_swallowed_and_can_be_tried_again(compressed: Path) -> None:
    run("-c", LOAD + FAILS, compressed)


def test_the_registry_has_its_own_loader() -> None:
    import transformers.quantizers.auto as registry

    assert type(registry.__loader__).__module__ == type(registry.__spec__.loader).__module__ == "_frozen_importlib_external"
    assert registry.AUTO_QUANTIZER_MAPPING["heat"].requires_calibration is False
