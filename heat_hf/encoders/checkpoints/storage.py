"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OLD = ".replaced"  # in the scratch directory: the directory whose place the new one takes

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_target(target: str | os.PathLike[str], overwrite: bool, size: int = 0) -> Path:
    """Make sure, before any work, that a directory can be written at `target`.

    Args:
        target: the directory to be made; its parents may be missing.
        overwrite: whether a non-empty directory there may be replaced.
        size: bytes that will be written.

    Raises:
        FileExistsError: if something is there already.
        OSError: if the place cannot be written or has too little room.
    """
    path = Path(target).absolute()
    remove_leftovers(path)  # which may put back what is at the target
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; name a directory")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise FileExistsError(f"{path} is not empty; pass overwrite (--overwrite) to replace it")
    parent = next(folder for folder in path.parents if folder.exists())
    with _scratch(parent / path.name):
        pass
    free = shutil.disk_usage(parent).free
    if free < size:
        raise OSError(f"{parent} has {free / 2**20:.0f} MiB free, the result needs {size / 2**20:.0f} MiB")
    return path


@contextmanager
def atomic_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside `target` that takes its place when the block ends, or vanishes if it fails.

    Raises:
        OSError: if it cannot be written.
    """
    path = Path(target).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(path) as scratch:
        temporary = scratch / path.name
        temporary.touch()
        yield temporary
        temporary.replace(path)


@contextmanager
def atomic_directory(target: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its place when the block ends, or vanishes if it fails.

    Raises:
        FileExistsError: as `check_target`; also if another process has written there meanwhile.
        OSError: as `check_target`.
    """
    path = check_target(target, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(path) as scratch:
        temporary = scratch / path.name
        temporary.mkdir()
        yield temporary
        readable = temporary.stat().st_mode & 0o666  # safetensors writes files that only their owner may read
        for file in temporary.rglob("*.safetensors"):
            file.chmod(readable)
        _replace(temporary, path, scratch / OLD, overwrite)


@contextmanager
def writing(target: str | os.PathLike[str]) -> Iterator[None]:
    """Tell what a full disk did, in the block, to what will be at `target`: each library has an error of its own for it.

    Raises:
        OSError: instead of such an error.
    """
    try:
        yield
    except Exception as error:
        code = next((code for code in FULL if os.strerror(code) in str(error)), None)
        if "inline_container" in str(error):  # PyTorch's writer, which does not say why it failed
            code = errno.EIO
        if code is None:
            raise
        raise OSError(code, f"cannot write {os.fspath(target)}: {os.strerror(code)}") from error


def discard(folder: Path, target: Path) -> None:
    """Remove a folder that was needed until `target` was there; if the process dies meanwhile, its rest goes with the next one.

    Raises:
        OSError: if it cannot be moved.
    """
    with _scratch(target) as scratch:
        folder.rename(scratch / folder.name)


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory for temporary files; if the process dies, it goes with the next one's."""
    with _scratch(Path(tempfile.gettempdir()) / "temporary") as scratch:
        yield scratch


def _replace(new: Path, path: Path, old: Path, overwrite: bool) -> None:
    if overwrite:
        with contextlib.suppress(FileNotFoundError):
            path.rename(old)
    try:
        new.rename(path)  # onto nothing or an empty directory: anything else was written while this ran
    except OSError as error:
        if path.is_dir() and any(path.iterdir()):
            raise FileExistsError(f"{path} was written by another process meanwhile") from error
        raise


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A locked directory beside `target`; it goes with the block, or with the next one if the process dies.

    The lock is the process's life: the kernel lets go of it however the process ends, so what can be locked is left over.
    """
    remove_leftovers(target)
    while True:
        try:
            scratch = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        except OSError as error:
            raise OSError(error.errno, f"cannot write into {target.parent}: {error.strerror}") from error
        try:
            lock = os.open(scratch, os.O_RDONLY)
        except FileNotFoundError:  # another process took it for left over before it was locked
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if scratch.exists():
            break
        os.close(lock)
    try:
        with writing(target):
            yield scratch
    finally:
        with contextlib.suppress(OSError):
            _discard(scratch, target)
        os.close(lock)


def _prefix(target: Path) -> str:
    return f".{target.name}.heat-hf-"


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes left beside `target`."""
    for scratch in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
        with contextlib.suppress(OSError):  # it is in use, or somebody else's, or another process removes it just now
            lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _discard(scratch, target)
            finally:
                os.close(lock)


def _discard(scratch: Path, target: Path) -> None:
    """Remove a scratch directory; what was moved there to be replaced goes back first, unless something took its place."""
    if (scratch / OLD).is_dir() and not target.exists():
        (scratch / OLD).rename(target)
    shutil.rmtree(scratch)
