"""Pushing to and loading from the Hub, against a loopback server that speaks its API, and what happens when that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_hub import TOKEN, FakeHub

CLIENT = Path(__file__).parents[1] / "hub_client.py"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        yield server


@pytest.fixture(scope="module")
def model(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed real MiniLM, saved with its card."""
    from heat_hf import HeatCompressor, HeatConfig

    folder = tmp_path_factory.mktemp("model") / "minilm-heat"
    compressor = HeatCompressor.from_pretrained(minilm)
    compressor.compress(HeatConfig(target_params_ratio=0.4), save_directory=folder)
    return folder


def client(
    hub: FakeHub,
    tmp_path: Path,
    *arguments: str,
    token: str = TOKEN,
    offline: bool = False,
    program: tuple[str, ...] = (str(CLIENT),),
) -> Any:
    """Run the client in a process of its own: the Hub's address and the token are read when it is imported."""
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": str(int(offline))}
    environment = {**os.environ, **own, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *program, *arguments], capture_output=True, text=True, env=environment)


def cli(hub: FakeHub, tmp_path: Path, *arguments: str, token: str = TOKEN) -> Any:
    return client(hub, tmp_path, *arguments, token=token, program=("-m", "heat_hf.cli"))


def test_a_pushed_model_comes_back_bit_by_bit(hub: FakeHub, minilm: str, tmp_path: Path) -> None:
    done = client(hub, tmp_path, "push", minilm, "me/minilm-heat")
    assert done.returncode == 0, done.stderr[-3000:]
    oid, weights = done.stdout.split()[-2:]
    repo = hub.repos["me/minilm-heat"]
    assert repo.private and repo.sha("main") == oid
    files = repo.branches["main"]
    assert {"README.md", "config.json", "heat_model.safetensors", "heat_report.json", "tokenizer.json"} <= set(files)
    assert "POST /api/validate-yaml" in hub.requests
    assert sum("/commit/" in request for request in hub.requests) == 1, "all in one commit"
    card = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert card["library_name"] == "heat_hf" and card["model-index"][0]["results"]
    assert minilm not in files["README.md"].decode(), "no path of this machine"
    loaded = client(hub, tmp_path / "elsewhere", "load", "me/minilm-heat")
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert loaded.stdout.split()[-1] == weights
    again = client(hub, tmp_path / "elsewhere", "load", "me/minilm-heat", offline=True)
    assert again.returncode == 0 and again.stdout.split()[-1] == weights, "from the cache, offline"


def test_a_folder_is_pushed_to_a_branch_and_loaded_from_it(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    done = cli(hub, tmp_path, "push", str(model), "minilm-heat", "--revision", "v2", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    repo = hub.repos["me/minilm-heat"]
    assert not repo.branches["main"] and json.loads(done.stdout)["commit"] == repo.sha("v2")
    loaded = client(hub, tmp_path, "load", "me/minilm-heat", "v2")
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    missing = client(hub, tmp_path, "load", "me/minilm-heat")
    assert missing.returncode != 0 and "config.json" in missing.stderr


def test_a_trainer_pushes_what_it_made(hub: FakeHub, model: Path, minilm: str, tmp_path: Path) -> None:
    done = client(hub, tmp_path, "distil", str(model), minilm, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    oid, weights = done.stdout.split()[-2:]
    repo = hub.repos["me/minilm-distilled"]
    assert repo.sha("main") == oid and sum("/commit/" in request for request in hub.requests) == 1
    files = repo.branches["main"]
    assert {"heat_model.safetensors", "heat_report.json", "trainer_state.json", "training.png"} <= set(files)
    assert "1_Pooling/config.json" in files, "it stays a sentence encoder"
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))], "no pickle"
    card = files["README.md"].decode()
    assert "“two-stage” on 16 rows: 2 steps of 32 rows" in card and "training.png" in card
    loaded = client(hub, tmp_path / "elsewhere", "load", "me/minilm-distilled")
    assert loaded.returncode == 0 and loaded.stdout.split()[-1] == weights


FAILURES = {
    401: "log in with `hf auth login`, or pass token (HTTP 401)",
    403: "make one with write access (HTTP 403)",
    409: "somebody else changed the repository meanwhile: push again (HTTP 409)",
    412: "somebody else pushed to the revision meanwhile: push again (HTTP 412)",
    429: "too many requests: push again later (HTTP 429)",
    500: "the Hub has a problem: push again later (HTTP 500)",
    "drop": "the Hub cannot be reached",
}


def test_a_failed_commit_says_what_is_left(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    asked: set[str] = set()

    def fail(_method: str, path: str) -> int | str | None:
        status = next((status for status in FAILURES if f"/fail-{status}/commit/" in path), None)
        if status is None or path in asked:
            return None
        if status != "drop":  # a dropped connection may be tried again by the client, a status is an answer
            asked.add(path)
        return status

    hub.fail = fail
    done = client(hub, tmp_path, "fail", str(model), *map(str, FAILURES))
    assert done.returncode == 0, done.stderr[-3000:]
    for status, (code, said) in zip(FAILURES, json.loads(done.stdout.splitlines()[-1]), strict=True):
        name = f"me/fail-{status}"
        assert code == 2 and said.startswith(f"heat-hf: the push failed, the new repository {name} is still empty: ")
        assert FAILURES[status] in said
        assert not hub.repos[name].branches["main"]
    hub.fail = lambda _method, _path: None
    done = cli(hub, tmp_path, "push", str(model), "fail-500")
    assert done.returncode == 0, "the same command completes it"
    assert "README.md" in hub.repos["me/fail-500"].branches["main"]


def test_a_wrong_token_makes_nothing(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    done = cli(hub, tmp_path, "push", str(model), "minilm-heat", token="hf_wrong")
    assert done.returncode == 2 and "cannot make the repository minilm-heat" in done.stderr and "HTTP 401" in done.stderr
    assert not hub.repos


def test_an_upload_that_breaks_is_tried_again(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    broken: list[str] = []

    def once(method: str, path: str) -> str | None:
        if method == "PUT" and not broken:
            broken.append(path)
            return "drop"
        return None

    hub.fail = once
    done = cli(hub, tmp_path, "push", str(model), "minilm-heat")
    assert done.returncode == 0, done.stderr[-3000:]
    assert broken and "heat_model.safetensors" in hub.repos["me/minilm-heat"].branches["main"]


def test_what_is_no_compressed_model_is_not_pushed(hub: FakeHub, minilm: str, tmp_path: Path) -> None:
    done = cli(hub, tmp_path, "push", minilm, "minilm-heat")
    assert done.returncode == 2 and "has no heat_report.json" in done.stderr
    assert not hub.requests
