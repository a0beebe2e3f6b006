"""`heat-hf distill`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heat_hf.cli import options
from heat_hf.cli.training import add_training, training_arguments
from heat_hf.cli.values import loading, rows_of, with_encoder

if TYPE_CHECKING:
    from heat_hf.distillation import DistillationArguments
    from heat_hf.reports.compression import CompressionReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `distill`."""
    parser.add_argument("model", help="Hub id or folder of the compressed model")
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="Hub id or folder of the dense model it came from")
    options.add_rows(parser, "train", "sentences or pairs; labels are not needed", rows_text="rows of it to use", required=True)
    text = "rows to score after every epoch, by a column label or by agreement with the teacher"
    options.add_rows(parser, "eval", text, rows_text="rows of it to use")
    parser.add_argument(
        "--max-length", type=options.COUNT, default=128, metavar="L", help="tokens of a row (default: %(default)s)"
    )
    add_training(parser.add_argument_group("training"))
    load = parser.add_argument_group("loading")
    options.add_loading(load)
    options.add_place(load, "teacher-", "the teacher")
    out = parser.add_argument_group("output")
    options.add_output(out, "DIR", "where to save; checkpoints are in DIR.checkpoints meanwhile", required=True)
    options.add_overwrite(out)


def run(args: argparse.Namespace) -> int:
    """Distil a compressed model; run again after an interruption, it goes on from its last checkpoint."""
    import contextlib
    import shutil

    from heat_hf.encoders.checkpoints.storage import check_target
    from heat_hf.encoders.resuming import newest_checkpoint
    from heat_hf.evaluation.tasks import task_of
    from heat_hf.reports.compression import CompressionReport

    check_target(args.output, args.overwrite)
    checkpoints = Path(f"{args.output.rstrip('/')}.checkpoints")
    training = training_arguments(args, checkpoints)
    report = CompressionReport.from_pretrained(args.model, **({"revision": args.revision} if args.revision else {}))
    rows = {name: rows_of(args, name) for name in ("train", "eval")}
    models = _models(args)
    try:
        trainer = _trainer(args, training, models, rows, report)
        trainer.train(_checkpoint(newest_checkpoint(checkpoints), trainer.key, args.overwrite))
    finally:
        with contextlib.suppress(OSError):  # only an empty folder goes: Trainer makes it before the first checkpoint
            checkpoints.rmdir()
    evaluations = [trainer.evaluation()] if args.eval_file else []
    trainer.save(args.output, args.overwrite, evaluations=evaluations)
    if trainer.is_world_process_zero():
        shutil.rmtree(checkpoints, ignore_errors=True)
        labelled = bool(args.eval_file) and trainer.quality.labelled
        task = task_of(models.student, sentence_encoder=True)
        print(f"saved to {args.output}; {_next(args, task, rows['eval'], labelled)}", file=sys.stderr)
    return 0


def _checkpoint(newest: Path | None, key: Mapping[str, Any], overwrite: bool) -> str | None:
    """Where to go on from; with `overwrite`, another training's checkpoints go."""
    import shutil

    from heat_hf.encoders.resuming import require_training

    if newest is None:
        return None
    try:
        require_training(newest, key)
    except ValueError:
        if not overwrite:
            raise
        for folder in newest.parent.glob("checkpoint-*"):
            shutil.rmtree(folder)
        return None
    return str(newest)


@dataclass(frozen=True)
class _Models:
    """Student, teacher, and the student's tokenizer."""

    student: Any
    teacher: Any
    tokenizer: Any


def _models(args: argparse.Namespace) -> _Models:
    """Student and teacher, both of the class that the student's configuration names.

    Raises:
        OSError: if one of them cannot be loaded.
        ValueError: if the teacher is compressed itself, or has no weights for a part of this class, as its head.
    """
    from transformers import AutoConfig

    import heat_hf  # noqa: F401
    from heat_hf.compression.loading import load_weights
    from heat_hf.encoders.checkpoints.tokenizer import load_tokenizer
    from heat_hf.encoders.config import require_dense
    from heat_hf.encoders.linears import model_class_of

    learns, teaches = (with_encoder(args.model, loading(args))[0], with_encoder(args.teacher, loading(args, "teacher_"))[0])
    loader = model_class_of(AutoConfig.from_pretrained(args.model, **learns))
    require_dense(AutoConfig.from_pretrained(args.teacher, **teaches))
    teacher, info = load_weights(loader, args.teacher, {**teaches, "output_loading_info": True})
    if info["missing_keys"]:
        lost = min(info["missing_keys"])
        raise ValueError(f"--teacher {args.teacher} is no {loader.__name__} as the student is: it has no weights for {lost}")
    return _Models(load_weights(loader, args.model, learns), teacher, load_tokenizer(args.model, **learns))


def _trainer(
    args: argparse.Namespace,
    training: DistillationArguments,
    models: _Models,
    rows: Mapping[str, Any],
    report: CompressionReport,
) -> Any:  # noqa: ANN401
    """The trainer of the encoded rows; one that scores, with rows to score."""
    from transformers import DataCollatorWithPadding

    from heat_hf.distillation import DistillationTrainer
    from heat_hf.distillation.scored import Patience, ScoredTrainer
    from heat_hf.encoders.batches import pad_batches

    tokenizer = models.tokenizer
    encoded = {name: _encoded(args, name, models, data) for name, data in rows.items() if data is not None}
    given = (models.student, models.teacher, training, encoded["train"], DataCollatorWithPadding(tokenizer), report)
    if not args.eval_file:
        return DistillationTrainer(*given, processing_class=tokenizer)
    patience = args.early_stopping_patience
    return ScoredTrainer(
        *given,
        scored_rows=pad_batches(encoded["eval"], tokenizer, training.per_device_eval_batch_size),
        data=Path(args.eval_file).stem,
        processing_class=tokenizer,
        callbacks=[] if patience is None else [Patience(patience)],
    )


def _encoded(args: argparse.Namespace, name: str, models: _Models, rows: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Rows as the student's checkpoint serves them, tokenized."""
    from heat_hf.encoders.batches import encode_rows, require_vocabulary
    from heat_hf.evaluation.tasks import as_served

    file = f"--{name}-file {getattr(args, f'{name}_file')}"
    tokenizer, served = as_served(models.student, models.tokenizer, rows, file)
    classes = models.student.config.label2id if name == "eval" else None
    encoded = encode_rows(served, tokenizer, args.max_length, file, classes)
    require_vocabulary(encoded, models.student.config.vocab_size, file)
    return encoded


def _next(args: argparse.Namespace, task: str, rows: Any, labelled: bool) -> str:  # noqa: ANN401
    """What to do with the result: score it, as printed, where there are rows with references; else look at it."""
    columns = None if rows is None else _columns(task, rows.column_names, labelled)
    if columns is None:
        return f"look at it with: {shlex.join(['heat-hf', 'report', args.output])}"
    line = ["heat-hf", "evaluate", args.output, "--task", task, "--data", args.eval_file, *columns]
    if not any(getattr(args, f"teacher_{place}") for place in ("revision", "subfolder", "code_revision")):
        line += ["--baseline", args.teacher]  # elsewhere than by its name, evaluate does not find it
    line += ["--trust-remote-code"] if args.trust_remote_code else []
    return f"score it with: {shlex.join(line)}"


def _columns(task: str, there: Sequence[str], labelled: bool) -> list[str] | None:
    """`--columns` of evaluate, where these are not the task's usual ones; None if texts or references are not there."""
    from heat_hf.encoders.batches import TEXT_COLUMNS
    from heat_hf.evaluation.tasks import TASKS

    usual = list(TASKS[task].columns)
    if labelled:  # encoded as `encode_rows` does
        texts = [name for name in TEXT_COLUMNS if name in there][:2]
        found = [*texts, *[""] * (2 - len(texts)), "label" if "label" in there else "labels"]
        return ([] if found == usual else ["--columns", *found]) if texts else None
    return [] if all(name in there for name in usual if name) else None
