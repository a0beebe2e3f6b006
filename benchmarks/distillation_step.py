"""A distillation step beside what any distillation has to do, in turn on the same batches."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from transformers import DataCollatorWithPadding

from heat_hf.distillation import DistillationArguments, DistillationTrainer, Teacher
from heat_hf.distillation.teacher import set_attention

WARM_UP = 2


def step_ratios(model: Any, teacher: Any, rows: list[dict], tokenizer: Any, repeats: int) -> dict[str, dict[str, float]]:
    """Median and quartiles of the ratio, for either stage.

    Args:
        model: the student.
        teacher: the dense model.
        rows: encoded rows.
        tokenizer: pads them.
        repeats: batches of 32 that count; two more warm up.
    """
    collate, found = DataCollatorWithPadding(tokenizer), {}
    batches = [collate(rows[start : start + 32]) for start in range(0, 32 * (repeats + WARM_UP), 32)]
    for recipe in ("layers", "logits"):
        arguments = DistillationArguments(output_dir="unused", recipe=recipe, max_steps=1000, use_cpu=True)
        trainer = DistillationTrainer(model, Teacher(teacher), arguments, rows, collate)
        trainer.create_optimizer_and_scheduler(1000)
        trainer.state.max_steps = 1000
        trainer.current_gradient_accumulation_steps = 1  # what `train` sets before its first step
        ratios = [_ratio(trainer, model, teacher, dict(batch), recipe == "layers") for batch in batches][WARM_UP:]
        lower, median, upper = statistics.quantiles(ratios, n=4)
        found[recipe] = {"median": median, "lower": lower, "upper": upper, "repeats": len(ratios)}
    return found


def _ratio(trainer: DistillationTrainer, model: Any, teacher: Any, batch: dict[str, Any], layers: bool) -> float:
    asked = {"output_hidden_states": layers, "output_attentions": layers}
    for own in (model, teacher):
        set_attention(own, layers)
    start = time.perf_counter()
    with torch.no_grad():
        teacher(**batch, **asked)
    outputs = model.train()(**batch, **asked)
    parts = [*outputs.hidden_states, *outputs.attentions] if layers else [outputs.logits]
    torch.stack([part.sum() for part in parts]).sum().backward()
    middle = time.perf_counter()
    model.zero_grad()
    between = time.perf_counter()
    trainer.training_step(model, batch)
    end = time.perf_counter()
    model.zero_grad()
    return (end - between) / (middle - start)
