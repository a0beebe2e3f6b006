"""Run by a test in two processes: search ranks by a SuperNet, and keep the record and the losses of its training."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)
sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("..", ".", "search")]
from test_supernet_search import LOGGED, by_supernet, losses_of  # noqa: E402

from heat_hf.search.ranks.supernet import SuperNetTrainer  # noqa: E402

if __name__ == "__main__":
    output, stop = Path(sys.argv[1]), sys.argv[2:] == ["stop"]
    losses: list[float] = []

    def log(_trainer: SuperNetTrainer, logs: dict[str, Any], *_: Any) -> None:
        losses.extend(losses_of(logs))
        if stop and len(losses) == 3:
            sys.exit(3)

    SuperNetTrainer.log = log  # type: ignore[method-assign]
    by_supernet(output, arguments=replace(LOGGED, per_device_train_batch_size=2))
    if os.environ["RANK"] == "0":
        output.with_suffix(".losses").write_text(json.dumps(losses))
