"""Commands stopped at random moments: what they were to make is there whole or not at all, and the next run makes it."""

from __future__ import annotations

import hashlib
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import transformers
from fake_hub import TOKEN, FakeHub
from kills import PAGE, Ended, Files, Place, send, small_disk

CODES = {"SIGKILL": 137, "SIGINT": 130, "SIGTERM": 143, "full disk": 2, "read-only": 2}
MOMENTS = ("any time", "first bytes", "last steps")
COMMANDS = ("compress", "compress --overwrite", "search", "export", "distill", "push")
STOPS = [(command, kind, moment) for command in COMMANDS for kind in CODES for moment in MOMENTS]
OPTIONS = {
    "compress": "{dense} --target-params-ratio 0.4",
    "search": "shapes {dense} --formats low_rank ttm --orders 2 --top-k 1 --budgets 2 --workers 2",
    "export": "{compressed} --int8",
    "distill": "{compressed} --teacher {dense} --train-file {rows} --batch-size 4 --save-steps 4 --max-length 16",
    "push": "{compressed} me/out",
}
OLD = {"weights": b"old weights", "1_Pooling/config.json": b"old pooling"}


@dataclass
class Remote(Place):
    """A command whose `out` is a repository; what stops it there are the Hub's answers."""

    hub: FakeHub | None = None

    def made(self) -> Files | None:
        assert self.hub is not None
        files = self.hub.repos["me/out"].branches["main"] if self.hub.repos else {}
        return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} or None

    def arrived(self) -> int:
        assert self.hub is not None
        return sum("/commit/" in request for request in self.hub.requests)

    def writes(self) -> bool:
        assert self.hub is not None
        return bool(self.hub.requests)


@contextmanager
def place(command: str, folder: Path, size: int | None = None) -> Iterator[tuple[Place, Callable[[], object]]]:
    """Where a command works, and what takes away a small disk."""
    with ExitStack() as stack:
        if size is None:
            folder.mkdir()
        enlarge = (lambda: None) if size is None else stack.enter_context(small_disk(folder, size))
        if command == "push":
            hub = stack.enter_context(FakeHub())
            own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
            yield (
                Remote(folder, {**own, "HF_HOME": str(folder.with_name("home")), "HF_HUB_DISABLE_TELEMETRY": "1"}, hub),
                enlarge,
            )
            return
        made = Place(folder)
        for name, content in OLD.items() if "--overwrite" in command else ():
            (made.out / name).parent.mkdir(parents=True, exist_ok=True)
            (made.out / name).write_bytes(content)
        yield made, enlarge


@dataclass(frozen=True)
class Whole:
    """What a command makes when nobody stops it, its bytes, and seconds it takes."""

    files: Files
    size: int
    seconds: float


@dataclass(frozen=True)
class Campaign:
    """What commands read, in a folder."""

    folder: Path

    def arguments(self, command: str, out: Path, *more: str) -> list[str]:
        verb, *options = command.split()
        paths = {name: self.folder / name for name in ("dense", "compressed", "rows.txt")}
        given = OPTIONS[verb].format(dense=paths["dense"], compressed=paths["compressed"], rows=paths["rows.txt"])
        return [verb, *given.split(), *([] if verb == "push" else ["--output", str(out)]), *options, *more]

    @cache  # noqa: B019 - there is one
    def whole(self, command: str) -> Whole:
        with place(command, self.folder / command) as (alone, _):
            started = time.monotonic()
            ended = alone.run(self.arguments(command, alone.out))
            seconds = time.monotonic() - started
            files = alone.made()
            assert ended.code == 0, ended.said
            assert files is not None and not alone.beside()
            size = sum(file.stat().st_size for file in (alone.out, *alone.out.rglob("*")) if file.is_file())
            return Whole(files, size, seconds)


@pytest.fixture(scope="module")
def campaign(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """With the first block of MiniLM."""
    made = Campaign(tmp_path_factory.mktemp("campaign"))
    model = transformers.AutoModel.from_pretrained(minilm, num_hidden_layers=1)
    model.save_pretrained(made.folder / "dense")
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(made.folder / "dense")
    words = ("a man", "a woman", "nobody", "a dog", "sings", "plays a guitar", "sleeps", "runs fast over a wide field")
    rows = [f"{words[i % 4]} {words[4 + i // 4 % 4]} {'again ' * (i % 3)}." for i in range(32)]
    (made.folder / "rows.txt").write_text("\n".join(rows))
    with place("compress", made.folder / "made") as (alone, _):
        assert alone.run(made.arguments("compress", made.folder / "compressed")).code == 0
    return made


def stopped(campaign: Campaign, kind: str, moment: str, made: Place, arguments: list[str], wait: float) -> Ended:
    """Run a command, and stop it."""
    before = made.arrived()
    after = {"any time": lambda: True, "first bytes": made.writes, "last steps": lambda: made.arrived() != before}[moment]

    def stop(process: subprocess.Popen[bytes]) -> None:
        if kind.startswith("SIG"):
            send(kind, process)
        elif isinstance(made, Remote) and made.hub is not None:
            made.hub.fail = lambda _method, _path: 507 if kind == "full disk" else 403
        elif kind == "read-only":
            made.folder.chmod(0o555)

    ended = made.run(arguments, stop, after, wait)
    made.folder.chmod(0o755)
    if isinstance(made, Remote) and made.hub is not None:
        made.hub.fail = lambda _method, _path: None
    return ended


def disk(kind: str, command: str, moment: str, size: int, drawn: float) -> int | None:
    """Bytes of a disk that is too small for what a command makes beside what is there, by a page at the last steps."""
    if kind != "full disk" or command == "push":
        return None
    there = len(OLD) * PAGE if "--overwrite" in command else 0
    return there + max(1, {"any time": int(drawn * size), "first bytes": 0, "last steps": size - PAGE}[moment] // PAGE) * PAGE


@pytest.mark.slow
@pytest.mark.parametrize(("command", "kind", "moment"), STOPS)
def test_nothing_is_half_made(
    command: str, kind: str, moment: str, campaign: Campaign, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    whole, draw = campaign.whole(command), random.Random(f"{command} {kind} {moment}")
    wait = draw.uniform(0, {"any time": whole.seconds, "first bytes": 0.2, "last steps": 0.05}[moment])
    size = disk(kind, command, moment, whole.size, draw.uniform(0, 1))
    for attempt in range(8):  # a command that has ended too early is run again, and stopped earlier
        with place(command, tmp_path / str(attempt), size) as (made, enlarge):
            old, arguments = made.made(), campaign.arguments(command, made.out)
            ended = stopped(campaign, kind, moment, made, arguments, wait / 2**attempt) if size is None else made.run(arguments)
            if ended.stopped or size is not None:
                found = made.made()
                record_property("found", outcome(found, old, whole))
                told(kind, ended, made, found, old, whole)
                enlarge()
                # What is there is not made again without being asked to, but for a search, which takes it.
                more = ["--overwrite"] if found == whole.files and command in ("compress", "export", "distill") else []
                again = made.run([*arguments, *more])
                assert again.code == 0, again.said
                assert made.made() == whole.files
                assert not made.beside()
                return
    pytest.fail(f"{command} was always too fast to be stopped")


def outcome(found: Files | None, old: Files | None, whole: Whole) -> str:
    return "new" if found == whole.files else "absent" if found is None else "old" if found == old else "half-written"


def told(kind: str, ended: Ended, made: Place, found: Files | None, old: Files | None, whole: Whole) -> None:
    """What was there is there, or what was to be made, and what happened is told in one line."""
    assert found in ((old, whole.files, None) if kind == "SIGKILL" else (old, whole.files))
    assert "Traceback" not in ended.said, ended.said
    assert "Exception ignored" not in ended.said, ended.said
    if found == whole.files and ended.code == 0 and not kind.startswith("SIG"):
        return  # it was done
    assert ended.code == CODES[kind], ended.said
    if kind == "SIGKILL" or (found == whole.files and kind.startswith("SIG")):
        return
    assert len(ended.lines) == 1, ended.said
    kept = {"out.partial", "out.checkpoints"}
    if kind != "read-only":  # there, nothing can be removed
        assert made.beside() <= kept
    if kind.startswith("SIG"):
        assert all(name in ended.lines[0] for name in made.beside())


def test_the_page_says_how_many() -> None:
    page = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    assert f"{len(STOPS)} times" in " ".join(page.split())
