"""Stages, losses, resuming, accumulation, several processes."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES
from heads import settings_of
from students import HEADS, ROWS, apart, arguments, batch, collate, losses, pair, same, train

from heat_hf import HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.distillation import RECIPES, DistillationArguments, DistillationTrainer
from heat_hf.distillation.losses import output_losses
from heat_hf.encoders.linears import factorized_layers
from heat_hf.encoders.signals import Signal, attention_distance, hidden_distance


def test_two_stages_bring_the_student_to_the_teacher(tmp_path: Path) -> None:
    student, teacher = pair()
    frozen = copy.deepcopy(teacher)
    before = apart(student, teacher)
    trainer = train(tmp_path, student, teacher, max_steps=60, learning_rate=3e-3)
    after = apart(student, teacher)
    assert all(new < 0.8 * old for new, old in zip(after, before, strict=True)), (before, after)
    assert same(teacher, frozen)
    stages = [entry["stage"] for entry in trainer.state.log_history if "stage" in entry]
    assert stages == [1] * 30 + [2] * 30
    first, last = (trainer.state.log_history[step] for step in (0, 59))
    assert {"attention", "hidden"} <= set(first) and {"divergence", "cross_entropy"} <= set(last)
    assert not {"attention", "hidden"} & set(last)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_and_logs_the_parts_of_its_loss(recipe: str, tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = train(tmp_path, student, teacher, recipe=recipe, max_steps=4)
    for entry in trainer.state.log_history:
        if "loss" in entry:
            names = {"attention", "hidden", "divergence", "cross_entropy", "own_loss"} & set(entry)
            assert entry["loss"] == pytest.approx(sum(entry[name] for name in names), rel=1e-4)
            assert names


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_distilled(family: str, tmp_path: Path) -> None:
    student, teacher = pair(family)
    rows = [{key: value for key, value in row.items() if key != "labels"} for row in ROWS]
    trainer = train(tmp_path, student, teacher, rows, max_steps=2)
    assert all(torch.isfinite(torch.tensor(losses(trainer)))) and len(losses(trainer)) == 2


@pytest.mark.parametrize(("loader", "parts"), HEADS.items())
def test_every_task_is_distilled_without_labels(loader: Any, parts: set[str], tmp_path: Path) -> None:
    student, teacher = pair(loader=loader)
    rows = [{key: value for key, value in row.items() if key != "labels"} for row in ROWS]
    before = apart(student, teacher)
    trainer = train(tmp_path, student, teacher, rows, max_steps=40, learning_rate=3e-3)
    assert apart(student, teacher)[2] < before[2]
    assert parts <= set(trainer.state.log_history[-2])


def test_regression_and_labels_as_targets(tmp_path: Path) -> None:
    student, teacher = pair(num_labels=1)
    rows = [{**row, "labels": float(row["labels"])} for row in ROWS]
    trainer = train(tmp_path, student, teacher, rows, recipe="logits", targets="labels")
    assert {"divergence", "own_loss"} <= set(trainer.state.log_history[0])


def test_equation_4() -> None:
    torch.manual_seed(0)
    student, teacher = ([Signal(torch.randn(4, 3), True, torch.ones(4))] for _ in range(2))
    args = DistillationArguments(temperature=2.0, use_cpu=True)
    parts = output_losses(args, student, teacher, None)
    log_q, p = (student[0].values / 2).log_softmax(-1), (teacher[0].values / 2).softmax(-1)
    kl = (p * (p.log() - log_q)).sum(-1).mean()
    torch.testing.assert_close(parts["divergence"], 4 * kl / 2)
    ce = torch.nn.functional.cross_entropy(student[0].values, teacher[0].values.softmax(-1))
    torch.testing.assert_close(parts["cross_entropy"], ce / 2)
    labels = torch.tensor(0.7)
    torch.testing.assert_close(output_losses(args, student, teacher, labels)["cross_entropy"], labels / 2)
    args.scale_by_temperature = False
    torch.testing.assert_close(output_losses(args, student, teacher, None)["divergence"], kl / 2)


def test_padding_does_not_change_the_layer_losses(tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = DistillationTrainer(student, teacher, arguments(tmp_path, recipe="layers"), ROWS, collate)
    trainer.state.max_steps = 6
    student.train()
    with torch.no_grad():
        alone = [float(trainer.compute_loss(student, collate([row]))) for row in ROWS[:4]]
        together = float(trainer.compute_loss(student, collate(ROWS[:4])))
    assert together == pytest.approx(sum(alone) / 4, rel=1e-5)


def test_a_student_with_fewer_blocks_learns_from_evenly_spaced_ones(tmp_path: Path) -> None:
    _, teacher = pair(num_hidden_layers=4)
    student = copy.deepcopy(teacher)
    student.bert.encoder.layer = torch.nn.ModuleList([student.bert.encoder.layer[place] for place in (1, 3)])
    student.config.num_hidden_layers = 2
    trainer = DistillationTrainer(student, teacher, arguments(tmp_path, recipe="layers", max_steps=1), ROWS, collate)
    batch = collate(ROWS[:4])
    with torch.no_grad():
        loss, outputs = trainer.loss_and_outputs(student.train(), batch)
        asked = {"output_hidden_states": True, "output_attentions": True}
        taught = teacher(batch["input_ids"], batch["attention_mask"], **asked)
    mask, places = batch["attention_mask"], (1, 3)
    states = [taught.hidden_states[0], *(taught.hidden_states[place + 1] for place in places)]
    apart = hidden_distance(outputs.hidden_states, states, mask)
    apart = apart + attention_distance(outputs.attentions, [taught.attentions[place] for place in places], mask)
    assert float(apart) > 1e-3
    torch.testing.assert_close(loss, 2 * apart)


def test_a_student_that_lost_heads_learns_attention_too(tmp_path: Path) -> None:
    _, teacher = pair()
    student = copy.deepcopy(teacher)
    factorize(student, HeatConfig(target_params_ratio=0.5, accelerator=None, refine_steps=0), [batch()], settings_of(student))
    with torch.no_grad():  # the projection alone leaves little to learn
        for layer in factorized_layers(student).values():
            layer.kept.weight += 0.1 * layer.kept.weight.std() * torch.randn_like(layer.kept.weight)
    before = apart(student, teacher)
    trainer = train(tmp_path, student, teacher, max_steps=60, learning_rate=3e-4)
    assert {"attention", "hidden"} <= set(trainer.state.log_history[0])
    after = apart(student, teacher)
    assert all(new < old for new, old in zip(after, before, strict=True)), (before, after)


def test_attention_is_eager_only_where_maps_are_needed(tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = DistillationTrainer(student, teacher, arguments(tmp_path), ROWS, collate)
    trainer.state.max_steps = 6
    student.train()
    implementations = []
    for step in (0, 2, 3, 5):
        trainer.state.global_step = step
        trainer.compute_loss(student, collate(ROWS[:4]))
        implementations.append((student.config._attn_implementation, teacher.config._attn_implementation))
    assert implementations == [("eager", "eager")] * 2 + [("sdpa", "sdpa")] * 2


def test_accumulation_gives_the_same_losses(tmp_path: Path) -> None:
    (one, teacher), (four, _) = pair(), pair()
    options: dict[str, Any] = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.05}  # Adam makes steps of rounding errors
    whole = train(tmp_path / "1", one, teacher, per_device_train_batch_size=8, **options)
    parts = train(tmp_path / "4", four, teacher, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-5)
    for a, b in zip(one.state_dict().values(), four.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_mixed_precision_gives_about_the_same_losses(tmp_path: Path) -> None:
    (full, teacher), (mixed, _) = pair(), pair()
    whole = train(tmp_path / "1", full, teacher)
    half = train(tmp_path / "2", mixed, teacher, bf16=True)
    assert losses(whole) != losses(half)
    assert losses(whole) == pytest.approx(losses(half), rel=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in mixed.parameters())


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(stop: int, tmp_path: Path) -> None:
    (whole, teacher), (cut, _), (resumed, _) = pair(), pair(), pair()
    options = {"train_sampling_strategy": "random", "save_steps": stop}
    train(tmp_path / "whole", whole, teacher, **options)

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == stop

    trainer = DistillationTrainer(cut, teacher, arguments(tmp_path / "cut", **options), ROWS, collate, callbacks=[Stop()])
    trainer.train()
    train(tmp_path / "cut", resumed, teacher, resume=str(tmp_path / "cut" / f"checkpoint-{stop}"), **options)
    assert not same(whole, cut)
    assert same(whole, resumed)


def test_a_stage_starts_with_its_own_rate_and_a_fresh_optimizer(tmp_path: Path) -> None:
    student, teacher = pair()
    seen: list[tuple[int, float, bool]] = []

    class Look(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            optimizer = kwargs["optimizer"]
            seen.append((state.global_step, optimizer.param_groups[0]["lr"], bool(optimizer.state)))

    args = arguments(tmp_path, layer_share=0.667, learning_rate=1e-3, logit_learning_rate=1e-4, warmup_steps=1)
    DistillationTrainer(student, teacher, args, ROWS, collate, callbacks=[Look()]).train()
    rates = [rate for _, rate, _ in seen]
    assert [filled for _, _, filled in seen] == [False, True, True, True, False, True]
    assert rates == pytest.approx([0, 1e-3, 1e-3 * 2 / 3, 1e-3 / 3, 0, 1e-4])


def test_rows_without_labels_have_a_loss_too(tmp_path: Path) -> None:
    """So `load_best_model_at_end` and early stopping have something to go by."""
    student, teacher = pair()
    bare = [{name: value for name, value in row.items() if name != "labels"} for row in ROWS[:8]]
    scores = [
        DistillationTrainer(student, teacher, arguments(tmp_path), ROWS, collate, eval_dataset=rows).evaluate()["eval_loss"]
        for rows in (bare, ROWS[:8])
    ]
    assert scores[0] == pytest.approx(scores[1])


def test_evaluation_reports_the_last_stages_loss_and_metrics(tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = DistillationTrainer(
        student, teacher, arguments(tmp_path), ROWS, collate, eval_dataset=ROWS[:8],
        compute_metrics=lambda scored: {"accuracy": float((scored.predictions.argmax(-1) == scored.label_ids).mean())},
    )  # fmt: skip
    scores = trainer.evaluate()
    assert scores["eval_loss"] > 0 and 0 <= scores["eval_accuracy"] <= 1
    assert trainer.predict(ROWS[:8]).predictions.shape == (8, 2)


def test_embeddings_and_dropout_are_left_alone_unless_asked(tmp_path: Path) -> None:
    student, teacher = pair()
    before = student.get_input_embeddings().weight.clone()
    train(tmp_path, student, teacher, max_steps=4)
    assert torch.equal(student.get_input_embeddings().weight, before)
    student, teacher = pair()
    train(tmp_path, student, teacher, max_steps=4, train_embeddings=True)
    assert not torch.equal(student.get_input_embeddings().weight, before)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """At the same rows of a step, also where one goes on from what two have done; the log is that of all."""
    script = Path(__file__).parents[1] / "distil_in_processes.py"

    def found(name: str, count: int, *resume: str) -> dict[str, torch.Tensor]:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        done = subprocess.run(
            [*launch, str(script), str(tmp_path / name), str(8 // count), *resume], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(tmp_path / name / "found.pt", weights_only=True)

    one, two = found("one", 1), found("two", 2)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    assert (one["log"][:, 0] - one["log"][:, 1:].sum(1)).abs().max() < 1e-3, "the parts make up the loss"
    torch.testing.assert_close(found("again", 1, str(tmp_path / "two" / "run" / "checkpoint-3")), one, rtol=1e-4, atol=1e-6)
