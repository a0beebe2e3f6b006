"""The search for shapes (Level 1) against a hardware cost."""

from __future__ import annotations
