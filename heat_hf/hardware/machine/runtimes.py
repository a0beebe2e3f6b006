"""What runs layers on this machine: PyTorch, and others that models are exported for, a class each and a line in `RUNTIMES`."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from heat_hf.hardware.spec import CPU

if TYPE_CHECKING:
    from torch import Tensor

    from heat_hf.hardware.machine.layers import Subject

Call = Callable[[], object]
PRECISIONS = ("float32", "bfloat16", "int8")


class Runtime(ABC):
    """A way to run layers.

    Attributes:
        name: by which users ask for it.
        package: that has to be installed.
        extra: of this package, that installs it; empty where it comes with it.
        quantizer: package that int8 needs beside it; empty where that needs none.
        precisions: that it runs in.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str] = ""
    quantizer: ClassVar[str] = ""
    precisions: ClassVar[tuple[str, ...]] = ("float32",)

    def version(self, precision: str) -> str:
        """Of the package, and in int8 of what quantizes.

        Raises:
            ImportError: if one of them is not installed.
        """
        packages = (self.package, self.quantizer) if precision == "int8" and self.quantizer else (self.package,)
        return ", ".join(map(self._version, packages))

    def _version(self, package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError as error:
            raise ImportError(f"runtime={self.name!r} needs {package}: pip install 'heat-hf[{self.extra}]'") from error

    @abstractmethod
    def call(self, subject: Subject, tokens: int, precision: str, threads: int) -> Call:
        """What runs as many layers as `layers.copies` says, one after the other, and returns when all are done."""


class Torch(Runtime):
    """PyTorch, uncompiled, without gradients."""

    name = "torch"
    package = "torch"
    precisions = ("float32", "bfloat16")

    def call(self, subject: Subject, tokens: int, precision: str, threads: int) -> Call:
        """The layers as they are."""
        import torch

        from heat_hf.hardware.machine.layers import Stack

        dtype = getattr(torch, precision)
        stack = Stack(subject, tokens).to(dtype)
        rows = [x.to(dtype) for x in stack.inputs]

        def run() -> None:
            with torch.inference_mode(), torch_threads(threads):
                stack(*rows)

        return run


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Searches set PyTorch's threads to one where results would depend on them; times are those of the user's threads."""
    import torch

    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU, as `heat-hf export` writes for it."""

    name = "onnxruntime"
    package = "onnxruntime"
    extra = "onnx"
    precisions = ("float32", "int8")

    def call(self, subject: Subject, tokens: int, precision: str, threads: int) -> Call:
        """The layers as one graph, its inputs and outputs in memory that is there already."""
        from heat_hf.hardware.machine.graphs import onnx_stack
        from heat_hf.hardware.machine.layers import inputs

        session = onnx_session(onnx_stack(subject, tokens, precision == "int8"), threads)
        binding, arrays = session.io_binding(), [x.numpy() for x in inputs(subject, tokens)]
        for wanted, array in zip(session.get_inputs(), arrays, strict=True):
            binding.bind_cpu_input(wanted.name, array)
        for output in session.get_outputs():
            binding.bind_output(output.name)

        def run(_held: object = arrays) -> None:  # the session reads their memory
            session.run_with_iobinding(binding)

        return run


class OpenVino(Runtime):
    """OpenVINO on the CPU, for one request at a time; it reads what `heat-hf export` writes."""

    name = "openvino"
    package = "openvino"
    extra = "openvino"
    quantizer = "nncf"
    precisions = PRECISIONS

    def call(self, subject: Subject, tokens: int, precision: str, threads: int) -> Call:
        """The layers as one graph, its inputs in memory that is there already; in int8 by the ranges of these inputs."""
        from heat_hf.hardware.machine.graphs import openvino_stack
        from heat_hf.hardware.machine.layers import inputs

        half = in_bfloat16(precision)
        stack = openvino_stack(subject, tokens, precision == "int8", half)
        request = openvino_compiled(stack, threads, half).create_infer_request()
        for number, x in enumerate(inputs(subject, tokens)):
            request.set_input_tensor(number, openvino_tensor(x, half))
        return request.infer  # type: ignore[no-any-return]


def openvino_tensor(x: Tensor, bfloat16: bool) -> Any:  # noqa: ANN401
    """A copy; numpy has no bfloat16."""
    import openvino
    import torch

    if not bfloat16:
        return openvino.Tensor(x.numpy())
    tensor = openvino.Tensor(openvino.Type.bf16, list(x.shape))
    tensor.data.view("int16")[:] = x.bfloat16().view(torch.int16).numpy()
    return tensor


def onnx_session(model: Path | bytes, threads: int | None) -> Any:  # noqa: ANN401
    """A session of ONNX Runtime on the CPU; with a number of threads, these sleep between its runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
        # Sessions that wait for work without sleeping would disturb the one that has its turn.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_compiled(model: Any, threads: int | None, bfloat16: bool = False) -> Any:  # noqa: ANN401
    """A model or its file, compiled by OpenVINO for one request at a time on the CPU; bfloat16 is for what is not int8."""
    import openvino

    hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32"}
    if threads is not None:
        hints["INFERENCE_NUM_THREADS"] = threads
    return openvino.Core().compile_model(model, "CPU", hints)


def has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16; without them it takes longer than float32."""
    import torch

    return any(found for name, found in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def require_instructions(precision: str) -> None:
    """Raise ValueError if the CPU has no instructions for a precision."""
    if precision == "bfloat16" and not has_bfloat16():
        raise ValueError("precision='bfloat16' needs a CPU with instructions for it: this one has none, use 'float32'")


def in_bfloat16(precision: str) -> bool:
    """Whether OpenVINO computes in bfloat16 what is not int8: where that is asked for, and with int8 where the CPU can."""
    return precision == "bfloat16" or (precision == "int8" and has_bfloat16())


RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (Torch(), OnnxRuntime(), OpenVino())}


def check_runtime(accelerator: object, runtime: str, precision: str) -> None:
    """Raise ValueError if there is no such runtime, or one is asked for where nothing runs."""
    get_runtime(runtime, precision)
    for name, value, default in (("runtime", runtime, "torch"), ("precision", precision, "float32")):
        if accelerator != CPU and value != default:
            raise ValueError(f"{name}={value!r} needs accelerator={CPU!r}, got {str(accelerator)[:80]!r}")


def get_runtime(name: str, precision: str = "float32") -> Runtime:
    """The runtime registered under `name`.

    Raises:
        ValueError: if there is none, or it does not run in the precision; the message lists what there is.
    """
    if name not in RUNTIMES:
        raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, got {name!r}")
    runtime = RUNTIMES[name]
    if precision not in runtime.precisions:
        raise ValueError(f"precision must be {' or '.join(runtime.precisions)} with runtime={name!r}, got {precision!r}")
    return runtime
