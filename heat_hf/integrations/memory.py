"""Peak memory of a model in a runtime: what it adds to a process that has only imported what runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from heat_hf.reports.bench import Pass

PROCESS = Path("/proc/self")
PEAK, NOW = "VmHWM", "VmRSS"  # lines of Linux's status of a process


def peak_memory(runtime: str, precision: str, folder: Path, passes: Sequence[Pass]) -> int | None:
    """Bytes that loading a model and forward passes take at most, with as many threads as any may use, in a process of its own.

    Args:
        runtime: a name of `RUNTIMES`.
        precision: one of `PRECISIONS`.
        folder: an exported model's; for PyTorch, of the model itself.
        passes: to make.

    Returns:
        None where the system does not say: on others than Linux, or if the model cannot be loaded from the folder alone.
    """
    if not (PROCESS / "clear_refs").exists():
        return None
    threads = max(one.threads for one in passes)
    line = [runtime, precision, str(folder), str(threads)]
    line += [str(number) for one in passes for number in (one.batch_size, one.sequence_length)]
    done = subprocess.run([sys.executable, "-m", __name__, *line], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def _status(line: str) -> int:
    (found,) = (own for own in (PROCESS / "status").read_text().splitlines() if own.startswith(line))
    return int(found.split()[1]) * 1024


def _loader(runtime: str, precision: str, folder: str, threads: int) -> Callable[[], Any]:
    """What loads the model; all that it imports is imported now."""
    import torch
    from transformers import AutoConfig

    import heat_hf  # noqa: F401
    from heat_hf.encoders.linears import model_class_of
    from heat_hf.integrations.exported import EXPORTED, open_exported
    from heat_hf.integrations.precision import in_precision

    torch.set_num_threads(threads)
    if runtime in EXPORTED:
        EXPORTED[runtime].require_packages()
        return lambda: open_exported(runtime, precision, folder, threads)
    own = model_class_of(AutoConfig.from_pretrained(folder))
    if precision == "bfloat16":  # as one would load it, without the copy in float32 that a bench has anyway
        return lambda: own.from_pretrained(folder, dtype=torch.bfloat16)
    return lambda: in_precision(own.from_pretrained(folder), precision)


def main() -> None:
    """What runs in the process of its own: prints a number."""
    import torch

    runtime, precision, folder, threads, *numbers = sys.argv[1:]
    load = _loader(runtime, precision, folder, int(threads))
    inputs = [torch.ones(int(a), int(b), dtype=torch.long) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
    before = _status(NOW)
    (PROCESS / "clear_refs").write_text("5")  # the peak so far is forgotten
    model = load()
    with torch.inference_mode():
        for ids in inputs:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    print(_status(PEAK) - before)


if __name__ == "__main__":
    main()
