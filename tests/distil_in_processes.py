"""Run by a test in several processes: distil, or go on from a checkpoint, and keep the student's outputs and the log."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path[:0] = [str(folder) for folder in Path(__file__).parents[:2]]
from students import batch, pair, train  # noqa: E402

if __name__ == "__main__":
    folder, rows, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None
    student, teacher = pair()
    trainer = train(
        folder / "run", student, teacher, resume=resume, per_device_train_batch_size=rows, max_steps=4, save_steps=3,
        save_total_limit=2, optim="sgd", learning_rate=0.05, train_sampling_strategy="group_by_length",
    )  # fmt: skip
    with torch.no_grad():
        logits = student.eval()(**batch()).logits
    assert trainer.args.world_size * rows == 8
    if trainer.is_world_process_zero():
        parts = ("loss", "attention", "hidden", "divergence", "cross_entropy")
        log = [[entry.get(name, 0.0) for name in parts] for entry in trainer.state.log_history if "loss" in entry]
        torch.save({"logits": logits, "log": torch.tensor(log)}, folder / "found.pt")
