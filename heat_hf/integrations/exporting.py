"""Exports: a dense or compressed model as a file that another runtime runs, checked there against the model itself."""

from __future__ import annotations

import copy
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from heat_hf.encoders.checkpoints.sentence_encoder import SentenceEncoder, encoder_of
from heat_hf.encoders.checkpoints.storage import atomic_directory, temporary_directory
from heat_hf.hardware.machine.graphs import export
from heat_hf.hardware.machine.runtimes import require_instructions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heat_hf.encoders.batches import Batch

logger = logging.getLogger(__name__)
TOLERANCE = 1e-4  # of the largest output; weights of half precision are computed with in float32
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")
EXAMPLES = ["A sentence to export with.", "And another one, which has a few more words."]

Arrays = Mapping[str, "NDArray[Any]"]


class ExportedModel(nn.Module, ABC):
    """An exported model in its runtime, called like the model it was exported from; on the CPU, and not trainable.

    Another runtime is a subclass, and a line in `heat_hf.integrations.exported.EXPORTED`.

    Attributes:
        title: the runtime's name in sentences.
        file: of the model in its folder, where the back-ends of sentence-transformers and Optimum look.
        packages: that exporting needs.
        extra: of this package, that installs them.
        quantizers: packages that int8 needs beside them.
        calibrated: whether int8 needs rows of text.
        has_bfloat16: whether it can compute in bfloat16.
        config: of the model.
        inputs: names of what it takes.
        device: the CPU.
    """

    title: ClassVar[str]
    file: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str]
    quantizers: ClassVar[tuple[str, ...]] = ()
    calibrated: ClassVar[bool] = False
    has_bfloat16: ClassVar[bool] = False
    inputs: Sequence[str]
    device = torch.device("cpu")

    def __init__(self, folder: str | os.PathLike[str], threads: int | None = None, bfloat16: bool = False) -> None:
        """Load what `export_model` wrote.

        Args:
            folder: where.
            threads: that a forward pass may use, and that sleep between passes; default: as the runtime does.
            bfloat16: compute in bfloat16 what is not int8.

        Raises:
            ImportError: if the packages of the runtime's extra are not installed.
            FileNotFoundError: if the folder has no such file.
            ValueError: for bfloat16, if the runtime or the CPU cannot compute in it.
        """
        super().__init__()
        self.require_packages()
        from transformers import AutoConfig

        if bfloat16 and not self.has_bfloat16:
            raise ValueError(f"bfloat16=True: {self.title} does not compute in it on CPUs")
        if bfloat16:
            require_instructions("bfloat16")
        path = Path(folder) / self.file
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {self.file}: export a model there first")
        self.config = AutoConfig.from_pretrained(folder)
        self.config._name_or_path = str(folder)
        self._open(path, threads, bfloat16)

    @classmethod
    def require_packages(cls, *more: str) -> None:
        """Raise ImportError if a package that exporting needs is not installed."""
        for package in (*cls.packages, *more):
            try:
                import_module(package)
            except ImportError as error:
                raise ImportError(f"exporting needs {package}: pip install 'heat-hf[{cls.extra}]'") from error

    @staticmethod
    @abstractmethod
    def write(graph: Path, path: Path) -> None:
        """Write the model at `path`, from a graph of ONNX in float32."""

    @staticmethod
    @abstractmethod
    def quantize(path: Path, calibration: Sequence[Batch], scratch: Path) -> None:
        """Weights of all products in int8, in the place of the float32 model.

        Args:
            path: of the model.
            calibration: model inputs, if `calibrated`.
            scratch: folder for copies.
        """

    @abstractmethod
    def _open(self, path: Path, threads: int | None, bfloat16: bool) -> None:
        """Load the file, and set `inputs`."""

    @abstractmethod
    def _run(self, feed: Arrays) -> Arrays:
        """Outputs by name."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Any:  # noqa: ANN401
        """Outputs by name, as Transformers gives them; all tokens count without an `attention_mask`."""
        from transformers.utils.generic import ModelOutput

        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        found = self._run(fed({name: value for name, value in given.items() if value is not None}, self.inputs))
        return ModelOutput((name, torch.from_numpy(value)) for name, value in found.items())


def fed(batch: Batch, inputs: Sequence[str]) -> Arrays:
    """What a graph of these inputs takes; without an attention mask all tokens count, without types all are the first."""
    ids = batch["input_ids"]
    given = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids), **batch}
    return {name: given[name].numpy() for name in inputs}


def export_model(
    kind: type[ExportedModel],
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    folder: str | os.PathLike[str],
    int8: bool = False,
    overwrite: bool = False,
    encoder: SentenceEncoder | None = None,
    calibration: Sequence[Batch] = (),
) -> Path:
    """Write a model for a runtime, for any number of rows and tokens, checked there against the model itself.

    Tokenizer and configuration are in the folder, and of a sentence encoder its other modules, as sentence-transformers and
    Optimum expect them; the folder appears only when the check has passed. A model of half precision is exported in float32.

    Args:
        kind: the runtime's.
        model: a compressed or dense model.
        tokenizer: says which inputs the model takes.
        folder: where.
        int8: quantize the weights of all products. The float32 model is what is checked: int8 changes the outputs on purpose.
        overwrite: whether to replace a non-empty folder.
        encoder: what sentence-transformers has beside the Transformer; default: what is where the model was loaded from.
        calibration: model inputs, for int8 where the runtime needs them.

    Returns:
        The file.

    Raises:
        ImportError: if the packages of the runtime's extra are not installed.
        OSError: if the folder cannot be written.
        ValueError: if the model has none of the outputs `OUTPUTS`, cannot be written as ONNX, or the runtime does not compute
            what the model does; or int8 needs rows that are not there.
    """
    require_exportable(kind, int8, bool(calibration))
    with atomic_directory(folder, overwrite) as scratch, written(model, tokenizer, encoder) as graph:
        graph.place(kind, scratch, int8, calibration)
    return Path(folder) / kind.file


def require_exportable(kind: type[ExportedModel], int8: bool, calibration: bool) -> None:
    """Raise ImportError or ValueError if an export cannot work, before anything is loaded."""
    kind.require_packages(*(kind.quantizers if int8 else ()))
    if int8 and kind.calibrated and not calibration:
        raise ValueError(f"int8 for {kind.title} needs rows of text: --calibration-file FILE, or calibration in Python")


@dataclass(frozen=True)
class Written:
    """A model that was written as ONNX in float32, for any of the runtimes.

    Attributes:
        path: of the file.
        model: in single precision.
        tokenizer: the model's.
        outputs: names of what the file gives.
        encoder: what sentence-transformers has beside the Transformer.
    """

    path: Path
    model: Any
    tokenizer: Any
    outputs: tuple[str, ...]
    encoder: SentenceEncoder

    def place(self, kind: type[ExportedModel], folder: Path, int8: bool = False, calibration: Sequence[Batch] = ()) -> None:
        """Write the model for a runtime into an empty folder, with all that belongs beside it; see `export_model`."""
        path = folder / kind.file
        path.parent.mkdir(parents=True)
        kind.write(self.path, path)
        config = copy.deepcopy(self.model.config)
        for name in ("quantization_config", "transformers_weights"):  # of the weights that are not here
            config.__dict__.pop(name, None)
        config.save_pretrained(folder)
        for name, content in self.encoder.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        self.tokenizer.save_pretrained(folder)
        self._check(kind(folder))
        if int8:
            with temporary_directory() as scratch:
                kind.quantize(path, calibration, scratch)

    def _check(self, exported: ExportedModel) -> None:
        """Other numbers of rows and tokens than those of the export."""
        for texts in (["One."], ["Three rows of text.", "They are of different lengths, and this is the longest.", "Yes."]):
            inputs = self.tokenizer(texts, padding=True, return_tensors="pt")
            with torch.no_grad():
                wanted = self.model(**inputs.to(self.model.device))
            results = exported(**inputs.to("cpu"))
            for name in self.outputs:
                apart = float((results[name] - wanted[name].cpu()).abs().max())
                if not apart <= TOLERANCE * max(1.0, float(wanted[name].abs().max())):
                    raise ValueError(f"{exported.title}'s {name} differs from the model's by {apart:.2g}; please report it")


@contextmanager
def written(model: Any, tokenizer: Any, encoder: SentenceEncoder | None = None) -> Iterator[Written]:  # noqa: ANN401
    """A model as ONNX in a temporary folder; see `export_model`."""
    model = _single_precision(model).eval()
    names = tuple(name for name in INPUTS if name in tokenizer.model_input_names)
    inputs = tokenizer(EXAMPLES, padding=True, return_tensors="pt").to(model.device)
    with torch.no_grad():
        outputs = tuple(name for name in OUTPUTS if name in model(**inputs))
    if not outputs:
        raise ValueError(f"{type(model).__name__} has none of the outputs {', '.join(OUTPUTS)}")
    with temporary_directory() as folder:
        path = folder / "model.onnx"
        _write(_Outputs(model, names, outputs).eval(), tuple(inputs[name] for name in names), path)
        yield Written(path, model, tokenizer, outputs, encoder_of(model) if encoder is None else encoder)


def exported_bytes(kind: type[ExportedModel], folder: str | os.PathLike[str]) -> int:
    """Size of an exported model, of all its files."""
    return sum(file.stat().st_size for file in (Path(folder) / kind.file).parent.iterdir())


def _single_precision(model: Any) -> Any:  # noqa: ANN401
    """The model itself, or its copy in float32."""
    if model.dtype not in (torch.float16, torch.bfloat16):
        return model
    logger.warning("the model's %s becomes float32: runtimes have no kernels for it on most CPUs", model.dtype)
    single = copy.deepcopy(model)
    for tensor in (*single.parameters(), *single.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    single.config.dtype = torch.float32
    return single


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


def _write(module: _Outputs, inputs: tuple[Tensor, ...], path: Path) -> None:
    free = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    shapes = {"inputs": (free,) * len(inputs)}
    try:
        export(module, inputs, path, input_names=list(module.names), output_names=list(module.outputs), dynamic_shapes=shapes)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"PyTorch cannot write {type(module.model).__name__} as ONNX: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first line of the error that an error is about."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).splitlines()), type(error).__name__)
