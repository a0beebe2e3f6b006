"""Runtimes that models are exported for, by the names of `heat_hf.hardware.machine.runtimes.RUNTIMES`."""

from __future__ import annotations

import os
from pathlib import Path

from heat_hf.hardware.machine.runtimes import in_bfloat16
from heat_hf.integrations.exporting import ExportedModel
from heat_hf.integrations.onnx import OnnxModel
from heat_hf.integrations.openvino import OpenVinoModel

EXPORTED: dict[str, type[ExportedModel]] = {"onnxruntime": OnnxModel, "openvino": OpenVinoModel}


def exported_kind(runtime: str) -> type[ExportedModel]:
    """What models become for a runtime.

    Raises:
        ValueError: if there is no such runtime; the message lists what there is.
    """
    if runtime not in EXPORTED:
        raise ValueError(f"--runtime must be one of {', '.join(EXPORTED)}, got {runtime!r}")
    return EXPORTED[runtime]


def open_exported(runtime: str, precision: str, folder: str | os.PathLike[str], threads: int | None) -> ExportedModel:
    """A runtime's model, to run in a precision; what is not int8 in bfloat16 where the runtime does so by itself.

    Args:
        runtime: a name of `EXPORTED`.
        precision: one of the runtime's; int8 must be what was exported.
        folder: where `export_model` wrote.
        threads: see `ExportedModel`.
    """
    kind = EXPORTED[runtime]
    return kind(folder, threads, kind.has_bfloat16 and in_bfloat16(precision)).eval()


def load_exported(folder: str | os.PathLike[str], threads: int | None = None) -> ExportedModel | None:
    """The exported model of a folder, by what lies in it; None if there is none.

    Args:
        folder: where `export_model` wrote.
        threads: see `ExportedModel`.
    """
    kinds = (kind for kind in EXPORTED.values() if (Path(folder) / kind.file).is_file())
    return next((kind(folder, threads) for kind in kinds), None)
