"""Limits of the iterative decompositions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Solver:
    """Limits of ALS, HOOI and the activation-aware refinement.

    Attributes:
        seed: seeds every random start; the same seed gives the same cores.
        max_sweeps: most ALS or HOOI sweeps over all cores.
        tolerance: stop when a sweep changes the relative error by less than this.
        refinement_steps: most quasi-Newton steps of the activation-aware refinement.
        start: initial values of `strassen_tile`, see `heat_hf.formats.bilinear.algorithm`.
    """

    seed: int = 0
    max_sweeps: int = 100
    tolerance: float = 1e-6
    refinement_steps: int = 40
    start: str = "strassen"
