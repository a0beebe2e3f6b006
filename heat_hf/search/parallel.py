"""Work that joblib hands out: to processes of this machine, or to the cluster that `joblib.parallel_config` names."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import torch

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
ROUND = 8  # calls for each job, of backends that answer when all calls are done
DECIMALS = 6  # of figures that are compared: what differs by rounding only is the same


def jobs(workers: int | None = None) -> int:
    """How many calls run at once.

    Args:
        workers: what was asked for; None for what `joblib.parallel_config` says, 1 where it says nothing.
    """
    from joblib import effective_n_jobs

    return int(effective_n_jobs(workers))


def handed_out(work: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: int | None = None) -> Iterator[Result]:
    """Results of calls, as they come; in this process where there is one job.

    Args:
        work: a function that other processes can import.
        calls: arguments of each. Large arrays among them reach a process, or a machine of a Dask cluster, once.
        workers: see `jobs`.

    Raises:
        OSError: if a process of this machine was killed, or a cluster loses what it was given again and again.
    """
    left = dict(enumerate(calls))
    while left:
        before = len(left)
        try:
            for number, result in _numbered_results(work, list(left.items()), workers):
                del left[number]
                yield result
        except BrokenProcessPool as error:
            raise OSError("a process of the search was killed, as where memory runs out: go on with fewer workers") from error
        except CancelledError as error:
            # Work of a machine that is lost goes to others, but arrays that only it had do not come back.
            if len(left) == before:
                raise OSError(f"the cluster lost what it was given before anything was done: {error}") from error
            logger.warning("the cluster lost a machine with what it was given: %s of %s calls again", len(left), len(calls))


def _numbered_results(
    work: Callable[..., Result], calls: Sequence[tuple[int, tuple[Any, ...]]], workers: int | None
) -> Iterator[tuple[int, Result]]:
    if jobs(workers) == 1:
        yield from ((number, work(*call)) for number, call in calls)
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky.backend import resource_tracker as of_joblib
    from joblib.parallel import get_active_backend

    for tracker in (resource_tracker, of_joblib):  # which let interrupts in again where they begin
        tracker.ensure_running()
    asked = [delayed(_elsewhere)(os.getpid(), work, number, *call) for number, call in calls]
    if not get_active_backend()[0].supports_return_generator:  # as Ray's: results come in rounds
        size = ROUND * jobs(workers)
        for start in range(0, len(asked), size):
            yield from Parallel(workers)(asked[start : start + size])
        return
    with _deaf_to_interrupts():
        results = Parallel(workers, return_as="generator_unordered")(asked)
    yield from results


def _elsewhere(parent: int, work: Callable[..., Result], number: int, *call: Any) -> tuple[int, Result]:
    _end_with(parent)
    return number, work(*call)


@cache
def _end_with(parent: int) -> None:
    """End this process with the one that started it, also if that is killed; one of another machine has another parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.getppid() == parent:
        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def one_thread() -> Iterator[None]:
    """Results of sums depend on how many threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started in the block never see Ctrl-C, which a terminal sends to all: the one that started them ends them."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
