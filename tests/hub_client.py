"""Run by tests in a process of its own, whose Hub is a loopback server: push a folder, or a trained model, or load one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from typing import Any


def digest(model: Any) -> str:
    """Of all weights."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


def load(repo: str, revision: str | None) -> None:
    from transformers import AutoModel, AutoTokenizer

    import heat_hf  # noqa: F401 - late: after Transformers

    print(digest(AutoModel.from_pretrained(repo, revision=revision or "main")))
    AutoTokenizer.from_pretrained(repo, revision=revision or "main")


def push(folder: str, repo: str) -> None:
    from heat_hf import HeatCompressor, HeatConfig
    from heat_hf.reports.card import Evaluation

    compressor = HeatCompressor.from_pretrained(folder)
    compressor.compress(HeatConfig(target_params_ratio=0.4))
    score = Evaluation("sentence-similarity", "STS-B", "test", 1379, "spearman", 0.8, 0.82)
    print(compressor.push_to_hub(repo, evaluations=[score], private=True).oid)
    print(digest(compressor.model))


def distil(folder: str, teacher: str, output: str) -> None:
    """Two steps on the compressed model in a folder, pushed by the trainer."""
    import datasets
    from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding

    from heat_hf.distillation import DistillationArguments, DistillationTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = datasets.Dataset.from_dict(dict(tokenizer(["A man is playing a guitar.", "Nobody sings."] * 8)))
    arguments = DistillationArguments(
        output, max_steps=2, logging_steps=1, use_cpu=True, push_to_hub=True, hub_model_id="minilm-distilled", disable_tqdm=True
    )
    student, dense = AutoModel.from_pretrained(folder), AutoModel.from_pretrained(teacher)
    trainer = DistillationTrainer(
        student, dense, arguments, rows, DataCollatorWithPadding(tokenizer), processing_class=tokenizer
    )
    trainer.train()
    print(trainer.push_to_hub(commit_message="Distilled").oid)
    print(digest(trainer.model))


def fail(folder: str, statuses: list[str]) -> None:
    """Push to repositories where the commit fails; print exit codes and what was said."""
    from heat_hf.cli import main

    found = []
    for status in statuses:
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = main(["push", folder, f"fail-{status}"])
        found.append((code, said.getvalue().strip().splitlines()[-1]))
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "fail":
        fail(sys.argv[2], sys.argv[3:])
    elif sys.argv[1] == "distil":
        distil(*sys.argv[2:])
    elif sys.argv[1] == "load":
        load(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
    else:
        push(sys.argv[2], sys.argv[3])
