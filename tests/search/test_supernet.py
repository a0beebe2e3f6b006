"""The Rank SuperNet: shared cores, the four stabilizers, resuming, and Trainer's own guarantees."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_model, token_ids
from transformers import PreTrainedModel, TrainerCallback

from heat_hf import FORMATS, HeatConfig
from heat_hf.compression.job import Job
from heat_hf.encoders.linears import encoder_linears
from heat_hf.search.ranks.space import RankSpace
from heat_hf.search.ranks.supernet import (
    RankSuperNet,
    Stabilizers,
    SuperNetArguments,
    SuperNetTrainer,
    sample_subnets,
)
from heat_hf.search.ranks.supernet_search import supernet_model, supernet_space, train_supernet

BATCHES = [{"input_ids": token_ids(24, 6)}]
ROWS = [{"input_ids": row.tolist(), "attention_mask": [1] * 6} for row in token_ids(64, 6)]
ARGUMENTS = SuperNetArguments(
    max_steps=6, per_device_train_batch_size=4, learning_rate=1e-3, save_steps=2, subnets=20,
    train_sampling_strategy="sequential", use_cpu=True, disable_tqdm=True, logging_strategy="no", warmup_steps=1,
)  # fmt: skip


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


@cache
def projected(decomposition: str) -> tuple[PreTrainedModel, RankSpace, PreTrainedModel]:
    dense = small_model("bert")
    options = {"target_edp_ratio": 0.5, "sequence_length": 16, "max_sweeps": 5, "refinement_steps": 3}
    config = HeatConfig(decomposition=decomposition, rank_search="supernet", **options)
    problem = Job(dense, config, BATCHES).problem
    shapes = {size: config.method.shape(problem, decomposition, size) for size in problem.sizes}
    space = supernet_space(problem, shapes, replace(ARGUMENTS, least_share=0.15, largest_share=0.95))
    return supernet_model(problem, space), space, dense


def supernet(decomposition: str = "low_rank", seed: int = 0, **stabilizers: bool) -> tuple[RankSuperNet, PreTrainedModel]:
    model, space, dense = projected(decomposition)
    return RankSuperNet(copy.deepcopy(model), space, Stabilizers(**stabilizers), seed), dense


@pytest.mark.parametrize("decomposition", FORMATS)
def test_a_subnet_is_the_truncated_model(decomposition: str) -> None:
    net, _ = supernet(decomposition)
    choice = net.draw(np.random.default_rng(3))
    net.set(choice)
    for place, (name, layer) in zip(choice, net.layers.items(), strict=True):
        setting = net.space.options[name][place]
        assert layer.active.rank == setting.rank
        codec = setting.codec.solved_as  # pivots of a rank are none of a smaller one
        cut = codec.truncate(tuple(layer.cores), setting.shape, setting.rank)
        torch.testing.assert_close(layer.reconstruct(), codec.reconstruct(cut, setting.shape))
    assert torch.isfinite(net.model(**BATCHES[0]).logits).all()


def test_largest_low_rank_subnet_is_the_projection_and_smaller_ones_are_nested() -> None:
    net, dense = supernet()
    net.set(net.space.largest())
    assert all(layer.active.rank == layer.setting.rank for layer in net.layers.values())
    name, linear = next(iter(encoder_linears(dense).items()))
    errors = []
    for place in range(len(net.space.options[name])):
        net.layers[name].set_rank(net.space.options[name][place].rank)
        errors.append(float((net.layers[name].reconstruct() - linear.weight).norm()))
    assert errors[-1] < errors[0]


def test_sampling_depends_on_seed_and_step_alone() -> None:
    first, second = (supernet()[0] for _ in range(2))
    steps = [first.sampled(step).tolist() for step in range(30)]
    assert second.sampled(29).tolist() == steps[29]  # without the steps before
    assert [second.sampled(step).tolist() for step in range(30)] == steps
    assert supernet(seed=1)[0].sampled(3).tolist() != steps[3]


def test_bounded_change_bounds_it_and_its_absence_does_not() -> None:
    for bounded in (True, False):
        net, _ = supernet(bounded_change=bounded)
        walk = np.stack([net.sampled(step) for step in range(80)])
        moves = np.abs(np.diff(walk, axis=0)).max(axis=0)
        bound = np.maximum(1, net.space.sizes // Stabilizers.hold)
        assert (moves <= bound).all() == bounded
        assert len(np.unique(walk, axis=0)) > 20


def test_sandwich_has_the_largest_and_the_smallest() -> None:
    net, _ = supernet()
    largest, smallest, random = net.choices(4)
    assert (largest == net.space.largest()).all()
    assert (smallest == 0).all()
    assert random.tolist() == net.sampled(4).tolist()
    assert len(supernet(sandwich=False)[0].choices(4)) == 1


@pytest.mark.parametrize("decomposition", FORMATS)
def test_random_slices_are_shared_by_cores(decomposition: str) -> None:
    """Without the first stabilizer a SubNet takes any slices; the same ones in every core that shares a rank index."""
    net, _ = supernet(decomposition, normalized_variance=False)
    name, layer = next(iter(net.layers.items()))
    net.set(net.space.smallest(), np.random.default_rng(0))
    rank = net.space.options[name][0].rank
    assert [tuple(core.shape) for core in layer.active_cores()] == list(
        layer.setting.codec.core_shapes(layer.setting.shape, rank)
    )
    if decomposition == "low_rank":
        (kept,) = layer.slices.values()
        left, right = layer.cores
        torch.testing.assert_close(layer.reconstruct(), left[:, kept] @ right[kept])
    net.set(net.space.smallest())
    assert layer.slices is None


def test_variance_is_kept_while_cores_change() -> None:
    net, _ = supernet()
    choice = net.draw(np.random.default_rng(0))
    net.set(choice)
    before = {name: float(layer.reconstruct().var()) for name, layer in net.layers.items()}
    with torch.no_grad():
        for layer in net.layers.values():
            layer.cores[0].mul_(3.0).add_(0.01)
    net.set(choice)
    for name, layer in net.layers.items():
        assert float(layer.reconstruct().var()) == pytest.approx(before[name], rel=1e-4)
    off, _ = supernet(normalized_variance=False)
    with torch.no_grad():
        off.layers[name].cores[0].mul_(3.0)
    off.set(choice)
    assert float(off.layers[name].reconstruct().var()) == pytest.approx(9 * before[name], rel=1e-3)


def trained(folder: Path, stop: int | None = None, **changes: object) -> RankSuperNet:
    """Train in a folder; stop it as a crash would, by an exception in a step."""
    net, dense = supernet()

    class Crash(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == stop:
                raise KeyboardInterrupt

    original = SuperNetTrainer.__init__

    def patched(self: SuperNetTrainer, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        self.add_callback(Crash)

    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SuperNetTrainer, "__init__", patched)
        train_supernet(net, dense, replace(ARGUMENTS, **changes), ROWS, collate, folder)
    return net


def weights(net: RankSuperNet) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.model.named_parameters()}


def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    whole = weights(trained(tmp_path / "whole"))
    for stop in (1, 3, 5):
        folder = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            trained(folder, stop)
        resumed = weights(trained(folder))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [file.name for file in folder.iterdir()] == ["supernet.safetensors"]
    again = weights(trained(folder))  # only loads
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_gradient_accumulation_trains_alike(tmp_path: Path) -> None:
    one = weights(trained(tmp_path / "one", per_device_train_batch_size=8))
    four = weights(trained(tmp_path / "four", per_device_train_batch_size=2, gradient_accumulation_steps=4))
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-3, atol=1e-5)


def test_training_brings_subnets_closer_to_the_teacher(tmp_path: Path) -> None:
    net, dense = supernet()
    torch.manual_seed(0)
    with torch.no_grad():  # the projection of a random model is near it already
        for layer in net.layers.values():
            layer.cores[0].add_(0.3 * torch.randn_like(layer.cores[0]) * layer.cores[0].std())
    own = replace(ARGUMENTS, output_dir=str(tmp_path), max_steps=40, learning_rate=1e-4)
    trainer = SuperNetTrainer(net, dense, args=own, train_dataset=ROWS, data_collator=collate)
    frozen = copy.deepcopy(dense.state_dict())

    def distance() -> float:
        trainer.state.global_step = 0
        with torch.no_grad():
            return float(trainer.compute_loss(net.model, collate(ROWS)))

    before = distance()
    trainer.train()
    assert distance() < 0.7 * before
    assert all(torch.equal(value, frozen[name]) for name, value in dense.state_dict().items())


def test_samples_are_distinct_and_span_the_space() -> None:
    net, _ = supernet()
    found = sample_subnets(net, 60, seed=0)
    assert len({tuple(choice) for choice in found}) == 60
    shares = [sum(s.parameters for s in net.space.settings(choice).values()) for choice in found]
    assert max(shares) > 2 * min(shares)
    tiny = RankSpace(net.space.costs, {name: own[:1] for name, own in net.space.options.items()})
    with pytest.raises(ValueError, match="subnets=60 is more than the space has"):
        sample_subnets(RankSuperNet(net.model, tiny), 60, 0)


@pytest.mark.parametrize("decomposition", ["low_rank", "ttm"])
def test_variances_of_weights_are_kept(decomposition: str) -> None:
    model, space, dense = projected(decomposition)
    linears = encoder_linears(dense)
    net = RankSuperNet(copy.deepcopy(model), space, Stabilizers(variance="weight"), 0, linears)
    net.set(space.smallest())
    for name, layer in net.layers.items():
        assert float(layer.reconstruct().var()) == pytest.approx(float(linears[name].weight.var()), rel=1e-4)
    with pytest.raises(ValueError, match="give the dense linears"):
        RankSuperNet(copy.deepcopy(model), space, Stabilizers(variance="weight"))


def test_bad_input() -> None:
    net, dense = supernet()
    with pytest.raises(ValueError, match="is no factorized layer of the model"):
        RankSuperNet(dense, net.space)
    with pytest.raises(ValueError, match="no dense options"):
        RankSuperNet(net.model, RankSpace(net.space.costs, {name: (*own, None) for name, own in net.space.options.items()}))
    for change, message in (
        ({"subnets": 3}, "subnets must be at least 20"),
        ({"least_share": 0.9}, "least_share must be below largest_share"),
        ({"hidden_weight": -1.0}, "hidden_weight must not be negative"),
        ({"hold": 0}, "hold must be at least 1 step"),
        ({"spread": -0.1}, "spread must not be negative"),
        ({"variance": "none"}, "variance must be one of projected, weight"),
        ({"without": ["sandwich", "bread"]}, "without must name some of first_slices, bounded_change, .* got 'bread'"),
    ):
        with pytest.raises(ValueError, match=message):
            SuperNetArguments(use_cpu=True, **change)
