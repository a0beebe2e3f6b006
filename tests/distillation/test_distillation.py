"""Stages, losses, the teacher's memory, resuming, accumulation, several processes, and what is refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from conftest import FAMILIES, token_ids
from torch import Tensor
from transformers import PreTrainedModel

from heat_hf import CompressionReport, HeatCompressor, HeatConfig
from heat_hf.distillation import RECIPES, DistillationArguments, DistillationTrainer, Teacher
from heat_hf.distillation.stages import output_losses
from heat_hf.encoders.linears import factorized_layers
from heat_hf.encoders.signals import Signal, attention_distance, divergence, hidden_distance, output_signals

HEADS = {
    transformers.AutoModelForQuestionAnswering: {"divergence", "cross_entropy"},
    transformers.AutoModelForTokenClassification: {"divergence", "cross_entropy"},
    transformers.AutoModel: {"divergence", "similarity"},
}
LENGTHS = [4 + (3 * place) % 6 for place in range(32)]
ROWS = [
    {"input_ids": row[:length].tolist(), "attention_mask": [1] * length, "labels": place % 2}
    for place, (row, length) in enumerate(zip(token_ids(32, 9), LENGTHS, strict=True))
]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    found = {
        key: torch.tensor([row[key] + [0] * (longest - len(row[key])) for row in rows]) for key in rows[0] if key != "labels"
    }
    if "labels" in rows[0]:
        found["labels"] = torch.tensor([row["labels"] for row in rows])
    return found


def pair(family: str = "bert", loader: Any = transformers.AutoModelForSequenceClassification, **config: Any) -> tuple[Any, Any]:
    """A factorized student and its teacher, whose weights are large enough that it says something."""
    torch.manual_seed(0)
    teacher = loader.from_config(transformers.AutoConfig.for_model(family, **{**FAMILIES[family][0], **config})).eval()
    with torch.no_grad():
        for module in teacher.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(8)
    student = copy.deepcopy(teacher)
    HeatCompressor(student).compress(HeatConfig(target_params_ratio=0.5, accelerator=None))
    return student, teacher


def arguments(folder: Path, **kwargs: Any) -> DistillationArguments:
    values: dict[str, Any] = {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 1000, "logging_steps": 1,
        "use_cpu": True, "disable_tqdm": True, "train_sampling_strategy": "sequential",
    }  # fmt: skip
    return DistillationArguments(output_dir=str(folder), **{**values, **kwargs})


def train(
    folder: Path, student: Any, teacher: Any, rows: Any = ROWS, resume: str | None = None, **kwargs: Any
) -> DistillationTrainer:
    evaluation = kwargs.pop("eval_dataset", None)
    trainer = DistillationTrainer(student, teacher, arguments(folder, **kwargs), rows, collate, eval_dataset=evaluation)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: DistillationTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def batch(count: int = 8) -> dict[str, Tensor]:
    inputs = collate(ROWS[:count])
    inputs.pop("labels")
    return inputs


def apart(student: PreTrainedModel, teacher: PreTrainedModel) -> tuple[float, float, float]:
    """Distances of attention maps, hidden states and outputs."""
    inputs, found = batch(), []
    for model in (student.eval(), teacher):
        model.set_attn_implementation("eager")
        with torch.no_grad():
            found.append(model(**inputs, output_hidden_states=True, output_attentions=True))
        model.set_attn_implementation("sdpa")
    own, other = found
    mask = inputs["attention_mask"]
    said = (output_signals(outputs, inputs, teacher.config) for outputs in found)
    return (
        float(attention_distance(own.attentions, other.attentions, mask)),
        float(hidden_distance(own.hidden_states, other.hidden_states, mask)),
        float(divergence(*said)),
    )


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
    first, last = (trainer.state.log_history[place] for place in (0, 59))
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
    found = output_losses(args, student, teacher, None)
    log_q, p = (student[0].values / 2).log_softmax(-1), (teacher[0].values / 2).softmax(-1)
    kl = (p * (p.log() - log_q)).sum(-1).mean()
    torch.testing.assert_close(found["divergence"], 4 * kl / 2)
    ce = torch.nn.functional.cross_entropy(student[0].values, teacher[0].values.softmax(-1))
    torch.testing.assert_close(found["cross_entropy"], ce / 2)
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
        own = [float(trainer.compute_loss(student, collate(ROWS[place : place + 1]))) for place in range(4)]
        together = float(trainer.compute_loss(student, collate(ROWS[:4])))
    assert together == pytest.approx(sum(own) / 4, rel=1e-5)


def test_attention_is_eager_only_where_maps_are_needed(tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = DistillationTrainer(student, teacher, arguments(tmp_path), ROWS, collate)
    trainer.state.max_steps = 6
    student.train()
    found = []
    for step in (0, 2, 3, 5):
        trainer.state.global_step = step
        trainer.compute_loss(student, collate(ROWS[:4]))
        found.append((student.config._attn_implementation, teacher.config._attn_implementation))
    assert found == [("eager", "eager")] * 2 + [("sdpa", "sdpa")] * 2


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


@pytest.mark.parametrize("loader", [transformers.AutoModelForSequenceClassification, *HEADS])
def test_kept_answers_are_those_the_teacher_would_give(loader: Any) -> None:
    _, teacher = pair(loader=loader)
    teacher.set_attn_implementation("eager")
    kept, inputs = Teacher(teacher, cache_gib=1), batch()
    first, again = (kept(inputs, list(range(8)), hidden=True, attention=True) for _ in range(2))
    assert kept.hits == 8
    mask = inputs["attention_mask"]
    assert float(hidden_distance(again.hidden_states, first.hidden_states, mask)) == pytest.approx(0, abs=1e-6)
    assert float(attention_distance(again.attentions, first.attentions, mask)) == pytest.approx(0, abs=1e-6)
    said = (output_signals(outputs, inputs, teacher.config) for outputs in (first, again))
    assert float(divergence(*said)) == pytest.approx(0, abs=1e-6)
    short = kept({key: value[3:5, : max(LENGTHS[3:5])] for key, value in inputs.items()}, [3, 4], hidden=True)
    assert kept.hits == 10 and short.hidden_states[0].shape[1] == max(LENGTHS[3:5])


def test_training_with_kept_answers_is_the_same(tmp_path: Path) -> None:
    (plain, teacher), (cached, _) = pair(), pair()
    options: dict[str, Any] = {"max_steps": 20, "optim": "sgd", "learning_rate": 0.05}
    train(tmp_path / "1", plain, teacher, **options)
    kept = Teacher(teacher, cache_gib=1)
    train(tmp_path / "2", cached, kept, **options)
    assert kept.hits > 0
    for a, b in zip(plain.state_dict().values(), cached.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_no_more_is_kept_than_there_is_memory_for() -> None:
    _, teacher = pair()
    kept = Teacher(teacher, cache_gib=1e-9)
    for start in range(0, 32, 4):
        kept(
            {key: value for key, value in collate(ROWS[start : start + 4]).items() if key != "labels"},
            list(range(start, start + 4)),
        )
    assert len(kept.kept) == 4


def test_evaluation_reports_the_last_stages_loss_and_metrics(tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = DistillationTrainer(
        student, teacher, arguments(tmp_path), ROWS, collate, eval_dataset=ROWS[:8],
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
    )  # fmt: skip
    found = trainer.evaluate()
    assert found["eval_loss"] > 0 and 0 <= found["eval_accuracy"] <= 1
    assert trainer.predict(ROWS[:8]).predictions.shape == (8, 2)


def test_embeddings_and_dropout_are_left_alone_unless_asked(tmp_path: Path) -> None:
    student, teacher = pair()
    before = student.get_input_embeddings().weight.clone()
    train(tmp_path, student, teacher, max_steps=4)
    assert torch.equal(student.get_input_embeddings().weight, before)
    student, teacher = pair()
    train(tmp_path, student, teacher, max_steps=4, train_embeddings=True)
    assert not torch.equal(student.get_input_embeddings().weight, before)


def test_the_student_is_saved_as_a_factorized_model(tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = train(tmp_path / "run", student, teacher, max_steps=2)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert factorized_layers(loaded)
    torch.testing.assert_close(loaded.eval()(**batch()).logits, student.eval()(**batch()).logits)


def compressed(folder: Path) -> tuple[Any, Any]:
    """A student in a folder saved by heat_hf, and its teacher."""
    _, teacher = pair()
    compressor = HeatCompressor(copy.deepcopy(teacher))
    compressor.compress(HeatConfig(target_params_ratio=0.5, accelerator=None), save_directory=folder)
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder), teacher


def test_a_trained_student_is_saved_with_report_card_and_curves(tmp_path: Path) -> None:
    student, teacher = compressed(tmp_path / "student")
    trainer = train(tmp_path / "run", student, teacher, max_steps=4)
    trainer.save(tmp_path / "saved")
    assert CompressionReport.from_pretrained(tmp_path / "saved") == CompressionReport.from_pretrained(tmp_path / "student")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "on 32 rows: 4 steps of 4 rows, learning rates 0.01 and 0.01, seed 42" in card and "(training.png)" in card
    state = json.loads((tmp_path / "saved" / "trainer_state.json").read_text())
    assert [entry["stage"] for entry in state["log_history"] if "stage" in entry] == [1, 1, 2, 2]
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded.eval()(**batch()).logits, student.eval()(**batch()).logits)
    with pytest.raises(FileExistsError, match="pass overwrite"):
        trainer.save(tmp_path / "saved")


def test_a_student_without_a_known_report(tmp_path: Path) -> None:
    student, teacher = pair()
    trainer = train(tmp_path / "run", student, teacher, max_steps=2)
    with pytest.raises(ValueError, match=r"pass report=compressor\.report to the trainer"):
        trainer.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    compressed(tmp_path / "known")
    trainer.report = CompressionReport.load(tmp_path / "known")
    trainer.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "README.md").is_file()


def test_checkpoints_are_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hub_strategy must be end: checkpoints are not pushed, got every_save"):
        arguments(tmp_path, push_to_hub=True, hub_strategy="every_save")
    assert arguments(tmp_path, push_to_hub=True).hub_strategy == "end"


def other(**changes: Any) -> PreTrainedModel:
    config = transformers.AutoConfig.for_model("bert", **{**FAMILIES["bert"][0], **changes})
    return transformers.AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda: other(num_hidden_layers=3), "different numbers of layers: num_hidden_layers is 2 and 3"),
        (lambda: other(vocab_size=61), "different vocabularies: vocab_size is 60 and 61"),
        (lambda: other(num_labels=3), "different numbers of labels: num_labels is 2 and 3"),
        (lambda: other(num_attention_heads=2), "num_attention_heads is 4 and 2"),
        (lambda: other(hidden_size=48), "hidden_size is 24 and 48"),
        (lambda: other(id2label={0: "no", 1: "yes"}), "name their labels differently"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(pair()[0], teacher(), arguments(tmp_path), ROWS, collate)


def test_layers_may_differ_where_only_outputs_are_matched(tmp_path: Path) -> None:
    train(tmp_path, pair()[0], other(num_hidden_layers=3, hidden_size=48), recipe="logits", max_steps=1)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "train_dataset has no rows"),
        ([{"sentence": "a"}], {}, "no column 'input_ids': tokenize it first; it has sentence"),
        ([{"input_ids": [1]}], {"recipe": "labels"}, "recipe='labels' reads labels"),
        ([{"input_ids": [1]}], {"targets": "labels"}, "targets='labels' reads labels"),
        (
            [{"input_ids": [1], "labels": 0}, {"input_ids": [1], "labels": 2}],
            {},
            "labels=2 in row 1; the model has labels 0 to 1",
        ),
        ([{"input_ids": [1], "labels": -1}], {}, "labels=-1 in row 0"),
        ([{"input_ids": [1], "labels": 0.5}], {}, "labels=0.5 in row 0"),
    ],
)
def test_data_that_cannot_work_are_refused(rows: list[Any], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    for data in (rows, datasets.Dataset.from_list(rows)) if rows else (rows,):
        with pytest.raises(ValueError, match=message):
            DistillationTrainer(*pair(), arguments(tmp_path, **options), data, collate)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "three-stage"}, "recipe must be one of two-stage"),
        ({"targets": "both"}, "targets must be one of teacher, labels"),
        ({"layer_share": 1.0}, "layer_share must be between 0 and 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"logit_learning_rate": 0.0}, "logit_learning_rate must be positive"),
        ({"hidden_weight": -1.0}, "hidden_weight must not be negative"),
        ({"hidden_weight": 0.0, "attention_weight": 0.0}, "the first stage would have nothing to do"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def test_too_few_steps_and_odd_schedules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 steps are too few for 2 stages"):
        train(tmp_path, *pair(), max_steps=1)
    with pytest.raises(ValueError, match="no function of the step"):
        train(tmp_path, *pair(), lr_scheduler_type="greedy", eval_strategy="epoch", eval_dataset=ROWS[:4])


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "distil_in_processes.py"
    for count in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        command = [*launch, str(script), str(tmp_path / str(count)), str(8 // count)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / str(count) / "losses.pt", weights_only=True) for count in (1, 2))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
