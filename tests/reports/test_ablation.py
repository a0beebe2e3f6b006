"""Figure 11 of a user's own searches, with and without stabilizers, finished or refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import small_model

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.cli import main
from heat_hf.reports.ablation import ablation, recipe_in, recipe_of, require_same_subnets
from heat_hf.reports.ranks import RankRecord

FIDELITY = {"spearman": 0.9, "kendall": 0.8, "networks": 2, "measured": [0.7, 0.8], "predicted": [0.7, 0.8]}


@pytest.fixture(scope="module")
def plain() -> RankRecord:
    """Of a search that measured no SubNets."""
    return HeatCompressor(small_model("bert")).search_ranks(HeatConfig(target_params_ratio=0.5, rank_search="uniform"))


def searched(plain: RankRecord, accuracies: list[float], *without: str, seed: int = 0) -> RankRecord:
    """As a SuperNet's search would have found it."""
    supernet = {"max_steps": 40, "subnets": len(accuracies), **({"without": list(without)} if without else {})}
    fidelity = {**FIDELITY, "subnets": [[0.5, accuracy] for accuracy in accuracies]}
    return dataclasses.replace(plain, key={**plain.key, "supernet": supernet, "seed": seed}, fidelity=fidelity)


def unfinished(record: RankRecord, folder: Path) -> Path:
    """The same as a search leaves it that is refused, with a line torn by a crash."""
    folder.mkdir()
    (folder / "key.json").write_text(json.dumps(dict(record.key)))
    assert record.fidelity is not None
    lines = [json.dumps([str(place), [[accuracy]]]) for place, (_, accuracy) in enumerate(record.fidelity["subnets"])]
    (folder / "part-0.jsonl").write_text("\n".join([*lines, '["9", [[0.']))
    return folder


def test_recipes_of_finished_and_refused_searches(plain: RankRecord, tmp_path: Path) -> None:
    less = unfinished(searched(plain, [0.5, 0.5], "first_slices"), tmp_path / "less.json.partial")
    both = [recipe_in(less), recipe_of(searched(plain, [0.8, 0.9]), "full.json")]
    assert recipe_of(plain, "plain.json") is None
    assert both[1] is not None and both[1].steps == 40
    found = ablation([own for own in both if own is not None])
    assert list(found.items()) == [("full recipe", (0.8, 0.9)), ("without first slices", (0.5, 0.5))]


@pytest.mark.parametrize(
    ("accuracies", "seed", "message"),
    [([0.5, 0.5], 1, "other.json was searched with another seed than"), ([0.5], 0, "another supernet|has 1 measured SubNets")],
)
def test_other_searches_are_not_compared(plain: RankRecord, accuracies: list[float], seed: int, message: str) -> None:
    full, other = recipe_of(searched(plain, [0.8, 0.9]), "full.json"), searched(plain, accuracies, "sandwich", seed=seed)
    less = recipe_of(other, "other.json")
    assert full is not None and less is not None
    with pytest.raises(ValueError, match=message):
        require_same_subnets(full, less)


def test_the_command_draws_it(plain: RankRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = tmp_path / "full.json"
    searched(plain, [0.8, 0.9]).save(full)
    less = unfinished(searched(plain, [0.5, 0.6], "sandwich"), tmp_path / "less.json.partial")
    command = ["report", str(full), "--figures", "11", "--output", str(tmp_path / "out")]
    assert main(command) == 2 and "--without some stabilizers" in capsys.readouterr().err
    assert main([*command, "--beside", str(less)]) == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["figure-11.png"]
    assert main(["report", str(less)]) == 2 and "is an unfinished search" in capsys.readouterr().err
    assert main(["report", str(full), "--beside", str(tmp_path / "no.json.partial"), "--output", str(tmp_path / "no")]) == 2
    assert "no.json.partial has no measured SubNets" in capsys.readouterr().err
    (less / "part-0.jsonl").unlink()
    assert main([*command, "--overwrite", "--beside", str(less)]) == 2
    assert "has no measured SubNets" in capsys.readouterr().err
