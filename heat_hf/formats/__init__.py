"""Factorization formats: how a weight matrix is written as a product of small cores. Importing them loads no torch."""

from __future__ import annotations

from heat_hf.formats.base import Format, Rank, Subscripts
from heat_hf.formats.cp import CP
from heat_hf.formats.dropped import Dropped
from heat_hf.formats.low_rank import LowRank
from heat_hf.formats.monarch import Monarch
from heat_hf.formats.narrowed import FewerInputs, FewerOutputs
from heat_hf.formats.pivoted import Pivoted
from heat_hf.formats.shape import TensorShape, balanced_factors
from heat_hf.formats.shared import OnBasis, SharedBasis
from heat_hf.formats.size import MatrixSize
from heat_hf.formats.solver import Solver
from heat_hf.formats.strassen_tile import StrassenTile
from heat_hf.formats.ttm import TTM
from heat_hf.formats.tucker import Tucker

FORMATS: dict[str, Format] = {format.name: format for format in (LowRank(), Pivoted(), CP(), Tucker(), TTM(), Monarch())}
PAIRED: dict[str, Format] = {format.name: format for format in (FewerOutputs(), FewerInputs())}
"""Formats that two matrices get together."""
SHARED: dict[str, Format] = {format.name: format for format in (SharedBasis(), OnBasis())}
"""Formats that query, key and value get together."""
GONE: dict[str, Format] = {format.name: format for format in (Dropped(),)}
"""What all matrices of a block get together; no layer is ever made of it."""
JOINT = PAIRED | SHARED | GONE
OPERATORS: dict[str, Format] = {format.name: format for format in (StrassenTile(),)}
"""Formats that are no W′: they take several tokens at once, and are asked for, not searched."""


def get_format(name: str) -> Format:
    """The format registered under `name`, those of several matrices and of several tokens included.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    format = FORMATS.get(name) or JOINT.get(name) or OPERATORS.get(name)
    if format is None:
        raise ValueError(f"unknown decomposition {name!r}; known are {', '.join((*FORMATS, *OPERATORS))}")
    return format


__all__ = [
    "CP",
    "FORMATS",
    "GONE",
    "JOINT",
    "OPERATORS",
    "PAIRED",
    "SHARED",
    "TTM",
    "Format",
    "LowRank",
    "MatrixSize",
    "Monarch",
    "Pivoted",
    "Rank",
    "Solver",
    "StrassenTile",
    "Subscripts",
    "TensorShape",
    "Tucker",
    "balanced_factors",
    "get_format",
]
