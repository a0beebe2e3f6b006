"""Run by a test in several processes: distil, and keep the student's outputs."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path[:0] = [str(folder) for folder in Path(__file__).parents[:2]]
from students import batch, pair, train  # noqa: E402

if __name__ == "__main__":
    folder, rows = Path(sys.argv[1]), int(sys.argv[2])
    student, teacher = pair()
    trainer = train(
        folder / "run", student, teacher, per_device_train_batch_size=rows, max_steps=4, optim="sgd", learning_rate=0.05
    )
    with torch.no_grad():
        logits = student.eval()(**batch()).logits
    assert trainer.args.world_size * rows == 8
    if trainer.is_world_process_zero():
        torch.save(logits, folder / "losses.pt")
