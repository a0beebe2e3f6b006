"""`heat-hf distill`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heat_hf.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `distill`."""
    parser.add_argument("model", help="folder of the compressed model")
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="Hub id or folder of the dense model it came from")
    text = "sentences or pairs; labels are not needed"
    options.add_rows(parser, "train", text, rows_text="rows of it to use", required=True)
    parser.add_argument(
        "--max-length", type=options.COUNT, default=128, metavar="L", help="tokens of a row (default: %(default)s)"
    )
    how = parser.add_argument_group("training")
    how.add_argument("--recipe", default="two-stage", help="two-stage, one-stage, layers, logits … (default: %(default)s)")
    how.add_argument("--epochs", type=float, default=2.0, help="of both stages together (default: %(default)s)")
    how.add_argument("--max-steps", type=int, default=-1, metavar="N", help="steps instead")
    how.add_argument("--batch-size", type=int, default=32, metavar="B", help="rows in a batch (default: %(default)s)")
    how.add_argument("--learning-rate", type=float, default=3e-4, help="peak of the first stage (default: %(default)s)")
    how.add_argument("--logit-learning-rate", type=float, default=1e-4, help="of the second (default: %(default)s)")
    how.add_argument("--layer-share", type=float, default=0.5, help="share of the first stage's steps (default: %(default)s)")
    how.add_argument("--targets", default="teacher", help="of the cross entropy: teacher or labels (default: %(default)s)")
    how.add_argument("--teacher-cache-gib", type=float, default=0.0, help="memory to keep the teacher's answers in")
    how.add_argument(
        "--save-steps", type=int, default=200, metavar="N", help="steps between checkpoints (default: %(default)s)"
    )
    options.add_seed(how)
    out = parser.add_argument_group("output")
    options.add_output(out, "DIR", "where to save; checkpoints are in DIR.checkpoints meanwhile", required=True)
    options.add_overwrite(out)


def run(args: argparse.Namespace) -> int:
    """Distil a compressed model; run again after an interruption, it goes on from its last checkpoint."""
    import contextlib
    import math

    from transformers import AutoTokenizer, DataCollatorWithPadding

    from heat_hf.distillation import DistillationArguments, DistillationTrainer
    from heat_hf.encoders.batches import encode_rows
    from heat_hf.encoders.checkpoints.storage import check_target, discard
    from heat_hf.encoders.resuming import newest_checkpoint
    from heat_hf.encoders.rows import load_rows
    from heat_hf.reports.compression import CompressionReport

    check_target(args.output, args.overwrite)
    report = CompressionReport.load(Path(args.model))
    checkpoints = Path(f"{args.output.rstrip('/')}.checkpoints")
    training = DistillationArguments(
        output_dir=str(checkpoints),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        logging_steps=math.gcd(50, args.save_steps),  # a logged mean spans no checkpoint: it would be lost there
        **{name: getattr(args, name) for name in SHARED},
    )
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = encode_rows(load_rows(args.train_file, args.train_rows), tokenizer, args.max_length)
    student, teacher = _models(args)
    try:
        trainer = DistillationTrainer(
            student, teacher, training, rows, DataCollatorWithPadding(tokenizer), report, processing_class=tokenizer
        )
        trainer.train(_checkpoint(newest_checkpoint(checkpoints), trainer.key, args.overwrite))
    finally:
        with contextlib.suppress(OSError):  # only an empty folder goes: Trainer makes it before the first checkpoint
            checkpoints.rmdir()
    trainer.save(args.output, args.overwrite)
    if trainer.is_world_process_zero():
        with contextlib.suppress(OSError):  # it may have none
            discard(checkpoints, Path(args.output).absolute())
        print(
            f"saved to {args.output}; score it with: heat-hf evaluate {args.output} --baseline {args.teacher}", file=sys.stderr
        )
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


SHARED = (
    "max_steps", "recipe", "learning_rate", "logit_learning_rate", "layer_share", "targets", "teacher_cache_gib", "save_steps",
    "seed",
)  # fmt: skip


def _models(args: argparse.Namespace) -> tuple[Any, Any]:
    """Student and teacher, both of the class that the student's configuration names.

    Raises:
        ValueError: if the teacher is compressed itself, or has no weights for a part of this class, as its head.
    """
    from transformers import AutoConfig

    import heat_hf  # noqa: F401
    from heat_hf.encoders.config import require_dense
    from heat_hf.encoders.linears import model_class_of

    loader = model_class_of(AutoConfig.from_pretrained(args.model))
    require_dense(AutoConfig.from_pretrained(args.teacher))
    teacher, info = loader.from_pretrained(args.teacher, output_loading_info=True)
    if info["missing_keys"]:
        lost = min(info["missing_keys"])
        raise ValueError(f"--teacher {args.teacher} is no {loader.__name__} as the student is: it has no weights for {lost}")
    return loader.from_pretrained(args.model), teacher
