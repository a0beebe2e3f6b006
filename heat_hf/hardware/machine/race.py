"""Time of calls, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping


def race(
    contestants: Mapping[str, Callable[[], object]], repeats: int, rounds: Callable[[range], Iterable[int]] = iter
) -> dict[str, list[float]]:
    """Time calls side by side: one of each in turn, so that all see the same disturbances.

    Args:
        contestants: calls by name; each returns when its work is done.
        repeats: of each that count; two more warm up.
        rounds: what goes through their numbers, a progress bar for one.

    Returns:
        Seconds of every repetition, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in rounds(range(repeats + 2)):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: values[2:] for name, values in times.items()}
