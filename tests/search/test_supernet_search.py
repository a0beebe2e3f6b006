"""Level 2 by SuperNet as a whole: end to end, resumed, without stabilizers, and refused where predictions are noise."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_model, token_ids

from heat_hf import HeatConfig
from heat_hf.compression.job import Job
from heat_hf.encoders.linears import factorized_layers
from heat_hf.reports.ranks import RankRecord
from heat_hf.search.ranks import evolution
from heat_hf.search.ranks.evolution import Evolution
from heat_hf.search.ranks.problem import Training
from heat_hf.search.ranks.supernet import RankSuperNet, Stabilizers, SuperNetArguments, SuperNetTrainer

BATCHES = [{"input_ids": token_ids(24, 6)}]
ROWS = [{"input_ids": row.tolist(), "attention_mask": [1] * 6} for row in token_ids(64, 6)]
ARGUMENTS = SuperNetArguments(
    max_steps=4, per_device_train_batch_size=4, save_steps=2, subnets=24, train_sampling_strategy="sequential", use_cpu=True,
    disable_tqdm=True, logging_strategy="no", warmup_steps=1, least_share=0.15, largest_share=0.95,
)  # fmt: skip
LOGGED = replace(ARGUMENTS, logging_strategy="steps", logging_steps=1)
EVOLUTION = Evolution(population=32, generations=5)


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def losses_of(logs: dict[str, Any]) -> list[float]:
    """What a training logs, less its summary."""
    return [float(logs["loss"])] if "loss" in logs else []


class Size:
    """A quality that only depends on how large a network is, so that the predictor can be trusted."""

    calls = 0

    def __call__(self, model: torch.nn.Module) -> float:
        Size.calls += 1
        shares = [layer.active.ratio for layer in factorized_layers(model).values()]
        return 0.5 + 0.4 * sum(shares) / len(shares)


def by_supernet(
    output: Path | None = None, quality: object = None, arguments: SuperNetArguments = ARGUMENTS, **options: object
) -> RankRecord:
    asked = HeatConfig(
        rank_search="supernet", sequence_length=16, max_sweeps=5, **(options or {"target_edp_ratio": [0.8, 0.6]})
    )
    training = Training(ROWS, collate, quality or Size(), arguments, EVOLUTION)
    return Job(small_model("bert"), asked, BATCHES, training=training).search(output)


def test_supernet_search_end_to_end(tmp_path: Path) -> None:
    record = by_supernet(tmp_path / "ranks.json")
    assert record.fidelity["spearman"] > 0.6
    assert [v.predicted_accuracy for v in record.variants] == sorted(v.predicted_accuracy for v in record.variants)
    assert all(v.edp_ratio <= v.budget for v in record.variants)
    assert RankRecord.load(tmp_path / "ranks.json") == RankRecord.load(tmp_path / "ranks.json")
    assert [file.name for file in tmp_path.iterdir()] == ["ranks.json"]
    assert "Spearman" in str(record)


def test_a_record_has_the_measured_subnets() -> None:
    fidelity = by_supernet().fidelity
    assert fidelity is not None and len(fidelity["subnets"]) == ARGUMENTS.subnets
    ratios, accuracies = zip(*fidelity["subnets"], strict=True)
    assert set(fidelity["measured"]) <= set(accuracies) and 0 < min(ratios) < max(ratios) < 1
    assert accuracies[ratios.index(max(ratios))] == max(accuracies), "of this quality, the largest is the best"


def test_stabilizers_that_are_left_out_are_not_used_and_belong_to_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, made = [], RankSuperNet.__init__

    def noted(net: RankSuperNet, *given: Any, **named: Any) -> None:
        made(net, *given, **named)
        seen.append(net.stabilizers)

    monkeypatch.setattr(RankSuperNet, "__init__", noted)
    full = by_supernet()
    less = by_supernet(arguments=replace(ARGUMENTS, without=["first_slices", "normalized_variance"]))
    assert seen == [Stabilizers(), Stabilizers(first_slices=False, normalized_variance=False)]
    assert "without" not in full.key["supernet"]
    assert less.key == {**full.key, "supernet": {**full.key["supernet"], "without": ["first_slices", "normalized_variance"]}}


def test_a_prior_is_corrected_and_starts_the_evolution(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, evolve = [], evolution.evolve

    def noted(*given: Any) -> Any:
        seen.append(given)
        return evolve(*given)

    monkeypatch.setattr(evolution, "evolve", noted)
    arguments = replace(ARGUMENTS, prior=True, variance="weight", hold=4, spread=0.1)
    record = by_supernet(arguments=arguments)
    assert record.key["supernet"]["prior"] and record.key["supernet"]["variance"] == "weight"
    assert all(variant.edp_ratio <= variant.budget for variant in record.variants)
    for space, predict, kind, limit, _, (first,) in seen:
        totals = space.totals(first[None]).of(kind)[0]
        assert totals <= limit * (1 + 1e-9)
        predictor = predict.__self__
        lost = predictor.prior[np.arange(len(first)), first].sum()
        others = np.stack([np.random.default_rng(seed).integers(0, space.sizes) for seed in range(300)])
        keep = others[space.totals(others).of(kind) <= limit]
        assert len(keep) and lost <= predictor.prior[np.arange(len(first)), keep].sum(-1).min() * (1 + 1e-9)
    asked = HeatConfig(rank_search="supernet", sequence_length=16, target_edp_ratio=0.8)
    for config, batches in ((asked, None), (replace(asked, loss_aware=False), BATCHES)):
        training = Training(ROWS, collate, Size(), arguments, EVOLUTION)
        with pytest.raises(ValueError, match="prior=True needs a calibration_dataset"):
            Job(small_model("bert"), config, batches, training=training).search()


def test_supernet_without_a_budget_takes_the_papers_objective() -> None:
    dense, options = small_model("bert"), HeatConfig(rank_search="supernet", sequence_length=16)
    training = Training(ROWS, collate, Size(), ARGUMENTS, EVOLUTION)
    (variant,) = Job(dense, options, BATCHES, training=training).search().variants
    assert variant.budget is None
    assert variant.configure(HeatConfig(rank=3)).budget_name is None


@pytest.mark.parametrize("stop", [1, 13, 24])
def test_an_interrupted_search_goes_on(tmp_path: Path, stop: int) -> None:
    """Stopped while SubNets are measured: the rest alone is measured then, and the result is the same."""
    whole = by_supernet(tmp_path / "whole.json")

    class Crash(Size):
        left = stop

        def __call__(self, model: torch.nn.Module) -> float:
            Crash.left -= 1
            if Crash.left < 0:
                raise KeyboardInterrupt
            return super().__call__(model)

    output = tmp_path / "ranks.json"
    if stop < 24:
        with pytest.raises(KeyboardInterrupt):
            by_supernet(output, Crash())
        assert not output.exists()
    Size.calls = 0
    resumed = by_supernet(output)
    assert Size.calls == 24 - (stop if stop < 24 else 0)
    assert resumed.variants == whole.variants
    assert resumed.fidelity == whole.fidelity
    Size.calls = 0
    assert by_supernet(output).variants == whole.variants  # only read
    assert Size.calls == 0
    with pytest.raises(ValueError, match="holds another search: its target_edp_ratio"):
        by_supernet(output, target_edp_ratio=0.7)


def test_an_untrusted_predictor_is_refused(tmp_path: Path) -> None:
    noise = iter(torch.rand(1000, generator=torch.Generator().manual_seed(0)).tolist())
    with pytest.raises(ValueError, match="rank correlation"):
        by_supernet(quality=lambda model: next(noise))


def test_processes_train_one_supernet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same rows of a step, also where one goes on from what two have done; one of them writes."""
    losses: dict[str, list[float]] = {}

    def by_one(name: str) -> None:
        losses[name] = []
        monkeypatch.setattr(SuperNetTrainer, "log", lambda _, logs, *__: losses[name].extend(losses_of(logs)))
        by_supernet(tmp_path / name, arguments=replace(LOGGED, per_device_train_batch_size=4))

    def by_two(name: str, *stop: str) -> str:
        script = [str(Path(__file__).parents[1] / "supernet_in_processes.py"), str(tmp_path / name), *stop]
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *script]
        return subprocess.run(launch, capture_output=True, text=True, check=False).stderr

    by_one("one")
    said = by_two("two")
    assert (tmp_path / "two").exists(), said[-3000:]
    assert "exitcode  : 3" in by_two("stopped", "stop") and not (tmp_path / "stopped").exists()
    by_one("stopped")
    record, *others = (RankRecord.load(tmp_path / name) for name in ("one", "two", "stopped"))
    for other in others:
        assert other.key == record.key and other.fidelity == record.fidelity
        assert [v.settings for v in other.variants] == [v.settings for v in record.variants]
    assert len(losses["one"]) == ARGUMENTS.max_steps
    np.testing.assert_allclose(json.loads((tmp_path / "two.losses").read_text()), losses["one"], rtol=1e-3)
    np.testing.assert_allclose(losses["stopped"], losses["one"][2:], rtol=1e-3)
    assert {file.name for file in tmp_path.iterdir()} == {"one", "two", "stopped", "two.losses"}
