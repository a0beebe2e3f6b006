"""What can go wrong with a distillation, found before its first step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from heat_hf.distillation.arguments import DistillationArguments
from heat_hf.distillation.stages import LABEL_COLUMNS, Stage
from heat_hf.encoders.rows import require_rows
from heat_hf.encoders.signals import OF_NUMBERS
from heat_hf.evaluation.tasks.token_classification import IGNORED


def check_models(student: Any, teacher: Any, stages: Sequence[Stage]) -> Sequence[int]:  # noqa: ANN401
    """Raise ValueError if the student's outputs and tokens are not the teacher's, or its blocks cannot be aligned with these.

    Args:
        student: its configuration.
        teacher: likewise.
        stages: of the recipe.

    Returns:
        Of the teacher's blocks, counted from 0, the one that each of the student's learns from: where blocks were dropped, the
        last that it stands for, else evenly spaced ones, the last among them.
    """
    if all(stage.labels for stage in stages):
        return ()
    same = {"vocab_size": "vocabularies", "num_labels": "numbers of labels"}
    if any(stage.hidden for stage in stages):
        same["hidden_size"] = "hidden sizes"
    if any(stage.attention for stage in stages):
        same["num_attention_heads"] = "numbers of attention heads"
    for name, words in same.items():
        learns, teaches = (getattr(config, name, None) for config in (student, teacher))
        if learns != teaches:
            raise ValueError(f"student and teacher have different {words}: {name} is {learns} and {teaches}")
    blocks = _taught_blocks(student, teacher, stages)
    learns, teaches = (_labels(config) for config in (student, teacher))
    if learns != teaches:
        raise ValueError(f"student and teacher name their labels differently: id2label is {learns} and {teaches}")
    return blocks


def _taught_blocks(student: Any, teacher: Any, stages: Sequence[Stage]) -> Sequence[int]:  # noqa: ANN401
    learns, teaches = student.num_hidden_layers, teacher.num_hidden_layers
    known: Sequence[int] = getattr(getattr(student, "quantization_config", None), "blocks", None) or ()
    if len(known) == learns and known[-1] == teaches - 1:
        return known
    if any(stage.attention or stage.hidden for stage in stages) and teaches % learns:
        raise ValueError(
            "num_hidden_layers of the student must divide the teacher's, so that every block learns from one: "
            f"{learns} and {teaches}"
        )
    step = max(1, teaches // learns)
    return range(step - 1, teaches, step)


def _labels(config: Any) -> dict[int, str]:  # noqa: ANN401
    return {int(number): str(name) for number, name in (getattr(config, "id2label", None) or {}).items()}


def check_data(rows: Any, config: Any, args: DistillationArguments) -> None:  # noqa: ANN401
    """Raise ValueError if training rows lack columns that the recipe reads, or a label is out of range.

    Args:
        rows: the training data; one that cannot be indexed is looked at while it trains.
        config: of the student.
        args: of the distillation.
    """
    require_rows(rows, "train_dataset")
    if not hasattr(rows, "__len__"):
        return
    if len(rows) == 0:
        raise ValueError("train_dataset has no rows")
    columns = list(getattr(rows, "column_names", None) or rows[0])
    if "input_ids" not in columns and "inputs_embeds" not in columns:
        raise ValueError(f"train_dataset has no column 'input_ids': tokenize it first; it has {', '.join(columns)}")
    names = [name for name in LABEL_COLUMNS if name in columns]
    reads = any(stage.labels or (stage.logits and args.targets == "labels") for stage in args.stages)
    if reads and not names:
        why = f"recipe={args.recipe!r}" if args.targets == "teacher" else "targets='labels'"
        raise ValueError(f"{why} reads labels, and train_dataset has no column of {', '.join(LABEL_COLUMNS)}")
    for name in names:
        if name in ("labels", "label", "label_ids"):
            _check_labels(rows, name, config)


def _check_labels(rows: Any, name: str, config: Any) -> None:  # noqa: ANN401
    count = getattr(config, "num_labels", 0)
    if count < 2 or getattr(config, "problem_type", None) in OF_NUMBERS:
        return
    for row, item in enumerate(_column(rows, name)):
        value = item.tolist() if hasattr(item, "tolist") else item
        for label in value if isinstance(value, (list, tuple)) else [value]:
            whole = isinstance(label, int) and not isinstance(label, bool)
            if not whole or (label != IGNORED and not 0 <= label < count):
                raise ValueError(f"train_dataset has {name}={label!r} in row {row}; the model has labels 0 to {count - 1}")


def _column(rows: Any, name: str) -> Iterable[Any]:  # noqa: ANN401
    if hasattr(rows, "column_names"):
        return rows[name]  # type: ignore[no-any-return]
    return (rows[row][name] for row in range(len(rows)))
