"""Runnable recipes: from a checkpoint to a distilled factorized model with its figures and card."""
