"""The registry of rank searches: what users can ask for, what each needs, and that looking at it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from heat_hf import RANK_SEARCHES, HeatConfig
from heat_hf.search.ranks.methods import get_rank_search

NEEDS = {
    "rank": {"rank": 4},
    "shape": {"shape": "6x4:24", "target_params_ratio": 0.5},
    "mixed": {"decomposition": "mixed", "target_params_ratio": 0.5},
    "no budget": {},
    "no calibration": {"activation_aware": False, "target_params_ratio": 0.5},
    "no accelerator": {"accelerator": None, "target_params_ratio": 0.5},
}


def allowed(name: str, request: str) -> bool:
    try:
        HeatConfig(rank_search=name, **NEEDS[request])
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", RANK_SEARCHES)
def test_what_a_method_declares_is_what_a_request_may_ask(name: str) -> None:
    method = RANK_SEARCHES[name]
    assert method.name == name
    assert allowed(name, "rank") == method.takes_rank
    assert allowed(name, "shape") == method.takes_shape
    assert allowed(name, "mixed") == method.mixes_formats
    assert allowed(name, "no budget") == method.budget_optional
    assert allowed(name, "no calibration") != method.needs_calibration
    assert allowed(name, "no accelerator") != method.needs_table
    if method.needs_calibration:
        with pytest.raises(ValueError, match="needs a calibration_dataset"):
            method.require(calibration=False, training=True)
    if method.needs_training:
        with pytest.raises(ValueError, match="needs a train_dataset"):
            method.require(calibration=True, training=False)
    method.require(calibration=True, training=True)


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    for refuse in (lambda: get_rank_search("best"), lambda: HeatConfig(rank_search="best", rank=3)):
        with pytest.raises(ValueError, match=rf"rank_search must be one of {', '.join(RANK_SEARCHES)}, got 'best'"):
            refuse()


def test_methods_are_looked_at_without_torch() -> None:
    code = "import sys, heat_hf.search.ranks.methods; print({'torch', 'transformers', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
