"""OpenVINO: a model as a file that OpenVINO runs, in float32, or in int8 that was calibrated with rows of text."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heat_hf.encoders.checkpoints.sentence_encoder import SentenceEncoder
from heat_hf.hardware.machine.graphs import openvino_quantized
from heat_hf.hardware.machine.runtimes import openvino_compiled
from heat_hf.integrations.exporting import Arrays, ExportedModel, export_model, fed

if TYPE_CHECKING:
    from heat_hf.encoders.batches import Batch


class OpenVinoModel(ExportedModel):
    """An exported model in OpenVINO, called like the model it was exported from; on the CPU, and not trainable.

    It computes in float32 unless bfloat16 is asked for, which OpenVINO itself takes wherever the CPU has it.

    Attributes:
        config: of the model.
        device: the CPU.
    """

    title = "OpenVINO"
    file = "openvino/openvino_model.xml"
    packages = ("onnx", "onnxscript", "openvino")
    extra = "openvino"
    quantizers = ("nncf",)
    calibrated = True
    has_bfloat16 = True

    @staticmethod
    def write(graph: Path, path: Path) -> None:
        """Convert the graph, with weights in float32."""
        import openvino

        # Not by convert_model, which reads the same graph, but sends statistics of it from a forked process.
        openvino.save_model(openvino.Core().read_model(str(graph)), str(path), compress_to_fp16=False)

    @staticmethod
    def quantize(path: Path, calibration: Sequence[Batch], scratch: Path) -> None:
        """Weights per channel, and activations by the ranges that they have on the rows (static)."""
        import openvino

        model = openvino.Core().read_model(str(path))
        names = [wanted.any_name for wanted in model.inputs]
        small = openvino_quantized(model, [fed(batch, names) for batch in calibration], sys.stderr)
        openvino.save_model(small, str(scratch / path.name), compress_to_fp16=False)
        for file in (path, path.with_suffix(".bin")):  # not written in place: the weights are read from there
            (scratch / file.name).replace(file)

    def _open(self, path: Path, threads: int | None, bfloat16: bool) -> None:
        compiled = openvino_compiled(str(path), threads, bfloat16)
        self.request = compiled.create_infer_request()
        self.inputs = [wanted.any_name for wanted in compiled.inputs]
        self._outputs = [output.any_name for output in compiled.outputs]

    def _run(self, feed: Arrays) -> Arrays:
        found = self.request.infer(dict(feed), share_inputs=True)
        return {name: found[number] for number, name in enumerate(self._outputs)}


def export_openvino(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    folder: str | os.PathLike[str],
    int8: bool = False,
    overwrite: bool = False,
    encoder: SentenceEncoder | None = None,
    calibration: Sequence[Batch] = (),
) -> Path:
    """Write `openvino/openvino_model.xml` and `.bin`, checked in OpenVINO against the model itself; see `export_onnx`.

    Args:
        model: a compressed or dense model.
        tokenizer: says which inputs the model takes.
        folder: where.
        int8: quantize weights per channel, and activations by the ranges that they have on the calibration rows (static). The
            float32 model is what is checked: int8 changes the outputs on purpose.
        overwrite: whether to replace a non-empty folder.
        encoder: what sentence-transformers has beside the Transformer; default: what is where the model was loaded from.
        calibration: model inputs, some hundred rows in batches, for int8.

    Returns:
        The XML file.

    Raises:
        ImportError: if the packages of the extra "openvino" are not installed.
        OSError: if the folder cannot be written.
        ValueError: as `export_onnx`; or if int8 is asked for without rows.
    """
    return export_model(OpenVinoModel, model, tokenizer, folder, int8, overwrite, encoder, calibration)
