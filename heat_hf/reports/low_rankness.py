"""How close to low rank a dense model's matrices are, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heat_hf.encoders.low_rankness import LowRankness
from heat_hf.reports.text import text_table

SHARES = (0.05, 0.1, 0.25, 0.5)  # of the parameters
ERROR = 0.3
TYPICAL = 0.25  # the share that matrices are compared at


def low_rankness_data(name: str, matrices: Mapping[str, LowRankness]) -> dict[str, Any]:
    """As JSON: of every matrix its size, errors at some shares of its parameters, and the rank for one error."""
    found = {
        matrix: {"size": str(own.size), "errors": {str(share): own.error_at(share) for share in SHARES},
                 f"rank_for_{ERROR}": own.rank_for(ERROR)}
        for matrix, own in matrices.items()
    }  # fmt: skip
    return {"model": name, "matrices": found}


def low_rankness_text(name: str, matrices: Mapping[str, LowRankness]) -> str:
    """As a table."""
    rows = [
        (matrix, str(own.size), *(f"{own.error_at(share):.3f}" for share in SHARES), str(own.rank_for(ERROR)))
        for matrix, own in matrices.items()
    ]
    head = ("matrix", "size", *(f"error at {share:.0%}" for share in SHARES), f"rank for {ERROR}")
    title = f"{name}, dense: ‖W − W_r‖ / ‖W‖ of the best rank at a share of the parameters"
    return text_table(head, [rows], title, left=(0, 1))
