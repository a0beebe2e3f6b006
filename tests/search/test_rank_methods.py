"""The registry of rank searches: what users can ask for, what each needs, and that looking at it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import small_model, token_ids

from heat_hf import RANK_SEARCHES, HeatConfig, RankSearch
from heat_hf.compression.job import Job
from heat_hf.search.ranks.methods import get_rank_search
from heat_hf.search.ranks.methods.uniform import Uniform

BATCHES = [{"input_ids": token_ids(24, 6)}]

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


def test_what_a_method_needs_is_refused_by_its_check() -> None:
    """Whatever the method: a class that declares a need and nothing else refuses a problem without it."""
    problem = Job(small_model("bert"), HeatConfig(target_params_ratio=0.5, accelerator=None)).problem
    messages = {
        "needs_calibration": "rank_search='greedy' needs a calibration_dataset",
        "needs_table": "rank_search='greedy' needs a cost table",
        "needs_training": "rank_search='greedy' needs a train_dataset",
    }
    for need, message in messages.items():
        method = type("Greedy", (Uniform,), {"name": "greedy", need: True})()
        with pytest.raises(ValueError, match=message):
            method.check(problem, [])
    type("Greedy", (Uniform,), {"name": "greedy"})().check(problem, [])


@pytest.mark.parametrize("target", ["target_params_ratio", "target_edp_ratio"])
@pytest.mark.parametrize("name", [name for name, method in RANK_SEARCHES.items() if not method.needs_training])
def test_solve_keeps_its_budget(name: str, target: str) -> None:
    """The SuperNet's, which trains, is kept in test_foreign_cost_model.py."""
    job = Job(small_model("bert"), HeatConfig(rank_search=name, sequence_length=16, **{target: 0.7}), BATCHES)
    (budget,) = job.budgets
    method = job.config.method
    method.check(job.problem, [budget])
    total = job.costs.total(method.solve(job.problem, budget).settings)
    assert budget.limit == pytest.approx(0.7 * job.costs.dense.of(budget.kind))
    assert total.of(budget.kind) <= budget.limit


class Depth(Uniform):
    """Shares of parameters that grow with depth, and add up to more than the one asked for."""

    name = "depth"

    def shares(self, problem: object, share: float) -> dict[str, float]:
        last = len(problem.linears) - 1
        return {name: min(0.95, share * (0.5 + 1.5 * number / last)) for number, name in enumerate(problem.linears)}


@pytest.mark.parametrize("target", [0.4, 0.6])
def test_a_rules_own_shares_keep_a_budget_of_parameters(target: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RANK_SEARCHES, "depth", Depth())
    job = Job(small_model("bert"), HeatConfig(rank_search="depth", target_params_ratio=target, accelerator=None))
    as_asked = job.costs.total(job.config.method.settings(job.problem, target)).parameters
    (variant,) = job.search().variants
    assert 0.9 * target <= variant.params_ratio <= target < as_asked / job.costs.dense.parameters


def test_a_registered_method_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="rank_search must be one of"):
        HeatConfig(rank_search="depth", target_params_ratio=0.5)
    monkeypatch.setitem(RANK_SEARCHES, "depth", Depth())
    assert isinstance(HeatConfig(rank_search="depth", target_params_ratio=0.5).method, Depth)
    with pytest.raises(ValueError, match=r"rank_search must be one of .*, depth, got 'best'"):
        HeatConfig(rank_search="best", target_params_ratio=0.5)
    assert all(isinstance(method, RankSearch) for method in RANK_SEARCHES.values())


@pytest.mark.parametrize("verb", [["compress"], ["search", "ranks"]])
def test_the_command_line_lists_a_registered_method(verb: list[str]) -> None:
    code = f"""
from heat_hf import RANK_SEARCHES
from heat_hf.search.ranks.methods.uniform import Uniform
RANK_SEARCHES["depth"] = type("Depth", (Uniform,), {{"name": "depth"}})()
from heat_hf.cli import main
main([*{verb}, "--help"])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "random, depth (default:" in " ".join(shown.split())


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    for refuse in (lambda: get_rank_search("best"), lambda: HeatConfig(rank_search="best", rank=3)):
        with pytest.raises(ValueError, match=rf"rank_search must be one of {', '.join(RANK_SEARCHES)}, got 'best'"):
            refuse()


def test_methods_are_looked_at_without_torch() -> None:
    code = "import sys, heat_hf.search.ranks.methods; print({'torch', 'transformers', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
