"""What a folder saved by heat_hf is recognized by: method and version in its config.json, and the names of its files."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SOURCE = "0+source"  # the version of what is not installed
METHOD = "heat"  # quant_method of the configuration
WEIGHTS_NAME = "heat_model.safetensors"
WEIGHTS_INDEX_NAME = "heat_model.safetensors.index.json"
# Transformers without the quantizer looks for a file of this name, and names it in its error.
MISSING_IMPORT = "import_heat_hf_before_loading_this_model.safetensors"
REPORT_NAME = "heat_report.json"
CARD_NAME = "README.md"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
STATE_NAME = "trainer_state.json"  # as Trainer's checkpoints have it


def package_version() -> str:
    """The installed version of heat_hf; `SOURCE` where it runs from a folder that is not installed."""
    try:
        return version("heat-hf")
    except PackageNotFoundError:
        return SOURCE


def checkpoint_name(model: Any) -> str:  # noqa: ANN401
    """What a model's checkpoint is called: its id on the Hub, a folder's own name, or its class if it was made in Python.

    A path on this machine says nothing elsewhere, and may say more about its owner than is meant to be published.

    Args:
        model: of Transformers.
    """
    name = str(model.config._name_or_path or type(model).__name__)
    return Path(name).absolute().name if Path(name).is_absolute() or Path(name).is_dir() else name


def pickled_weights(model: str | os.PathLike[str], **hub: Any) -> str | None:
    """Name of a checkpoint's weights file that is a pickle; None if it has none.

    Args:
        model: folder or Hub id.
        **hub: revision, token, cache_dir, local_files_only, subfolder.
    """
    from transformers.utils.hub import cached_file

    missing = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo", "connection_errors")}
    return next((name for name in PICKLES if cached_file(str(model), name, **missing, **hub) is not None), None)
