"""ONNX: a model as a file that ONNX Runtime runs, in float32 or with its weights in int8."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heat_hf.encoders.checkpoints.sentence_encoder import SentenceEncoder
from heat_hf.hardware.machine.attention import of_three_axes
from heat_hf.hardware.machine.graphs import quantize
from heat_hf.hardware.machine.runtimes import onnx_session
from heat_hf.integrations.exporting import Arrays, ExportedModel, export_model

if TYPE_CHECKING:
    from heat_hf.encoders.batches import Batch


class OnnxModel(ExportedModel):
    """An exported model in ONNX Runtime, called like the model it was exported from; on the CPU, and not trainable.

    Attributes:
        config: of the model.
        device: the CPU.
    """

    title = "ONNX Runtime"
    file = "onnx/model.onnx"
    packages = ("onnx", "onnxruntime", "onnxscript")
    extra = "onnx"

    @staticmethod
    def write(graph: Path, path: Path) -> None:
        """Copy the file, with attention as ONNX Runtime likes it."""
        shutil.copyfile(graph, path)
        of_three_axes(path)

    @staticmethod
    def quantize(path: Path, calibration: Sequence[Batch], scratch: Path) -> None:  # noqa: ARG004
        """Per channel; activations are quantized as they come (dynamic)."""
        with _temporary_files_in(scratch):
            quantize(path, scratch)

    def _open(self, path: Path, threads: int | None, bfloat16: bool) -> None:
        self.session = onnx_session(path, threads)
        self.inputs = [wanted.name for wanted in self.session.get_inputs()]
        self._outputs = [output.name for output in self.session.get_outputs()]

    def _run(self, feed: Arrays) -> Arrays:
        return dict(zip(self._outputs, self.session.run(self._outputs, feed), strict=True))


def export_onnx(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    folder: str | os.PathLike[str],
    int8: bool = False,
    overwrite: bool = False,
    encoder: SentenceEncoder | None = None,
) -> Path:
    """Write `onnx/model.onnx`, for any number of rows and tokens, checked in ONNX Runtime against the model itself.

    Tokenizer and configuration are in the folder, and of a sentence encoder its other modules, as sentence-transformers and
    Optimum expect them; the folder appears only when the check has passed. A model of half precision is exported in float32.

    Args:
        model: a compressed or dense model.
        tokenizer: says which inputs the model takes.
        folder: where.
        int8: quantize the weights of all products, per channel; activations are quantized as they come (dynamic). The float32
            model is what is checked: int8 changes the outputs on purpose.
        overwrite: whether to replace a non-empty folder.
        encoder: what sentence-transformers has beside the Transformer; default: what is where the model was loaded from.

    Returns:
        The file.

    Raises:
        ImportError: if the packages of the extra "onnx" are not installed.
        OSError: if the folder cannot be written.
        ValueError: if the model has none of the outputs "logits", "start_logits", "end_logits", "last_hidden_state", cannot be
            written as ONNX, or ONNX Runtime does not compute what the model does.
    """
    return export_model(OnnxModel, model, tokenizer, folder, int8, overwrite, encoder)


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Other libraries' too: ONNX Runtime leaves copies of the model behind where it is killed."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
