"""Models in the runtimes that are installed, side by side: each made as users would make it, scored, and timed in one race."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from tqdm.auto import tqdm

from heat_hf.encoders.checkpoints.sentence_encoder import SentenceEncoder
from heat_hf.encoders.checkpoints.storage import temporary_directory
from heat_hf.hardware.machine.race import race
from heat_hf.hardware.machine.runtimes import PRECISIONS, RUNTIMES, get_runtime, has_bfloat16, torch_threads
from heat_hf.integrations.exported import EXPORTED, open_exported
from heat_hf.integrations.exporting import Written, exported_bytes, written
from heat_hf.integrations.memory import peak_memory
from heat_hf.integrations.precision import in_precision
from heat_hf.reports.bench import Entry, Pass, Time

if TYPE_CHECKING:
    from heat_hf.encoders.batches import Batch


class Way(NamedTuple):
    """How a model runs: a name of `RUNTIMES`, and one of `PRECISIONS`."""

    runtime: str
    precision: str


@dataclass(frozen=True)
class Loaded:
    """A model to be run.

    Attributes:
        model: of Transformers, in float32.
        tokenizer: the checkpoint's.
        encoder: what sentence-transformers has beside the Transformer.
        calibration: model inputs, for int8 in runtimes that need them.
    """

    model: Any
    tokenizer: Any
    encoder: SentenceEncoder
    calibration: Sequence[Batch] = ()


def ways(
    runtimes: Sequence[str] | None, precisions: Sequence[str] | None, calibration: bool = False
) -> tuple[list[Way], list[str]]:
    """How models are run, PyTorch in float32 first, and what is left out, with the reason.

    Args:
        runtimes: names; default: all that are installed.
        precisions: names; default: all that the CPU has instructions for.
        calibration: whether there are rows for int8 where a runtime needs them.

    Raises:
        ImportError: if a runtime is asked for that is not installed.
        ValueError: for an unknown name, or if nothing is left.
    """
    asked = _asked(runtimes, precisions)
    missing = {name: reason for name in dict.fromkeys(way.runtime for way in asked) if (reason := _missing(name))}
    if runtimes is not None and missing:
        raise ImportError(next(iter(missing.values())))
    reasons = {way: missing.get(way.runtime) or _impossible(way, calibration) for way in asked}
    left_out = list(dict.fromkeys(filter(None, reasons.values())))
    found = [way for way, reason in reasons.items() if not reason]
    if not found:
        raise ValueError(f"--runtimes and --precisions leave nothing to run: {'; '.join(left_out)}")
    return found, left_out


def _asked(runtimes: Sequence[str] | None, precisions: Sequence[str] | None) -> list[Way]:
    """In the order of the registries, each once."""
    for name in runtimes or ():
        get_runtime(name)
    unknown = next((name for name in precisions or () if name not in PRECISIONS), None)
    if unknown is not None:
        raise ValueError(f"--precisions must be of {', '.join(PRECISIONS)}, got {unknown!r}")
    names = [name for name in RUNTIMES if runtimes is None or name in runtimes]
    asked = [Way(name, own) for name in names for own in _precisions(name) if own in (precisions or PRECISIONS)]
    if not asked:
        raise ValueError(f"--precisions {' '.join(precisions or ())}: {', '.join(names)} does not run in it")
    return asked


def _precisions(runtime: str) -> tuple[str, ...]:
    """PyTorch has int8, too, though no layer is timed in it for searches."""
    return PRECISIONS if runtime == "torch" else RUNTIMES[runtime].precisions


def _missing(runtime: str) -> str:
    """Why a runtime cannot run, or nothing."""
    try:
        RUNTIMES[runtime].version("float32")
        if runtime in EXPORTED:
            EXPORTED[runtime].require_packages()
    except ImportError as error:
        return str(error)
    return ""


def _impossible(way: Way, calibration: bool) -> str:
    """Why a runtime does not run in a precision, or nothing."""
    if way.precision == "bfloat16":
        return "" if has_bfloat16() else "bfloat16: this CPU has no instructions for it"
    if way.precision != "int8":
        return ""
    if way.runtime == "torch":
        engines = torch.backends.quantized.supported_engines
        return "" if set(engines) - {"none"} else "torch int8: this build of PyTorch has no kernels for it"
    kind = EXPORTED[way.runtime]
    if kind.calibrated and not calibration:
        return f"{way.runtime} int8: needs --calibration-file"
    try:
        kind.require_packages(*kind.quantizers)
    except ImportError as error:
        return str(error)
    return ""


def bench(
    models: Mapping[str, Loaded],
    found: Sequence[Way],
    passes: Sequence[Pass],
    repeats: int,
    score: Callable[[Any, Any], float] | None = None,
    memory: bool = False,
) -> list[Entry]:
    """Make every model in every way in a temporary folder, score it, and time forward passes of all of them side by side.

    Args:
        models: by name.
        found: see `ways`.
        passes: to time; models are scored with the threads of the first.
        repeats: forward passes of each that count.
        score: of a model, called like one of Transformers, with its tokenizer.
        memory: whether to find out what memory each takes, in a process of its own.

    Returns:
        For every model every way; times are over the first one's.
    """
    threads = list(dict.fromkeys(one.threads for one in passes))
    with temporary_directory() as folder:
        made = _made(models, found, folder, threads, memory)
        with torch_threads(threads[0]):
            scores = {key: score(own.model, models[key[0]].tokenizer) for key, own in made.items()} if score else {}
        times = {one: _times([own.models[one.threads] for own in made.values()], one, repeats) for one in passes}
        places = tqdm(((way, runner.folder) for (_, way), runner in made.items()), "Memory", len(made), disable=not memory)
        peaks = [peak_memory(way.runtime, way.precision, place, passes) if memory else None for way, place in places]
    return [
        Entry(name, *way, runner.bytes, {one: times[one][number] for one in passes}, scores.get((name, way)), peak)
        for number, (((name, way), runner), peak) in enumerate(zip(made.items(), peaks, strict=True))
    ]


def _made(
    models: Mapping[str, Loaded], found: Sequence[Way], folder: Path, threads: Sequence[int], saved: bool
) -> dict[tuple[str, Way], Runner]:
    """Every model in every way; with `saved`, PyTorch's are in a folder, too."""
    made = {}
    for number, (name, loaded) in enumerate(tqdm(models.items(), desc="Exporting", unit="model")):
        for way, runner in runners(loaded, found, folder / str(number), threads):
            made[name, way] = runner
        if saved and any(way.runtime == "torch" for way in found):
            loaded.model.save_pretrained(folder / str(number) / "torch")
    return made


class Runner(NamedTuple):
    """A model made to run in one way.

    Attributes:
        models: number of threads → called like one of Transformers; PyTorch's is the same for all.
        bytes: of its weights on disk.
        folder: where it is; of PyTorch's, where it would be.
    """

    models: Mapping[int, Any]
    bytes: int
    folder: Path

    @property
    def model(self) -> Any:  # noqa: ANN401
        """With the first number of threads."""
        return next(iter(self.models.values()))


def runners(loaded: Loaded, found: Sequence[Way], folder: Path, threads: Sequence[int]) -> Iterator[tuple[Way, Runner]]:
    """A model in every way, with each number of threads; it is written as ONNX once."""
    with _graph(loaded, found) as graph:
        for way in found:
            if way.runtime == "torch":
                model = in_precision(loaded.model, way.precision).eval()
                yield way, Runner(dict.fromkeys(threads, model), _saved_bytes(model), folder / "torch")
            else:
                kind, place = EXPORTED[way.runtime], folder / "-".join(way)
                assert graph is not None
                graph.place(kind, place, way.precision == "int8", loaded.calibration)
                opened = {count: open_exported(*way, place, count) for count in threads}
                yield way, Runner(opened, exported_bytes(kind, place), place)


@contextmanager
def _graph(loaded: Loaded, found: Sequence[Way]) -> Iterator[Written | None]:
    if all(way.runtime == "torch" for way in found):
        yield None
        return
    with written(loaded.model, loaded.tokenizer, loaded.encoder) as graph:
        yield graph


def _saved_bytes(model: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def _times(models: Sequence[Any], one: Pass, repeats: int) -> list[Time]:
    vocabulary = min(model.config.vocab_size for model in models)
    extents = one.batch_size, one.sequence_length
    ids = torch.randint(vocabulary, extents, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    calls = {str(number): partial(model, **inputs) for number, model in enumerate(models)}
    with torch_threads(one.threads), torch.inference_mode():
        about = f"Timing {one.tokens}, threads: {one.threads}"
        seconds = race(calls, repeats, partial(tqdm, desc=about, unit="round"))
    return [_time(own, seconds["0"]) for own in seconds.values()]


def _time(own: Sequence[float], peer: Sequence[float]) -> Time:
    ratios = [one / other for one, other in zip(own, peer, strict=True)]
    lower, ratio, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return Time(statistics.median(own), lower, ratio, upper)
