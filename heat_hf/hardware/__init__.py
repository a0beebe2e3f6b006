"""Accelerators: what hardware a contraction plan would run on, described in YAML."""

from __future__ import annotations

from heat_hf.hardware.spec import Accelerator, Level, Spatial, load_accelerator

__all__ = ["Accelerator", "Level", "Spatial", "load_accelerator"]
