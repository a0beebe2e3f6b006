"""What a report says of block-wise refinement, and what of it is refused when it is damaged."""

from __future__ import annotations

from typing import Any

import pytest

from heat_hf.reports.refinement import BlockError, Refinement

FOUND = Refinement(60, (BlockError("encoder.layer.0", 0.332, 0.289), BlockError("encoder.layer.1", 0.445, 0.4)))


def test_round_trip_and_text() -> None:
    assert Refinement.from_dict(FOUND.to_dict()) == FOUND
    assert str(FOUND) == (
        "Refined by 60 steps a block; relative error of a block's outputs before → after: "
        "encoder.layer.0 0.3320 → 0.2890, encoder.layer.1 0.4450 → 0.4000."
    )


@pytest.mark.parametrize(
    "damage",
    [
        {"steps": 0},
        {"steps": "60"},
        {"blocks": [{"name": 1, "before": 0.1, "after": 0.1}]},
        {"blocks": [{"name": "a", "before": "0.1", "after": 0.1}]},
        {"blocks": [{"name": "a", "before": 0.1, "after": None}]},
        {"blocks": [{"name": "a", "before": 0.1}]},
        {"blocks": None},
    ],
)
def test_damage_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Refinement.from_dict({**FOUND.to_dict(), **damage})
