"""The machine at hand as a cost model: what layers take here, in a runtime, measured."""

from __future__ import annotations

from heat_hf.hardware.machine.model import MachineModel

__all__ = ["MachineModel"]
