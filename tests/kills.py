"""Commands in processes of their own that are stopped at drawn moments: by a signal, a full disk, a folder gone read-only."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NOT_OURS = ("torchinductor_", ".ses")  # among temporary files: caches of PyTorch and ONNX Runtime
# Root may write anywhere, users may not.
AS_A_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
PAGE = os.sysconf("SC_PAGE_SIZE")
Files = dict[str, str]


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: as a shell shows it: 128 and its number for a signal.
        said: its standard error.
        stopped: whether it was still running when it was to be stopped.
    """

    code: int
    said: str
    stopped: bool

    @property
    def lines(self) -> list[str]:
        """What `heat-hf` itself said of an error."""
        return [line for line in self.said.splitlines() if line.startswith("heat-hf: ")]


@dataclass
class Place:
    """A folder where a command makes `out`, with its temporary files in `tmp`.

    Attributes:
        folder: where.
        environment: of the command, beside this process's own.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "tmp").mkdir(parents=True)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def run(
        self,
        arguments: list[str],
        stop: Callable[[subprocess.Popen[bytes]], None] | None = None,
        after: Callable[[], bool] = lambda: True,
        wait: float = 0,
    ) -> Ended:
        """Run a command; `stop` is called `wait` seconds after it listens to signals and `after` is true, if it still runs."""
        said = self.folder.with_name(f"{self.folder.name}.said")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder / "tmp"), **self.environment}
        command = [*AS_A_USER, sys.executable, "-m", "heat_hf.cli", *arguments]
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background is deaf to it
        with said.open("w") as errors:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=errors, env=environment, start_new_session=True
            )
        stopped = False
        if stop is not None:
            while process.poll() is None and not (_listens(process.pid) and after()):
                time.sleep(0.001)
            time.sleep(wait)
            stopped = process.poll() is None
            if stopped:
                stop(process)
        code = process.wait()
        return Ended(128 - code if code < 0 else code, said.read_text(), stopped)

    def made(self) -> Files | None:
        """Digests of the files at `out`; None if nothing is there."""
        files = [self.out, *self.out.rglob("*")] if self.out.exists() else []
        found = {
            str(file.relative_to(self.out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()
        }
        return found or None

    def arrived(self) -> int:
        """Changes when something takes its place at `out`."""
        return self.out.stat().st_ino if self.out.exists() else 0

    def beside(self) -> set[str]:
        """What is beside `out`, and among temporary files."""
        temporary = {f"tmp/{file.name}" for file in (self.folder / "tmp").iterdir() if not file.name.startswith(NOT_OURS)}
        return temporary | ({file.name for file in self.folder.iterdir()} - {"out", "tmp"})

    def writes(self) -> bool:
        """Whether a file beside `out` has a byte."""
        folders = [self.folder / name for name in self.beside()]
        try:
            return any(_size(file) for folder in folders for file in folder.rglob("*"))
        except FileNotFoundError:  # a folder went while it was looked through: something is being written
            return True


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:  # it has gone meanwhile
        return 0


def _listens(process: int) -> bool:
    """Whether it catches SIGTERM, as `heat-hf` does from its start: not yet while the interpreter starts."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    (caught,) = (line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def send(name: str, process: subprocess.Popen[bytes]) -> None:
    """A signal; SIGINT to all processes that were started, as a terminal does."""
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(getattr(signal, name))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """A file system of `size` bytes at a folder; what it gives makes it large. Skips where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=4g", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
