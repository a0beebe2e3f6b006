"""Level 3: a factorized model is trained to give the dense model's outputs again (paper, section 2.2.3).

The trainer and its parts are imported on first use, so that the command line can name recipes without loading Transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heat_hf.distillation.stages import RECIPES, Stage

if TYPE_CHECKING:
    from heat_hf.distillation.arguments import DistillationArguments
    from heat_hf.distillation.teacher import Teacher
    from heat_hf.distillation.trainer import DistillationTrainer

__all__ = ["RECIPES", "DistillationArguments", "DistillationTrainer", "Stage", "Teacher"]
_HOMES = {"DistillationArguments": "arguments", "DistillationTrainer": "trainer", "Teacher": "teacher"}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
