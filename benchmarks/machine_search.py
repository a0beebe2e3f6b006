"""Whether a search for the machine at hand finds a faster network than one for simba-l, at equal predicted loss.

Both networks are timed whole, side by side with the dense model, in every runtime and precision, with random weights, on which
no time depends.

    python -m benchmarks.machine_search --model FOLDER --text FILE --output benchmarks/results/machine_search.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.machine import exported, rounded, runs
from benchmarks.provenance import provenance
from benchmarks.untrained import sentences
from heat_hf import HeatConfig, Statistics
from heat_hf.compression.job import Job
from heat_hf.encoders.batches import calibration_batches
from heat_hf.encoders.linears import encoder_linears, swap_modules
from heat_hf.formats.setting import TensorSetting
from heat_hf.hardware import CostModel, cost_model
from heat_hf.hardware.machine import MachineModel
from heat_hf.hardware.machine.layers import COPIED_TOKENS, Stack
from heat_hf.hardware.machine.measuring import device
from heat_hf.hardware.machine.race import race
from heat_hf.search.ranks.budgets import network_budgets
from heat_hf.search.ranks.methods import get_rank_search
from heat_hf.search.ranks.space import Settings
from recipes.evidence import write_json

BATCH, LENGTH = 8, 128
GAINS = (5.7, 10, 20)  # of EDP on simba-l
HALVINGS = 12  # of the range in which the time lies that a loss takes


class Search:
    """One search, asked several times."""

    def __init__(self, model: Any, costs: CostModel, target: str, statistics_: Statistics, batches: Any) -> None:
        config = HeatConfig(rank_search="sensitivity", widths=True, batch_size=BATCH, sequence_length=LENGTH, **{target: 0.5})  # type: ignore[arg-type]
        job = Job(model, config, batches, statistics_, costs)
        self.target, self.problem, self.method = target, job.problem, get_rank_search("sensitivity")

    def of(self, budget: float) -> tuple[Settings, float]:
        """Settings within a fraction of the dense network's figure, and their loss."""
        (limit,) = network_budgets(self.target, [budget], self.problem.costs)
        solution = self.method.solve(self.problem, limit)
        assert solution.loss is not None
        return solution.settings, solution.loss

    def fitting(self, settings: Settings) -> Settings:
        """The same with dense matrices where those are as fast here."""
        costs = self.problem.costs
        return {name: own and costs.or_dense(name, own) for name, own in settings.items()}

    def least(self, loss: float) -> tuple[Settings, float]:
        """The fastest settings that lose no more."""
        low, high, best = 0.0, 1.0 - 1e-9, None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            try:
                found = self.of(middle)
            except ValueError:  # cannot be reached
                low = middle
                continue
            if found[1] <= loss:
                high, best = middle, found
            else:
                low = middle
        assert best is not None
        return best


def found_in(path: Path, model: Any, text: Path, caches: Path, rows: int, only: Container[str] | None) -> dict[str, Any]:
    """What searches found, from the file where an earlier run left it."""
    if path.is_file():
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.config._name_or_path)
    batches = calibration_batches(sentences(text, "text", 0)[:rows], tokenizer)
    collected = Statistics.collect(model, encoder_linears(model), batches)
    chip = Search(model, cost_model("simba-l"), "target_edp_ratio", collected, batches)
    wanted = {f"{gain:g}": chip.of(1 / gain) for gain in GAINS}
    found: dict[str, Any] = {gain: {"simba-l": kept(*own)} for gain, own in wanted.items()}
    for runtime, precision in runs(only):
        here = Search(model, MachineModel(runtime, precision, caches), "target_latency_ratio", collected, batches)
        for gain, (settings, loss) in wanted.items():
            mine = here.least(loss)
            now, before = (here.problem.costs.total(own).seconds for own in (mine[0], here.fitting(settings)))
            assert now is not None and before is not None
            found[gain][f"{runtime} {precision}"] = kept(*mine) | {"predicted": now / before}
            print(gain, runtime, precision, "loss", mine[1], "of", loss, "predicted", now / before, flush=True)
    path.write_text(json.dumps(found))
    return found


def kept(settings: Settings, loss: float) -> dict[str, Any]:
    """What a search found, as JSON."""
    return {"loss": loss, "settings": {name: own and own.to_dict() for name, own in settings.items()}}


def shaped(model: Any, settings: Mapping[str, dict[str, Any] | None]) -> Any:
    """A copy of a model with layers of these settings, their weights random."""
    other, swapped = copy.deepcopy(model), {}
    for name, own in settings.items():
        if own is not None:
            (layer,) = Stack(TensorSetting.from_dict(own), COPIED_TOKENS).layers
            swapped[other.get_submodule(name)] = layer
    swap_modules(other, swapped)
    return other.eval()


def timed(
    found: Mapping[str, Any], model: Any, folder: Path, repeats: int, only: Container[str] | None
) -> list[dict[str, Any]]:
    """Whole networks side by side in every runtime and precision."""
    rows, tokenizer = [], transformers.AutoTokenizer.from_pretrained(model.config._name_or_path)
    ids = torch.randint(1000, 20000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    names = {"dense": model}
    for gain, of in found.items():
        names |= {f"{gain} {where}": shaped(model, own["settings"]) for where, own in of.items()}
    made = exported(names, folder, tokenizer, only)
    print("timing", flush=True)
    for way, models in made.items():
        chosen = {name: own for name, own in models.items() if name == "dense" or name.endswith((" simba-l", f" {way}"))}
        with torch.inference_mode():
            times = race({name: partial(own, ids, torch.ones_like(ids)) for name, own in chosen.items()}, repeats)
        for gain, of in found.items():
            chip, here = times[f"{gain} simba-l"], times[f"{gain} {way}"]
            of_dense = [[a / b for a, b in zip(own, times["dense"], strict=True)] for own in (chip, here)]
            rows.append({
                "runs in": way, "gain": gain, "loss": of[way]["loss"], "simba_loss": of["simba-l"]["loss"],
                "predicted": of[way]["predicted"],
                "measured": statistics.quantiles([a / b for a, b in zip(here, chip, strict=True)], n=4),
                "device": device()["device"],
                "of_dense": [statistics.median(ratios) for ratios in of_dense],
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True, help="file with a column of sentences, text")
    parser.add_argument("--rows", type=int, default=512, help="of it, for calibration")
    parser.add_argument("--cache", type=Path, help="measurements and searches of an earlier run (default: anew)")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/machine_search.json"))
    parser.add_argument("--only", nargs="+", metavar="WAY", help='as "openvino int8"; others stay as they are in the output')
    args = parser.parse_args()
    rows = json.loads(args.output.read_text())["rows"] if args.only and args.output.exists() else []
    rows = [row for row in rows if row["runs in"] not in (args.only or ())]
    model = transformers.AutoModel.from_pretrained(args.model).eval()
    with tempfile.TemporaryDirectory() as scratch:
        cache = args.cache or Path(scratch) / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        found = found_in(cache / "searches.json", model, args.text, cache, args.rows, args.only)
        rows += rounded(timed(found, model, Path(scratch), args.repeats, args.only))
    command = "python -m benchmarks.machine_search --model FOLDER --text FILE --output FILE"
    about = {**provenance(command, "torch", "onnxruntime", "openvino"), "threads": torch.get_num_threads()}
    write_json(args.output, {**about, "calibration_rows": args.rows, "rows": rows})


if __name__ == "__main__":
    main()
