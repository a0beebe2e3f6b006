"""Checkpoints of a training: which are whole, and of which training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainingArguments

from heat_hf.encoders.batches import data_digest
from heat_hf.encoders.checkpoints.key import read_key, require_same_key
from heat_hf.encoders.checkpoints.names import STATE_NAME
from heat_hf.encoders.checkpoints.storage import atomic_file
from heat_hf.encoders.linears import tensors_digest

KEY_NAME = "heat_training.json"
# What Trainer writes into a checkpoint, each one of these names; its state comes last, and only then older checkpoints go.
PARTS = (("optimizer.pt", "optimizer.bin"), ("scheduler.pt",), ("rng_state.pth", "rng_state_0.pth"))
# Arguments that say where results go, when they are shown or how fast they come, not what they are.
_IMMATERIAL = (
    "output_dir", "logging_", "log_", "save_", "hub_", "push_to_hub", "report_to", "run_name", "eval_", "per_device_eval_",
    "disable_tqdm", "dataloader_num_workers", "dataloader_p", "do_", "project", "trackio", "resume_from", "local_rank", "ddp_",
    "load_best", "metric_for", "greater_is", "label_names", "include_", "batch_eval", "prediction_", "skip_memory",
    "per_device_train_batch_size", "gradient_accumulation_steps",  # the rows of a step decide, however they are shared
)  # fmt: skip


# Of these, what decides when a training that is scored stops, and which of its weights are kept.
_SCORING = ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "load_best", "metric_for", "greater_is")


def training_key(
    student: Any,  # noqa: ANN401
    teacher: Any,  # noqa: ANN401
    args: TrainingArguments,
    rows: Any,  # noqa: ANN401
    scored: Any = None,  # noqa: ANN401
    callbacks: Iterable[Any] = (),
    shared: bool = False,
) -> dict[str, Any]:
    """All that decides which weights a training ends with, as JSON.

    Args:
        student: the model before its training.
        teacher: the dense model, or None.
        args: of the training.
        rows: of the training data; one that cannot be indexed does not count.
        scored: rows whose scores decide something; None where they do not.
        callbacks: of the training; of these, early stopping counts.
        shared: whether it matters how processes share the rows of a step.
    """
    # New adapters start at random; what they have learned is in the checkpoint.
    adapters = {
        name for name, parameter in student.named_parameters() if parameter.requires_grad and hasattr(student, "peft_config")
    }
    key = {
        "student": tensors_digest(tensor for name, tensor in student.state_dict().items() if name not in adapters),
        "teacher": tensors_digest(teacher.state_dict().values()),
        "training rows": _digest(rows),
        "rows of a step": step_rows(args),
        **({"rows of a batch": args.train_batch_size, "processes": args.world_size} if shared else {}),
        **deciding(args),
    }
    if scored is not None:
        key |= {name: value for name, value in args.to_dict().items() if name.startswith(_SCORING)}
        patience = [(c.early_stopping_patience, c.early_stopping_threshold) for c in stopping(callbacks)]
        key |= {"evaluation rows": _digest(scored), "early stopping": patience}
    return json.loads(json.dumps(key, default=str))  # type: ignore[no-any-return]


def step_rows(args: TrainingArguments) -> int:
    """Rows that the processes of a training take together, for one step of the optimizer."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def stopping(callbacks: Iterable[Any]) -> list[EarlyStoppingCallback]:
    """Those of the callbacks that stop a training early."""
    return [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]


def _digest(rows: Any) -> str | None:  # noqa: ANN401
    listed = hasattr(rows, "__len__") and hasattr(rows, "__getitem__") and not isinstance(rows, Mapping)
    return data_digest(rows[row] for row in range(len(rows))) if listed else None


def deciding(args: TrainingArguments) -> dict[str, Any]:
    """Those of the arguments that decide what a training ends with."""
    return {name: value for name, value in args.to_dict().items() if not name.startswith(_IMMATERIAL)}


def newest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written whole; None if there is none."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.name[len("checkpoint-") :].isdecimal()]
    newest = sorted(checkpoints, key=lambda path: int(path.name[len("checkpoint-") :]), reverse=True)
    return next((path for path in newest if not missing_parts(path)), None)


def missing_parts(checkpoint: Path) -> list[str]:
    """What a checkpoint lacks to be gone on from; empty if it is whole."""
    missing = [names[0] for names in PARTS if not any((checkpoint / name).is_file() for name in names)]
    return missing if read_key(checkpoint / STATE_NAME) else [*missing, STATE_NAME]


def mark(checkpoint: Path, key: Mapping[str, Any]) -> None:
    """Say of which training a checkpoint is."""
    with atomic_file(checkpoint / KEY_NAME) as file:
        file.write_text(json.dumps(key))


def require_training(checkpoint: Path, key: Mapping[str, Any]) -> None:
    """Make sure that a checkpoint is whole, and of this training.

    Raises:
        ValueError: if it is not; the message says in what they differ.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"there is no checkpoint {checkpoint}")
    missing = missing_parts(checkpoint)
    if missing:
        raise ValueError(f"{checkpoint} cannot be gone on from: it has no whole {missing[0]}; name an older checkpoint")
    require_same_key(read_key(checkpoint / KEY_NAME), key, str(checkpoint), "training")
