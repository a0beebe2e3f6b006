"""ONNX: a compressed model as a file that ONNX Runtime runs, in float32 or with its weights in int8."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heat_hf.encoders.checkpoints.sentence_encoder import SentenceEncoder, encoder_of
from heat_hf.encoders.checkpoints.storage import atomic_directory, temporary_directory
from heat_hf.hardware.machine.graphs import export, quantize

logger = logging.getLogger(__name__)
MODEL_NAME = "onnx/model.onnx"  # where the ONNX back-ends of sentence-transformers and Optimum look
TOLERANCE = 1e-4  # of the largest output; weights of half precision are computed with in float32
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")
EXAMPLES = ["A sentence to export with.", "And another one, which has a few more words."]


class _Outputs(nn.Module):
    """Tensors in, a tuple of tensors out, as exporters want it."""

    def __init__(self, model: Any, names: tuple[str, ...], outputs: tuple[str, ...]) -> None:  # noqa: ANN401
        super().__init__()
        self.model = model
        self.names = names
        self.outputs = outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        results = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(results[name] for name in self.outputs)


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
        ValueError: if the model has none of the outputs `OUTPUTS`, cannot be written as ONNX, or ONNX Runtime does not compute
            what the model does.
    """
    _require_packages()
    model = _single_precision(model).eval()
    names = tuple(name for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokenizer.model_input_names)
    inputs = tokenizer(EXAMPLES, padding=True, return_tensors="pt").to(model.device)
    with torch.no_grad():
        outputs = tuple(name for name in OUTPUTS if name in model(**inputs))
    if not outputs:
        raise ValueError(f"{type(model).__name__} has none of the outputs {', '.join(OUTPUTS)}")
    with atomic_directory(folder, overwrite) as scratch:
        path = scratch / MODEL_NAME
        path.parent.mkdir()
        _write(_Outputs(model, names, outputs).eval(), tuple(inputs[name] for name in names), path, outputs)
        config = copy.deepcopy(model.config)
        for name in ("quantization_config", "transformers_weights"):  # of the weights that are not here
            config.__dict__.pop(name, None)
        config.save_pretrained(scratch)
        for name, content in (encoder_of(model) if encoder is None else encoder).files.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(content)
        tokenizer.save_pretrained(scratch)
        _check(path, tokenizer, model, outputs)
        if int8:
            _quantize(path)
    return Path(folder) / MODEL_NAME


def _single_precision(model: Any) -> Any:  # noqa: ANN401
    """The model itself, or its copy in float32."""
    if model.dtype not in (torch.float16, torch.bfloat16):
        return model
    logger.warning("the model's %s becomes float32: ONNX Runtime has no kernels for it on most CPUs", model.dtype)
    single = copy.deepcopy(model)
    for tensor in (*single.parameters(), *single.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    single.config.dtype = torch.float32
    return single


class OnnxModel(nn.Module):
    """An exported model in ONNX Runtime, called like the model it was exported from; on the CPU, and not trainable.

    Attributes:
        config: of the model.
        device: the CPU.
    """

    device = torch.device("cpu")

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Load what `export_onnx` wrote.

        Raises:
            ImportError: if the packages of the extra "onnx" are not installed.
            FileNotFoundError: if the folder has no model.onnx.
        """
        super().__init__()
        _require_packages()
        import onnxruntime
        from transformers import AutoConfig

        path = Path(folder) / MODEL_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {MODEL_NAME}: export a model there first")
        self.config = AutoConfig.from_pretrained(folder)
        self.config._name_or_path = str(folder)
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Any:  # noqa: ANN401
        """Outputs by name, as Transformers gives them; all tokens count without an `attention_mask`."""
        from transformers.utils.generic import ModelOutput

        given = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }
        feed = {wanted.name: given[wanted.name].numpy() for wanted in self.session.get_inputs()}
        names = [output.name for output in self.session.get_outputs()]
        return ModelOutput(zip(names, map(torch.from_numpy, self.session.run(names, feed)), strict=True))


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"exporting needs {error.name}: pip install 'heat-hf[onnx]'") from error


def _write(module: _Outputs, inputs: tuple[Tensor, ...], path: Path, outputs: tuple[str, ...]) -> None:
    rows, tokens = torch.export.Dim("rows"), torch.export.Dim("tokens")
    try:
        export(
            module,
            inputs,
            path,
            input_names=list(module.names),
            output_names=list(outputs),
            dynamic_shapes={"inputs": tuple({0: rows, 1: tokens} for _ in module.names)},
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"PyTorch cannot write {type(module.model).__name__} as ONNX: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first line of the error that an error is about."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check(path: Path, tokenizer: Any, model: Any, outputs: tuple[str, ...]) -> None:  # noqa: ANN401
    """Other numbers of rows and tokens than those of the export."""
    exported = OnnxModel(path.parents[1])
    for texts in (["One."], ["Three rows of text.", "They are of different lengths, and this is the longest.", "Yes."]):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            wanted = model(**inputs.to(model.device))
        results = exported(**inputs.to("cpu"))
        for name in outputs:
            apart = float((results[name] - wanted[name].cpu()).abs().max())
            if not apart <= TOLERANCE * max(1.0, float(wanted[name].abs().max())):
                raise ValueError(f"ONNX Runtime's {name} differs from the model's by {apart:.2g}; please report it")


def _quantize(path: Path) -> None:
    with temporary_directory() as scratch, _temporary_files_in(scratch):
        quantize(path, scratch)


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Other libraries' too: ONNX Runtime leaves copies of the model behind where it is killed."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
