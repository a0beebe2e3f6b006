"""Times of layers on this machine, side by side."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heat_hf.hardware.machine.race import race
from heat_hf.hardware.machine.runtimes import get_runtime

if TYPE_CHECKING:
    from heat_hf.hardware.machine.layers import Subject

SECONDS = 1.5  # that a race takes, about, where that is not fewer or more repetitions than these
CALM, MOST_RACES = 0.1, 3  # how rough a race may be that is not run again, and how often it may
LEAST_REPEATS, MOST_REPEATS = 7, 25


class Timing(NamedTuple):
    """Seconds of one layer over repeated runs: lower quartile, median and upper quartile."""

    lower: float
    median: float
    upper: float

    @property
    def spread(self) -> float:
        """Between the quartiles, as a fraction of the median."""
        return (self.upper - self.lower) / self.median


Measure = Callable[[Sequence[tuple["Subject", int]]], list[Timing]]
"""Times layers side by side; each is what it is and its number of tokens."""


def measure(
    subjects: Sequence[tuple[Subject, int]], runtime: str = "torch", precision: str = "float32", threads: int = 1
) -> list[Timing]:
    """Time layers: warmed up, one of each in turn, so that all see the same disturbances.

    Args:
        subjects: settings, or sizes of dense layers, each with its number of tokens.
        runtime: a name of `RUNTIMES`.
        precision: one of the runtime's.
        threads: that a layer may use.
    """
    from heat_hf.hardware.machine.layers import copies

    how = get_runtime(runtime, precision)
    calls = {str(number): how.call(*subject, precision, threads) for number, subject in enumerate(subjects)}
    round_ = sum(seconds for (seconds,) in race(calls, 1).values())
    repeats = min(max(LEAST_REPEATS, int(SECONDS / max(round_, 1e-9))), MOST_REPEATS)
    return [
        Timing(*(value / copies(*subject) for value in statistics.quantiles(seconds, n=4, method="inclusive")))
        for subject, seconds in zip(subjects, race(calls, repeats).values(), strict=True)
    ]


def beside(peer: tuple[Subject, int], subjects: Sequence[tuple[Subject, int]], measure: Measure) -> tuple[list[float], float]:
    """Times of layers over a peer's, which is timed first and last; where it disagrees with itself, all are timed again.

    Other programs, and where in memory something lies, may slow one of the layers down for as long as a race takes.

    Returns:
        A ratio of medians for each layer, and how rough the race was: what the peer was apart, or the spread if that is more.
    """
    calmest: tuple[list[float], float] | None = None
    for _ in range(MOST_RACES):
        first, *timings, last = measure([peer, *subjects, peer])
        apart = abs(math.log(first.median / last.median))
        rough = max(apart, statistics.median(timing.spread for timing in (first, *timings, last)))
        if calmest is None or rough < calmest[1]:
            own = math.sqrt(first.median * last.median)
            calmest = [timing.median / own for timing in timings], rough
        if rough <= CALM:
            break
    assert calmest is not None
    return calmest


def measure_in(runtime: str, precision: str, threads: int) -> Measure:
    """`measure` with its options given."""
    return partial(measure, runtime=runtime, precision=precision, threads=threads)


def device() -> dict[str, str | int | None]:
    """What measurements are of: the processor's name, its architecture and its cores."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    flags = [line.partition(":")[2].split() for line in _cpuinfo() if line.startswith("flags")]
    wide = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flags and flag in flags[0]]
    name = " ".join([names[0] if names else platform.processor() or "unknown", *wide])
    return {"device": name, "machine": platform.machine(), "cores": os.cpu_count()}


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
