"""Distil a factorized model, from a checkpoint to figures and a card.

python -m recipes.run recipes/sst2.yaml --output_dir runs/sst2
"""

from __future__ import annotations

from recipes.options import parse
from recipes.pipeline import run

if __name__ == "__main__":
    run(parse())
