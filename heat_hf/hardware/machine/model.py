"""The machine at hand as a cost model: measured, kept in a cache, between measured ranks interpolated."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from heat_hf.formats import SHARED
from heat_hf.formats.plan import ContractionPlan
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.shared import MEMBERS
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.between import Between
from heat_hf.hardware.cost import Cost, NoGainError
from heat_hf.hardware.disk import Disk
from heat_hf.hardware.gemm import Gemm
from heat_hf.hardware.machine.curve import UNIT, Curve
from heat_hf.hardware.machine.measuring import Measure, beside, device, measure_in
from heat_hf.hardware.machine.runtimes import get_runtime, require_instructions
from heat_hf.hardware.protocol import CostModel
from heat_hf.hardware.spec import CPU

logger = logging.getLogger(__name__)
T = TypeVar("T")
FILE = "machine-4.sqlite"  # the number changes with what is measured, and how
ANCHOR = MatrixSize(768, 768), 128  # the dense layer and its tokens that all others are timed beside
LEAST_GAIN = 0.03  # of the dense layer's time: less is not told from nothing


def cache_folder() -> Path:
    """Where measurements are kept by default: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "heat-hf"


class MachineModel(CostModel):
    """Times of layers on this machine, measured when first asked for and then kept.

    A race times a layer side by side with the dense one, and all dense layers side by side with one that never changes, so
    that times of a busy hour compare with those of a quiet one. What was measured in a runtime with so many threads is a
    series, which only grows: its first measurement is in the digest, so results of different series are never mixed.

    Energies are not known. What would run no faster than the dense layer is a misfit (`NoGainError`).

    Args:
        runtime: what runs the layers, a name of `heat_hf.hardware.machine.runtimes.RUNTIMES`.
        precision: "float32"; "bfloat16" with "torch" or "openvino"; or "int8" with "onnxruntime" or "openvino", as `heat-hf
            export --int8` writes it for them, with what is not int8 as OpenVINO does it: in bfloat16 where the CPU can.
        cache: folder in which measurements are kept for later runs; default: `cache_folder()`.
        threads: that a layer may use; default: PyTorch's number at this moment.
        measure: times layers; default: this machine does.

    Raises:
        ValueError: for a runtime or precision that is not known, or that the CPU has no instructions for.
        ImportError: if the runtime is not installed.
        OSError: if the cache cannot be used.
    """

    units = (UNIT,)

    def __init__(
        self,
        runtime: str = "torch",
        precision: str = "float32",
        cache: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        measure: Measure | None = None,
    ) -> None:
        how = get_runtime(runtime, precision)
        require_instructions(precision)
        version = how.version(precision)
        self.name = f"{CPU} ({runtime}{'' if precision == 'float32' else f' {precision}'})"
        self.threads = threads or _threads()
        about = {"runtime": runtime, "version": version, "precision": precision, "threads": self.threads}
        self.fingerprint: dict[str, Any] = device() | about
        self._measure = measure or measure_in(runtime, precision, self.threads)
        self._disk = Disk(Path(cache or cache_folder()) / FILE)
        self._known: dict[str, Any] = {}

    def __reduce__(self) -> NoReturn:
        """Two processes that measure at once disturb each other."""
        raise TypeError("it measures, and must be alone on the machine")

    @property
    def digest(self) -> str:  # type: ignore[override]
        """Of the fingerprint and the first measurement of the series, which no two series have in common."""
        text = json.dumps([self.fingerprint, self.anchor], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def gemm(self, gemm: Gemm) -> Cost:
        """Of a dense layer with these extents, and no faster in a batch."""
        return self.linear(MatrixSize(gemm.N, gemm.K), gemm.M) * gemm.batch

    def plan(self, plan: ContractionPlan) -> Cost:
        """The sum of its products; what a layer takes, `setting` knows better."""
        return Cost.total([self.gemm(Gemm(m, n, k, batch)) for batch, m, n, k in (step.gemm for step in plan.steps)])

    def linear(self, size: MatrixSize, tokens: int) -> Cost:
        """Of a dense layer."""
        return Cost(self.anchor * self._recall(f"dense {size} {tokens}", float, lambda: repr(self._beside(size, tokens))))

    def between(self, work: Between, units: int) -> Cost:
        """Of so many neurons or heads, by what some numbers of them take."""
        key = f"{work} {work.batch_size}x{work.sequence_length}"
        curve = self._recall(key, Curve.from_json, lambda: Curve.by_units(work, ANCHOR, self._measure).to_json())
        return Cost(self.anchor * curve.of_work(units))

    def execution(self, setting: TensorSetting, tokens: int) -> tuple[ContractionPlan, Cost]:
        """The plan by which the layer runs, and what it takes.

        Raises:
            NoGainError: if that is no less than the dense layer takes; of matrices on one basis, all together count.
        """
        share = self.share(setting, tokens)
        members = MEMBERS if setting.format in SHARED else (setting.format,)
        together = [TensorSetting(name, setting.shape, setting.rank, setting.execution) for name in members]
        mean = sum(self.share(one, tokens) for one in together) / len(together)
        if mean > 1 - LEAST_GAIN:
            raise NoGainError(
                f"{setting.format} {setting.shape} of rank {'×'.join(map(str, setting.rank))} takes {mean:.2f} of the dense "
                f"layer's time on {self.name}: leave it dense"
            )
        return setting.plan(tokens), Cost(self.linear(setting.size, tokens).seconds * share)

    def share(self, setting: TensorSetting, tokens: int) -> float:
        """A factorized layer's time as a fraction of the dense one's."""
        key = f"{setting.format} {setting.shape} {setting.execution} {tokens}"
        what = setting.format, setting.shape, setting.execution, tokens
        curve = self._recall(key, Curve.from_json, lambda: Curve.measured(*what, self._measure).to_json())
        return curve.of(setting, tokens)

    @property
    def anchor(self) -> float:
        """Seconds of the layer that all are timed beside."""
        return self._recall("anchor", float, lambda: repr(self._measure([ANCHOR])[0].median))

    def _beside(self, size: MatrixSize, tokens: int) -> float:
        """A dense layer's time over the anchor's of the same race."""
        return min(beside(ANCHOR, [(size, tokens)] * 2, self._measure)[0])

    def _recall(self, what: str, read: Callable[[str], T], find: Callable[[], str]) -> T:
        """From memory, from the cache, or measured now."""
        if what not in self._known:
            key = f"{json.dumps(self.fingerprint, sort_keys=True)} {what}"
            text = self._disk.get(key)
            if text is None:
                logger.info("measuring %s on %s", what, self.name)
                text = self._disk.keep(key, find())
            try:
                self._known[what] = read(text)
            except (KeyError, TypeError, ValueError) as error:
                raise OSError(f"{self._disk.path} is damaged at {what!r}: delete it, and layers are measured again") from error
        known: T = self._known[what]
        return known


def _threads() -> int:
    import torch

    return torch.get_num_threads()
