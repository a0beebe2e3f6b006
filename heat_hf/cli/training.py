"""Options of a distillation's training, named as the fields of `DistillationArguments`; those not given are None."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heat_hf.cli import options
from heat_hf.distillation import stages

if TYPE_CHECKING:
    from heat_hf.distillation import DistillationArguments

# Of Trainer's arguments, those that are decided elsewhere.
DECIDED = {
    "output_dir": "give --output",
    "push_to_hub": "use heat-hf push",
    "resume_from_checkpoint": "the same command goes on by itself",
    "metric_for_best_model": "the score on the evaluation rows decides",
}


def add_training(how: options.Group) -> None:
    """The most used ones, and `--arguments` for all others."""
    rate = options.real(0, 1)
    how.add_argument("--recipe", choices=stages.RECIPES, help="default: two-stage")
    how.add_argument(
        "--epochs", type=options.real(0, math.inf), dest="num_train_epochs", metavar="E",
        help=f"of both stages together (default: {stages.EPOCHS:g})",
    )  # fmt: skip
    how.add_argument("--max-steps", type=options.COUNT, metavar="N", help="steps instead")
    how.add_argument(
        "--batch-size", type=options.COUNT, dest="per_device_train_batch_size", metavar="B",
        help=f"rows in a batch (default: {stages.BATCH_SIZE})",
    )  # fmt: skip
    how.add_argument("--gradient-accumulation-steps", type=options.COUNT, metavar="N", help="batches in a step (default: 1)")
    how.add_argument("--bf16", action="store_true", default=None, help="compute in bfloat16; weights stay in float32")
    how.add_argument(
        "--learning-rate", type=rate, metavar="R", help=f"peak of the first stage (default: {stages.LEARNING_RATE:g})"
    )
    how.add_argument(
        "--logit-learning-rate", type=rate, metavar="R", help=f"of the second (default: {stages.LOGIT_LEARNING_RATE:g})"
    )
    how.add_argument(
        "--layer-share", type=options.real(0, 1), metavar="S",
        help=f"share of the first stage's steps (default: {stages.LAYER_SHARE:g})",
    )  # fmt: skip
    how.add_argument("--targets", choices=stages.TARGETS, help="of the cross entropy (default: teacher)")
    how.add_argument(
        "--teacher-cache-gib", type=options.real(0, math.inf), metavar="G", help="memory to keep the teacher's answers in"
    )
    how.add_argument(
        "--save-steps", type=options.COUNT, metavar="N", help=f"steps between checkpoints (default: {stages.SAVE_STEPS})"
    )
    how.add_argument(
        "--early-stopping-patience", type=options.COUNT, metavar="N",
        help="stop after N epochs of the last stage without a better score, and keep the best",
    )  # fmt: skip
    how.add_argument("--arguments", nargs="+", default=[], metavar="NAME=VALUE", help="any other of DistillationArguments")
    options.add_seed(how)


def training_arguments(args: argparse.Namespace, folder: Path) -> DistillationArguments:
    """What the options ask for; with `--eval-file`, also that its rows are scored after every epoch.

    Args:
        args: of the command line.
        folder: for checkpoints.

    Raises:
        ValueError: for an argument that is not known or decided by another option, or a value that cannot work.
    """
    from dataclasses import fields

    import torch
    from transformers.trainer_utils import IntervalStrategy

    from heat_hf.distillation import DistillationArguments

    known = {field.name for field in fields(DistillationArguments) if field.init}
    given = {name: getattr(args, name) for name in known if getattr(args, name, None) is not None}
    others = dict(_other(pair, known, vars(args)) for pair in args.arguments)
    if args.bf16 and not torch.accelerator.is_available():
        others.setdefault("use_cpu", "True")  # Trainer asks for it by name before it computes so on a CPU
    training = _parsed({"output_dir": str(folder), **_scored(args), **given, **others})
    strategy = IntervalStrategy(training.eval_strategy)
    if strategy != IntervalStrategy.NO and not args.eval_file:
        raise ValueError(f"--arguments eval_strategy={strategy.value} needs rows to score: give --eval-file")
    return training


def _scored(args: argparse.Namespace) -> dict[str, Any]:
    """When rows are scored, and that the best is kept where a training stops early."""
    from heat_hf.distillation.scored import SCORE

    if args.early_stopping_patience is not None and not args.eval_file:
        raise ValueError("--early-stopping-patience needs rows to score: give --eval-file")
    if args.early_stopping_patience is not None and args.save_steps is not None:
        raise ValueError("--early-stopping-patience keeps a checkpoint of every epoch: leave out --save-steps")
    scored = {"eval_strategy": "epoch", "metric_for_best_model": SCORE} if args.eval_file else {}
    best = {"save_strategy": "epoch", "load_best_model_at_end": True, "restore_callback_states_from_checkpoint": True}
    return scored if args.early_stopping_patience is None else {**scored, **best}


def _other(pair: str, known: set[str], options: Mapping[str, Any]) -> tuple[str, str]:
    """Name and value of one of `--arguments`."""
    name, equals, value = pair.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or name not in known:
        raise ValueError(f"--arguments must be NAME=VALUE of DistillationArguments, as weight_decay=0.01, got {pair!r}")
    if name in DECIDED or name in options:
        raise ValueError(f"--arguments {pair}: {DECIDED.get(name, 'it has an option of its own, see heat-hf distill --help')}")
    return name, value


def _parsed(values: Mapping[str, Any]) -> DistillationArguments:
    """As `transformers.HfArgumentParser` reads them from a command line."""
    from transformers import HfArgumentParser

    from heat_hf.distillation import DistillationArguments

    class Parser(HfArgumentParser):  # its own errors print how it is used, and exit
        def error(self, message: str) -> Any:  # noqa: ANN401
            raise ValueError(f"--arguments: {message}")

    line = [f"--{name}={value}" for name, value in values.items()]
    try:
        parser = Parser(DistillationArguments, allow_abbrev=False)  # type: ignore[arg-type]
        (training,) = parser.parse_args_into_dataclasses(line, look_for_args_file=False)
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:  # what Trainer's own checks end in
        raise ValueError(f"these arguments do not go together: {error}") from error
    return training
