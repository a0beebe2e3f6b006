"""Costs are shown in one unit each, wherever they are shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from heat_hf.hardware import units
from heat_hf.hardware.cost import Cost

ROOT = Path(__file__).parents[2]
SHOWN = [*(ROOT / "heat_hf").rglob("*.py"), *(ROOT / "heat_hf").rglob("*.html"), *(ROOT / "recipes").rglob("*.py")]
OTHERS = re.compile(r"\b[nm]J\b|µ")


def test_a_cost_in_the_units_that_are_shown() -> None:
    cost = Cost(seconds=2e-6, energy_pJ=3e6)
    assert units.ENERGY.of(cost.energy_pJ) == pytest.approx(3)
    assert units.TIME.of(cost.seconds) == pytest.approx(2)
    assert units.EDP.of(cost.edp) == pytest.approx(units.ENERGY.of(cost.energy_pJ) * units.TIME.of(cost.seconds) * 1e-6)
    assert [unit.name for unit in (units.ENERGY, units.TIME, units.EDP)] == ["µJ", "µs", "µJ·s"]


def test_no_text_writes_a_unit_by_itself() -> None:
    """Values are kept in pJ and s, which is said where they are; what is shown is named in one place."""
    spelled = {
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in SHOWN
        if file.name != "units.py"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if OTHERS.search(line)
    }
    assert spelled == set()
