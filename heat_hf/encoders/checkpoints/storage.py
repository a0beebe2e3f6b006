"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; name a directory")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise FileExistsError(f"{path} is not empty; pass overwrite (--overwrite) to replace it")
    parent = next(folder for folder in path.parents if folder.exists())
    try:
        Path(tempfile.mkdtemp(prefix=".heat-hf-", dir=parent)).rmdir()
    except OSError as error:
        raise OSError(error.errno, f"cannot write into {parent}: {error.strerror}") from error
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
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(target: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its place when the block ends, or vanishes if it fails.

    Raises:
        OSError: as `check_target`.
    """
    path = check_target(target, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        _replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _replace(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    path.rename(old)  # onto an empty directory: allowed, and atomic
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
