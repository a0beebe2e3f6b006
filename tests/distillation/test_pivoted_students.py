"""Pivoted layers are trained as two factors: in place, back again after errors, and only where their elements are free."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, token_ids
from students import ROWS, arguments, collate, same, train

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.distillation import DistillationTrainer
from heat_hf.distillation.factors import in_two_factors
from heat_hf.encoders.linears import factorized_layers


def pivoted() -> tuple[Any, Any]:
    """A student of pivoted layers, and its teacher."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("bert", **FAMILIES["bert"][0])
    teacher = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    student = copy.deepcopy(teacher)
    HeatCompressor(student).compress(HeatConfig("pivoted", target_params_ratio=0.5, accelerator=None))
    return student, teacher


def formats(model: Any) -> list[str]:
    return sorted({layer.setting.format for layer in factorized_layers(model).values()})


class Watch(transformers.TrainerCallback):
    """Which formats layers have while they are trained."""

    def __init__(self, stop: bool = False) -> None:
        self.seen: list[str] = []
        self.stop = stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen += formats(kwargs["model"])
        if self.stop:
            raise KeyboardInterrupt


def test_the_matrices_are_the_same_in_two_factors_and_well_conditioned() -> None:
    student, _ = pivoted()
    student = student.eval()
    with torch.no_grad():
        before = student(token_ids()).logits
        with in_two_factors(student) as names:
            assert len(names) == len(factorized_layers(student))
            assert formats(student) == ["low_rank"]
            torch.testing.assert_close(student(token_ids()).logits, before, rtol=1e-4, atol=1e-5)
            for layer in factorized_layers(student).values():
                left, right = layer.cores
                for product in (left.mT @ left, right @ right.mT):  # orthogonal, however long
                    torch.testing.assert_close(product, product.diagonal().diag(), rtol=1e-3, atol=1e-5)
                torch.testing.assert_close(left.square().mean(), right.square().mean())
        assert formats(student) == ["pivoted"]
        torch.testing.assert_close(student(token_ids()).logits, before, rtol=1e-4, atol=1e-5)


def test_a_student_is_pivoted_before_and_after_its_training_and_can_be_trained_again(tmp_path: Path) -> None:
    student, teacher = pivoted()
    first, watch = copy.deepcopy(student), Watch()
    trainer = DistillationTrainer(student, teacher, arguments(tmp_path), ROWS, collate, callbacks=[watch])
    for _ in range(2):
        trainer.train()
        assert formats(student) == ["pivoted"] and set(watch.seen) == {"low_rank"}
    assert not same(student, first)
    student.save_pretrained(tmp_path / "saved")
    loaded = type(student).from_pretrained(tmp_path / "saved")
    assert formats(loaded) == ["pivoted"] and same(loaded, student)


def test_a_resumed_training_ends_with_the_same_pivoted_student(tmp_path: Path) -> None:
    student, teacher = pivoted()
    whole, resumed = copy.deepcopy(student), copy.deepcopy(student)
    train(tmp_path / "whole", whole, teacher, save_steps=2, save_total_limit=9)
    train(tmp_path / "other", student, teacher, save_steps=2, save_total_limit=9)
    train(
        tmp_path / "other", resumed, teacher, save_steps=2, save_total_limit=9, resume=str(tmp_path / "other" / "checkpoint-4")
    )
    assert same(resumed, whole) and formats(resumed) == ["pivoted"]
    checkpoint = type(student).from_pretrained(tmp_path / "other" / "checkpoint-4")
    assert formats(checkpoint) == ["low_rank"]


def test_an_interrupted_training_leaves_a_pivoted_student(tmp_path: Path) -> None:
    student, teacher = pivoted()
    trainer = DistillationTrainer(student, teacher, arguments(tmp_path), ROWS, collate, callbacks=[Watch(stop=True)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert formats(student) == ["pivoted"]


def test_layers_whose_elements_others_hold_stay_as_they_are(tmp_path: Path) -> None:
    student, teacher = pivoted()
    names = list(factorized_layers(student))
    student.get_submodule(names[0]).left.weight.requires_grad_(False)
    with in_two_factors(student) as swapped:
        assert swapped == names[1:]
    with in_two_factors(student.to(torch.bfloat16)) as swapped:
        assert not swapped
    student, watch = student.float(), Watch()
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], 1e-2)
    DistillationTrainer(
        student, teacher, arguments(tmp_path), ROWS, collate, callbacks=[watch], optimizers=(optimizer, None)
    ).train()
    assert set(watch.seen) == {"pivoted"}
