"""What a folder saved by heat_hf is recognized by: method and version in its config.json, and the names of its files."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

METHOD = "heat"  # quant_method of the configuration
REPORT_NAME = "heat_report.json"
CARD_NAME = "README.md"
STATE_NAME = "trainer_state.json"  # as Trainer's checkpoints have it


def package_version() -> str:
    """The installed version of heat_hf; "0+source" where it runs from a folder that is not installed."""
    try:
        return version("heat-hf")
    except PackageNotFoundError:
        return "0+source"
