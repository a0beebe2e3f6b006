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
    "sst2-here": "for this machine, distilled",
    "stsb-here": "for this machine, distilled",
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
    """For every size the fastest dense model, and the fastest student of those that lose no more than a point."""
    dense, students = ([e for e in found["entries"] if (LABELS[e["model"]] == "dense") is own] for own in (True, False))
    score = next(entry["score"] for entry in dense if (entry["runtime"], entry["precision"]) == ("torch", "float32"))
    fine = [entry for entry in students if entry["score"] >= score - POINT]
    peers, best = (_fastest(entries) for entries in (dense, fine))
    alone = min(fine, key=lambda entry: statistics.geometric_mean(ratios(entry)))
    least = [ratios(peer)[size] for size, peer in enumerate(peers)]
    return {
        "device": found["device"],
        "metric": found["metric"],
        "rows": found["rows"],
        "repeats": found["repeats"],
        "dense": _ways(peers),
        "dense_loss": max(score - peer["score"] for peer in peers),
        "student": " + ".join(dict.fromkeys(LABELS[entry["model"]] for entry in best)),
        "student_ways": _ways(best),
        "loss": max(score - entry["score"] for entry in best),
        "over_torch": [1 / ratios(entry)[size] for size, entry in enumerate(best)],
        "over_dense": [least[size] / ratios(entry)[size] for size, entry in enumerate(best)],
        "alone": f"{LABELS[alone['model']]}, {_ways([alone])}",
        "alone_over_dense": [one / own for one, own in zip(least, ratios(alone), strict=True)],
    }


def _fastest(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each size."""
    return [min(entries, key=lambda entry: ratios(entry)[size]) for size in range(len(SIZES))]


def _ways(entries: list[dict[str, Any]]) -> str:
    """How they run, each once."""
    return ", ".join(dict.fromkeys(f"{entry['runtime']} {entry['precision']}" for entry in entries))


def repeated(data: dict[str, Any]) -> str:
    """A row for each run."""
    sizes = " | ".join(f"{rows} × {tokens}" for rows, tokens in SIZES)
    head = f"| metric | processor | fastest dense, its loss | fastest student, its loss | {sizes} | mean | over dense PyTorch "
    lines = [head + "| in one way | mean |", "|---|---|---|---|" + "---:|" * (len(SIZES) + 2) + "---|---:|"]
    for run in data["runs"]:
        own = " | ".join(f"{gain:.2f}" for gain in (*run["over_dense"], statistics.geometric_mean(run["over_dense"])))
        all_of = f"{statistics.geometric_mean(run['over_torch']):.1f}"
        ways = (
            f"{run['dense']}; {100 * run['dense_loss']:.1f} | {run['student']}: {run['student_ways']}; {100 * run['loss']:.1f}"
        )
        alone = f"{run['alone']} | {statistics.geometric_mean(run['alone_over_dense']):.2f}"
        lines.append(f"| {run['metric']} | {processor(run)} | {ways} | {own} | {all_of} | {alone} |")
    caption = (
        "Times faster than the fastest dense model, for each of rows × tokens the fastest of either side in any runtime and "
        "precision; students lose no more than a point. Last: one student, one way. One thread; means: geometric."
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
