"""Factorized students, their teachers, rows and short trainings, for the tests of distillation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from conftest import FAMILIES, token_ids
from torch import Tensor
from transformers import PreTrainedModel

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.distillation import DistillationArguments, DistillationTrainer
from heat_hf.encoders.signals import attention_distance, divergence, hidden_distance, output_signals

HEADS = {
    transformers.AutoModelForQuestionAnswering: {"divergence", "cross_entropy"},
    transformers.AutoModelForTokenClassification: {"divergence", "cross_entropy"},
    transformers.AutoModel: {"divergence", "similarity"},
}


LENGTHS = [4 + (3 * number) % 6 for number in range(32)]


ROWS = [
    {"input_ids": row[:length].tolist(), "attention_mask": [1] * length, "labels": number % 2}
    for number, (row, length) in enumerate(zip(token_ids(32, 9), LENGTHS, strict=True))
]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    padded = {
        key: torch.tensor([row[key] + [0] * (longest - len(row[key])) for row in rows]) for key in rows[0] if key != "labels"
    }
    if "labels" in rows[0]:
        padded["labels"] = torch.tensor([row["labels"] for row in rows])
    return padded


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
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logit_learning_rate": 1e-2,
        "save_steps": 1000, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "train_sampling_strategy": "sequential",
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
    inputs, answers = batch(), []
    for model in (student.eval(), teacher):
        model.set_attn_implementation("eager")
        with torch.no_grad():
            answers.append(model(**inputs, output_hidden_states=True, output_attentions=True))
        model.set_attn_implementation("sdpa")
    learned, taught = answers
    mask = inputs["attention_mask"]
    signals = (output_signals(outputs, inputs, teacher) for outputs in answers)
    return (
        float(attention_distance(learned.attentions, taught.attentions, mask)),
        float(hidden_distance(learned.hidden_states, taught.hidden_states, mask)),
        float(divergence(*signals)),
    )
