"""What `heat-hf bench` found of dense models and their distilled students, kept as a result of this project.

Students are those that `benchmarks.distilled` leaves in its cache, with the dense model's tokenizer beside them. Several runs,
also of other machines, are kept in short: the fastest student that loses no more than a point, over the fastest dense model.

    python -m benchmarks.runtimes --bench DIR --output benchmarks/results/runtimes.json
    python -m benchmarks.runtimes --bench FILE DIR DIR --output benchmarks/results/runtimes_repeated.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine_tables import processor
from benchmarks.provenance import captioned, provenance, source_line
from recipes.evidence import write_json

COMMAND = (
    "heat-hf bench CLASSIFIER STUDENT STUDENT --task text-classification --data FILE --calibration-file FILE --memory "
    "--threads 1 --batch-size 1 8 32 --sequence-length 32 128 --output DIR && "
    "python -m benchmarks.runtimes --bench DIR --output FILE"
)
SIZES = ((1, 32), (1, 128), (8, 128), (32, 128))  # of the means
STUDENTS = {
    "sst2-10": "10×, distilled",
    "sst2-20": "20×, distilled",
    "stsb-5.7": "5.7×, distilled",
    "stsb-10": "10×, distilled",
}
LABELS = {"minilm-sst2": "dense", "minilm": "dense", **STUDENTS}  # by the folders' names
POINT = 0.01  # that a student may lose


def table(data: dict[str, Any]) -> str:
    """A row for each model, runtime and precision."""
    sizes = " | ".join(f"{rows} × {tokens}" for rows, tokens in SIZES)
    head = f"| model | runs in | MiB | memory, MiB | accuracy | {sizes} | mean |"
    lines = [head, "|---|---|---:|---:|---:|" + "---:|" * (len(SIZES) + 1)]
    for entry in data["entries"]:
        own = ratios(entry)
        cells = " | ".join(f"{ratio:.2f}" for ratio in (*own, statistics.geometric_mean(own)))
        way = f"{entry['runtime']} {entry['precision']}"
        figures = f"{entry['bytes'] / 2**20:.1f} | {entry['memory'] / 2**20:.0f} | {entry['score']:.4f}"
        lines.append(f"| {LABELS[entry['model']]} | {way} | {figures} | {cells} |")
    caption = (
        f"MiniLM on SST-2 ({data['rows']} rows), students of ranks and widths by their EDP gain. Time of rows × tokens over "
        f"dense PyTorch's in the same round, median of {data['repeats']}, one thread; mean: geometric."
    )
    return captioned(lines, caption, source_line(data))


def ratios(entry: dict[str, Any]) -> list[float]:
    """Times of the four sizes over dense PyTorch's."""
    times = {(time["batch_size"], time["sequence_length"]): time["ratio"] for time in entry["times"]}
    return [times[size] for size in SIZES]


def shortened(found: dict[str, Any]) -> dict[str, Any]:
    """The fastest student of a run that loses no more than a point, beside the fastest dense model of every size."""
    dense, students = ([e for e in found["entries"] if (LABELS[e["model"]] == "dense") is own] for own in (True, False))
    score = next(entry["score"] for entry in dense if (entry["runtime"], entry["precision"]) == ("torch", "float32"))
    fine = [entry for entry in students if entry["score"] >= score - POINT]
    best = min(fine, key=lambda entry: statistics.geometric_mean(ratios(entry)))
    peer = min(dense, key=lambda entry: statistics.geometric_mean(ratios(entry)))
    least = [min(sizes) for sizes in zip(*map(ratios, dense), strict=True)]
    return {
        "device": found["device"],
        "metric": found["metric"],
        "rows": found["rows"],
        "repeats": found["repeats"],
        "dense": f"{peer['runtime']} {peer['precision']}",
        "dense_loss": score - peer["score"],
        "student": f"{LABELS[best['model']]}, {best['runtime']} {best['precision']}",
        "loss": score - best["score"],
        "over_torch": [1 / own for own in ratios(best)],
        "over_dense": [fastest / own for fastest, own in zip(least, ratios(best), strict=True)],
    }


def repeated(data: dict[str, Any]) -> str:
    """A row for each run."""
    sizes = " | ".join(f"{rows} × {tokens}" for rows, tokens in SIZES)
    head = f"| metric | processor | fastest dense, its loss | fastest student, its loss | {sizes} | mean | over dense PyTorch |"
    lines = [head, "|---|---|---|---|" + "---:|" * (len(SIZES) + 2)]
    for run in data["runs"]:
        own = " | ".join(f"{gain:.2f}" for gain in (*run["over_dense"], statistics.geometric_mean(run["over_dense"])))
        all_of = f"{statistics.geometric_mean(run['over_torch']):.1f}"
        ways = " | ".join(
            f"{run[name]}, {100 * run[loss]:.1f}" for name, loss in (("dense", "dense_loss"), ("student", "loss"))
        )
        lines.append(f"| {run['metric']} | {processor(run)} | {ways} | {own} | {all_of} |")
    caption = (
        "The fastest student that loses no more than a point: times faster than the fastest dense model in any runtime "
        "and precision, for each of rows × tokens. One thread; mean: geometric."
    )
    return captioned(lines, caption, source_line(data))


def read(path: Path) -> dict[str, Any]:
    """What a run found, in its folder or kept before; folders and files of one machine mean nothing elsewhere."""
    found: dict[str, Any] = json.loads((path / "bench.json" if path.is_dir() else path).read_text())
    for entry in (*found["entries"], *found.pop("use", ())):
        entry["model"] = Path(entry["model"]).name
    found["data"] = Path(found["data"]).name
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--bench", nargs="+", type=Path, required=True, help="what heat-hf bench wrote; of several runs, in short"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/runtimes.json"))
    args = parser.parse_args()
    runs = [read(folder) for folder in args.bench]
    about = {**provenance(COMMAND, "torch", "transformers"), "versions": runs[0]["versions"]}
    write_json(args.output, {**(runs[0] if len(runs) == 1 else {"runs": [shortened(run) for run in runs]}), **about})


if __name__ == "__main__":
    main()
