"""Level 3: a factorized model is trained to give the dense model's outputs again (paper, section 2.2.3)."""

from heat_hf.distillation.arguments import DistillationArguments
from heat_hf.distillation.stages import RECIPES, Stage
from heat_hf.distillation.teacher import Teacher
from heat_hf.distillation.trainer import DistillationTrainer

__all__ = ["RECIPES", "DistillationArguments", "DistillationTrainer", "Stage", "Teacher"]
