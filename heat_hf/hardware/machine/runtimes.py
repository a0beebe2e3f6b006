"""What runs layers on this machine: PyTorch, and others that models are exported for, a class each and a line in `RUNTIMES`."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, ClassVar

from heat_hf.hardware.protocol import CPU

if TYPE_CHECKING:
    from heat_hf.hardware.machine.layers import Subject

Call = Callable[[], object]


class Runtime(ABC):
    """A way to run layers.

    Attributes:
        name: by which users ask for it.
        package: that has to be installed.
        extra: of this package, that installs it; empty where it comes with it.
        precisions: that it runs in.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str] = ""
    precisions: ClassVar[tuple[str, ...]] = ("float32",)

    @property
    def version(self) -> str:
        """Of the package.

        Raises:
            ImportError: if it is not installed.
        """
        try:
            return version(self.package)
        except PackageNotFoundError as error:
            raise ImportError(f"runtime={self.name!r} needs {self.package}: pip install 'heat-hf[{self.extra}]'") from error

    @abstractmethod
    def call(self, subject: Subject, tokens: int, precision: str, threads: int) -> Call:
        """What runs as many layers as `layers.copies` says, one after the other, and returns when all are done."""


class Torch(Runtime):
    """PyTorch, uncompiled, without gradients."""

    name = "torch"
    package = "torch"

    def call(self, subject: Subject, tokens: int, precision: str, threads: int) -> Call:
        """The layers as they are."""
        import torch

        from heat_hf.hardware.machine.layers import Stack

        stack = Stack(subject, tokens)

        def run() -> None:
            with torch.inference_mode(), _threads(threads):
                for layer, x in zip(stack.layers, stack.inputs, strict=True):
                    layer(x)

        return run


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
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


PRECISIONS = ("float32", "int8")
RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (Torch(),)}


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
