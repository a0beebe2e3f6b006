"""How well the machine at hand is known as a cost model: layers that were not measured, and whole models.

python -m benchmarks.machine --model FOLDER --output FILE
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from scipy.stats import spearmanr

import heat_hf  # noqa: F401
from benchmarks.provenance import provenance
from heat_hf.compression.config import HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.compression.job import Job
from heat_hf.encoders.linears import encoder_linears
from heat_hf.formats import TensorShape, get_format
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.machine import MachineModel
from heat_hf.hardware.machine.curve import UNIT
from heat_hf.hardware.machine.layers import copies
from heat_hf.hardware.machine.measuring import measure
from heat_hf.hardware.machine.model import ANCHOR
from heat_hf.hardware.machine.race import race
from heat_hf.hardware.machine.runtimes import RUNTIMES
from heat_hf.integrations.exported import EXPORTED, open_exported
from heat_hf.integrations.exporting import written
from heat_hf.integrations.precision import in_precision
from heat_hf.search.ranks.space import Settings
from recipes.evidence import write_json

SIZES = ((8, 128), (1, 32))
FORMATS = ("low_rank", "pivoted", "fewer_outputs", "shared_basis")
HELD_OUT = 6  # layers of each size and format, two of them of ranks that are no multiples of the vector width
REPEATS = 11  # of whole models
AGAIN = 10  # that the anchor runs in a turn
ROWS = ("A few rows of text", "give activations their ranges.", "Most are longer than this one, or than those before it.")


def runs(only: Container[str] | None = None) -> Iterator[tuple[str, str]]:
    """Runtimes that are installed, each in the precisions that the CPU has; of these some, as "openvino int8"."""
    for name, runtime in RUNTIMES.items():
        for precision in runtime.precisions:
            with contextlib.suppress(ImportError, ValueError):
                runtime.require_instructions(precision)
                runtime.version(precision)
                if only is None or f"{name} {precision}" in only:
                    yield name, precision


def held_out(format: str, size: MatrixSize, rng: random.Random) -> list[TensorSetting]:
    """Settings between the smallest and as many parameters as the matrix has, drawn at random."""
    shape = TensorShape.matrix(*size)
    largest = get_format(format).largest_rank(shape, size.elements)[0]
    even = rng.sample(range(UNIT, largest + 1, UNIT), HELD_OUT - 2)
    ragged = rng.sample([rank for rank in range(UNIT, largest) if rank % UNIT], 2)
    return [TensorSetting(format, shape, (rank,)) for rank in (*even, *ragged)]


def layers(model: MachineModel, runtime: str, precision: str, tokens: int, sizes: Sequence[MatrixSize]) -> list[dict[str, Any]]:
    """Predicted and measured times of layers that the model has not measured, beside the dense layer of the same race."""
    rng, rows = random.Random(0), []
    for size in sizes:
        for format in FORMATS:
            settings = held_out(format, size, rng)
            for setting in settings:
                model.share(setting, tokens)
            dense, *timings = measure([(one, tokens) for one in (size, *settings)], runtime, precision, model.threads)
            rows += [
                {
                    "setting": f"{format} {size} {setting.rank[0]}",
                    "predicted": model.share(setting, tokens),
                    "measured": timing.median / dense.median,
                    "predicted_seconds": model.share(setting, tokens) * model.linear(size, tokens).seconds,
                    "measured_seconds": timing.median,
                }
                for setting, timing in zip(settings, timings, strict=True)
            ]
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Errors and rank correlation of predictions: of times as fractions of the dense layer's, and of seconds."""
    found: dict[str, Any] = {"layers": len(rows)}
    for what, unit in (("share", ""), ("seconds", "_seconds")):
        pairs = [(row[f"predicted{unit}"], row[f"measured{unit}"]) for row in rows]
        errors = [abs(predicted / measured - 1) for predicted, measured in pairs]
        found[what] = {
            "median_error": statistics.median(errors),
            "largest_error": max(errors),
            "spearman": float(spearmanr(*zip(*pairs, strict=True)).statistic),
        }
    even = [row for row in rows if int(row["setting"].split()[-1]) % UNIT == 0]
    found["even_median_error"] = statistics.median(abs(row["predicted"] / row["measured"] - 1) for row in even)
    return found


def variants(folder: str, cache: Path) -> dict[str, tuple[Any, dict[str, TensorSetting | None]]]:
    """The dense model and three factorized ones, with what their matrices got."""
    dense = transformers.AutoModel.from_pretrained(folder).eval()
    found: dict[str, tuple[Any, dict[str, TensorSetting | None]]] = {"dense": (dense, dict.fromkeys(encoder_linears(dense)))}
    ids = torch.randint(1000, 20000, (64, 32), generator=torch.Generator().manual_seed(0))
    requests = {
        "low rank, a third of the parameters": HeatConfig(target_params_ratio=1 / 3, accelerator=None),
        "pivoted, half of the parameters": HeatConfig(target_params_ratio=0.5, decomposition="pivoted", accelerator=None),
        "searched, half of the time in PyTorch": HeatConfig(
            target_latency_ratio=0.5, rank_search="sensitivity", widths=True, groups=True, refine_steps=0, batch_size=8
        ),
    }
    for name, config in requests.items():
        model = copy.deepcopy(dense)
        searched = config.method.needs_calibration
        batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}] if searched else None
        report = factorize(model, config, batches, cost_model=MachineModel(cache=cache) if searched else None)
        found[name] = model.eval(), {tensor.name: tensor.setting for tensor in report.tensors}
    return found


def predicted(costs: MachineModel, dense: Any, settings: Settings, batch: int, length: int) -> float:
    """Seconds of all matrices, and of what is between them."""
    config = HeatConfig(rank=1, accelerator=None, batch_size=batch, sequence_length=length)
    model, total = Job(dense, config, given_cost_model=costs).costs, 0.0
    for name, setting in settings.items():
        share = 1.0 if setting is None else costs.share(setting, model.tokens)  # also of what gains nothing
        before = model.between(name, setting)
        total += share * costs.linear(model.matrices[name].size, model.tokens).seconds + (before.seconds if before else 0.0)
    return total


def exported(
    models: Mapping[str, Any], folder: Path, tokenizer: Any, only: Container[str] | None = None
) -> dict[str, dict[str, Any]]:
    """The same models in each runtime and precision; times do not hang on what the rows of int8 say."""
    rows = [dict(tokenizer(text, return_tensors="pt")) for text in ROWS]
    found: dict[str, dict[str, Any]] = {f"{runtime} {precision}": {} for runtime, precision in runs(only)}
    for number, (name, model) in enumerate(models.items()):
        with written(model, tokenizer) as graph:
            for runtime, precision in runs(only):
                own: Any = in_precision(model, precision)
                if runtime in EXPORTED:
                    target = folder / f"{number}-{runtime}-{precision}"
                    graph.place(EXPORTED[runtime], target, precision == "int8", rows)
                    own = open_exported(runtime, precision, target, torch.get_num_threads())
                found[f"{runtime} {precision}"][name] = own
    return found


def again(call: Callable[[], object]) -> None:
    """Several times: after a whole model's turn, the first of so short calls takes longer than in a race of layers."""
    for _ in range(AGAIN):
        call()


def whole_models(
    costs: MachineModel, models: Mapping[str, Any], made: Mapping[str, Any], runtime: str, precision: str
) -> list[dict[str, Any]]:
    """Predicted and measured times of whole models; what is not a matrix takes what the dense model's measured time leaves."""
    rows = []
    for batch, length in SIZES:
        ids = torch.randint(1000, 20000, (batch, length), generator=torch.Generator().manual_seed(0))
        calls: dict[str, Any] = {name: partial(model, ids, torch.ones_like(ids)) for name, model in models.items()}
        calls["anchor"] = partial(again, RUNTIMES[runtime].call(*ANCHOR, precision, costs.threads))
        with torch.inference_mode():
            times = {name: statistics.median(values) for name, values in race(calls, REPEATS).items()}
        now = times.pop("anchor") / AGAIN / copies(*ANCHOR) / costs.anchor
        dense = made["dense"][0]
        linears = {name: now * predicted(costs, dense, made[name][1], batch, length) for name in models}
        rest = times["dense"] - linears["dense"]
        rows += [
            {
                "model": name,
                "tokens": f"{batch} × {length}",
                "predicted_seconds": rest + linears[name],
                "measured_seconds": times[name],
                "linears": linears[name] / (rest + linears[name]),
                "error": (rest + linears[name]) / times[name] - 1,
            }
            for name in models
        ]
    return rows


def rounded(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with four digits."""
    return [{key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--cache", type=Path, help="measurements of an earlier run (default: measure anew)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/machine.json"))
    parser.add_argument("--only", nargs="+", metavar="WAY", help='as "openvino int8"; others stay as they are in the output')
    args = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    found: dict[str, Any] = json.loads(args.output.read_text())["runtimes"] if args.only and args.output.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        cache = args.cache or Path(scratch) / "cache"
        made = variants(args.model, cache)
        sizes = list(dict.fromkeys(map(MatrixSize.of, encoder_linears(made["dense"][0]).values())))
        models = exported({name: model for name, (model, _) in made.items()}, Path(scratch), tokenizer, args.only)
        for runtime, precision in runs(args.only):
            costs, name = MachineModel(runtime, precision, cache), f"{runtime} {precision}"
            own: dict[str, Any] = {"device": costs.fingerprint["device"], "held_out": {}}
            for batch, length in SIZES:
                rows = layers(costs, runtime, precision, batch * length, sizes)
                own["held_out"][f"{batch} × {length}"] = summary(rows) | {"rows": rounded(rows)}
            own["models"] = rounded(whole_models(costs, models[name], made, runtime, precision))
            found[name] = own
            print(name, {k: {n: v for n, v in s.items() if n != "rows"} for k, s in own["held_out"].items()}, flush=True)
            print(*own["models"], sep="\n", flush=True)
    packages = dict.fromkeys(RUNTIMES[runtime].package for runtime, _ in runs())
    command = "python -m benchmarks.machine --model FOLDER --output FILE"
    about = {**provenance(command, *packages), "threads": torch.get_num_threads()}
    write_json(args.output, {**about, "runtimes": found})


if __name__ == "__main__":
    main()
