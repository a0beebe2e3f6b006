"""Searches through joblib: the same bytes in this process, in several, and on a Dask cluster that loses a worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import joblib
import pytest
import torch
import transformers
from joblib._parallel_backends import ThreadingBackend
from test_supernet_search import Size, by_supernet

from heat_hf import CostTable, ShapeSearch, search_shapes
from heat_hf.search.parallel import handed_out, jobs

SEARCH = ShapeSearch(formats=("low_rank", "ttm"), orders=(2, 3), top_k=2, budgets=9)


def double(number: int) -> tuple[int, int]:
    return 2 * number, os.getpid()


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A client of two workers, processes of this machine."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as workers, distributed.Client(workers) as client:
        yield client


class InRounds(ThreadingBackend):
    """As Ray's, which cannot answer before all calls are done."""

    supports_return_generator = False


def test_a_backend_that_answers_late_is_asked_in_rounds() -> None:
    joblib.register_parallel_backend("in rounds", InRounds)
    with joblib.parallel_config(backend="in rounds", n_jobs=2):
        assert list(handed_out(double, [(number,) for number in range(40)])) == [(2 * n, os.getpid()) for n in range(40)]


def test_without_more_jobs_nothing_leaves_this_process() -> None:
    assert jobs() == 1 and jobs(3) == 3
    assert list(handed_out(double, [(1,), (2,)])) == [(2, os.getpid()), (4, os.getpid())]
    with joblib.parallel_config(n_jobs=2):
        assert jobs() == 2
        (small, *_), *others = sorted(handed_out(double, [(number,) for number in range(8)]))
    assert small == 0 and os.getpid() not in {process for _, process in others}


def test_a_search_on_a_cluster_that_loses_a_worker(
    encoder: transformers.PreTrainedModel, cluster: object, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.parquet"
    search_shapes(encoder, tokens=32, search=SEARCH, output=alone)
    output, killed = tmp_path / "cluster.parquet", []

    def lose_one() -> None:
        journal = tmp_path / "cluster.parquet.partial" / "part-0.jsonl"
        while not (journal.exists() and journal.stat().st_size):
            time.sleep(0.01)
        killed.append(next(iter(cluster.run(os.getpid).values())))  # type: ignore[attr-defined]
        os.kill(killed[0], signal.SIGKILL)

    loss = threading.Thread(target=lose_one, daemon=True)
    loss.start()
    with joblib.parallel_config(backend="dask"):
        assert jobs() == 2
        search_shapes(encoder, tokens=32, search=SEARCH, output=output)
    loss.join(60)
    assert killed and killed[0] not in cluster.run(os.getpid).values()  # type: ignore[attr-defined]
    assert output.read_bytes() == alone.read_bytes()
    assert not (tmp_path / "cluster.parquet.partial").exists()


class Interrupted(Size):
    """Stops a search after some SubNets."""

    left = 9

    def __call__(self, model: torch.nn.Module) -> float:
        Interrupted.left -= 1
        if Interrupted.left < 0:
            raise KeyboardInterrupt
        return super().__call__(model)


def test_subnets_are_scored_elsewhere_with_the_same_result(tmp_path: Path) -> None:
    whole = by_supernet(tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        by_supernet(tmp_path / "again.json", Interrupted())
    Size.calls = 0
    with joblib.parallel_config(n_jobs=2):
        again = by_supernet(tmp_path / "again.json")
    assert Size.calls == 0, "none of them here"
    assert replace(again, seconds=0) == replace(whole, seconds=0)


def test_a_cost_model_that_cannot_travel_is_refused_under_a_configuration(
    encoder: transformers.PreTrainedModel, cost_table: CostTable
) -> None:
    from heat_hf.hardware.analytic import cost_model

    costs = cost_model("simba-l")
    costs.here = threading.Lock()  # type: ignore[attr-defined]
    with joblib.parallel_config(n_jobs=2), pytest.raises(ValueError, match="cannot be pickled for other processes"):
        search_shapes(encoder, costs, 32, SEARCH)
