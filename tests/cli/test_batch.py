"""`heat-hf batch`: many checkpoints to many budgets, from one file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from conftest import SENTENCES, small_model
from pages import page_data, run_page

from heat_hf import CompressionReport
from heat_hf.cli import main
from heat_hf.encoders.statistics import Statistics

Asked = dict[str, Any]


@pytest.fixture
def asked(checkpoint: Path, tmp_path: Path) -> Asked:
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES * 3))
    headless = small_model("bert", head=False, seed=1)
    headless.resize_token_embeddings(transformers.AutoConfig.from_pretrained(checkpoint).vocab_size)
    headless.save_pretrained(tmp_path / "headless")
    for file in checkpoint.glob("tokenizer*"):
        (tmp_path / "headless" / file.name).write_bytes(file.read_bytes())
    return {
        "models": {"plain": str(tmp_path / "headless"), "head": {"model": str(checkpoint), "exclude": ["layer.0"]}},
        "budgets": {"half": {"target_params_ratio": 0.5}, "rank-3": {"rank": {"24x24": 3, "48x24": 3, "24x48": 3}}},
        "options": {
            "calibration_file": str(tmp_path / "texts.txt"),
            "refine_steps": 0,
            "sequence_length": 16,
            "match_variance": True,
        },
    }


def batch(asked: object, folder: Path, *more: str) -> int:
    file = folder / "runs.yaml"
    file.write_text(asked if isinstance(asked, str) else yaml.safe_dump(asked, sort_keys=False))
    return main(["batch", str(file), "--output", str(folder / "out"), *more])


def test_every_model_gets_every_budget(asked: Asked, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    collected = []
    collect = Statistics.collect
    monkeypatch.setattr(Statistics, "collect", lambda *args, **options: collected.append(1) or collect(*args, **options))
    assert batch(asked, tmp_path, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [(row["model"], row["budget"]) for row in rows] == [
        ("plain", "half"), ("plain", "rank-3"), ("head", "half"), ("head", "rank-3"),
    ]  # fmt: skip
    assert len(collected) == 2, "statistics of a model are shared by its budgets"
    for row in rows:
        report = CompressionReport.load(tmp_path / "out" / row["model"] / row["budget"])
        assert row["params_ratio"] == report.params_ratio and row["measured"] == report.fidelity.measured
        assert report.request["match_variance"] and report.tokens == 16
        excluded = {tensor.name for tensor in report.tensors if "layer.0" in tensor.name}
        assert bool(excluded) == (row["model"] == "plain")
    page = (tmp_path / "out" / "batch.html").read_text()
    assert page_data(page)["runs"] == rows
    seen = run_page(page, "out.rows = byId('body').textContent; out.marks = byId('plot').textContent;", tmp_path)
    assert all(row["budget"] in seen["rows"] and f"{row['model']}, {row['budget']}" in seen["marks"] for row in rows)


def test_what_is_there_is_kept_and_what_is_new_is_run(asked: Asked, tmp_path: Path, capsys: Any) -> None:
    del asked["models"]["head"]
    assert batch(asked, tmp_path) == 0
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "plain").rglob("*")}
    asked["budgets"]["third"] = {"target_params_ratio": 0.3}
    capsys.readouterr()
    assert batch(asked, tmp_path) == 0
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    told = capsys.readouterr()
    assert "plain/third:" in told.err and "plain/half:" not in told.err
    assert all(name in told.out for name in ("half", "rank-3", "third"))


def changed_option(asked: Asked) -> None:
    asked["options"]["seed"] = 5


def changed_rows(asked: Asked) -> None:
    Path(asked["options"]["calibration_file"]).write_text("Something else is to be calibrated on.\n" * 9)


@pytest.mark.parametrize("change", [changed_option, changed_rows])
def test_a_folder_of_another_run_is_not_taken_for_this_one(
    change: Callable[[Asked], None], asked: Asked, tmp_path: Path, capsys: Any
) -> None:
    del asked["models"]["head"], asked["budgets"]["half"]
    assert batch(asked, tmp_path) == 0
    change(asked)
    assert batch(asked, tmp_path) == 2
    assert "of another run" in capsys.readouterr().err.splitlines()[-1]
    asked["budgets"] = {"other": asked["budgets"]["rank-3"]}  # another folder, and other statistics than were kept
    assert batch(asked, tmp_path) == 0


def test_a_run_that_fails_does_not_stop_the_others(asked: Asked, tmp_path: Path, capsys: Any) -> None:
    asked["budgets"] = {"impossible": {"target_params_ratio": 0.001}, **asked["budgets"]}
    del asked["models"]["head"]
    assert batch(asked, tmp_path) == 2
    told = capsys.readouterr()
    assert "1 of 3 runs failed" in told.err.splitlines()[-1] and "plain/impossible failed" in told.out
    assert (tmp_path / "out/plain/half/config.json").exists() and not (tmp_path / "out/plain/impossible").exists()
    assert list(page_data((tmp_path / "out" / "batch.html").read_text())["failed"]) == ["plain/impossible"]


WRONG = {
    "no YAML": ("models: [", "is no YAML"),
    "a list": ("- a", "must have models, budgets, options"),
    "another field": ({"model": {}}, "must have models, budgets, options"),
    "no budgets": ({"models": {"a": "b"}}, "budgets must be names"),
    "a path for a name": ({"models": {"../a": "b"}, "budgets": {"x": {"rank": 3}}}, "a name has letters"),
    "no checkpoint": ({"models": {"a": {"seed": 1}}, "budgets": {"x": {"rank": 3}}}, "must be a checkpoint"),
    "a number": ({"models": {"a": "b"}, "budgets": {"x": 3}}, "must be options of compress"),
    "no such option": ({"models": {"a": "b"}, "budgets": {"x": {"rang": 3}}}, "a, x: unrecognized arguments: --rang 3"),
    "a value out of range": ({"models": {"a": "b"}, "budgets": {"x": {"target_params_ratio": 2}}}, "a, x: argument --target"),
    "two budgets in one": ({"models": {"a": "b"}, "budgets": {"x": {"rank": 3, "target_params_ratio": 0.3}}}, "a, x: "),
    "an output": ({"models": {"a": "b"}, "budgets": {"x": {"rank": 3, "output": "y"}}}, "output is not to be given"),
    "a file that is not there": (
        {"models": {"a": "b"}, "budgets": {"x": {"rank": 3}}, "options": {"calibration_file": "gone.txt"}}, "gone.txt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_before_work(case: str, tmp_path: Path, capsys: Any) -> None:
    asked, words = WRONG[case]
    assert batch(asked, tmp_path) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()
