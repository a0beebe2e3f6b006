"""What `heat-hf bench` found of a dense classifier and its distilled students, kept as a result of this project.

Students are those that `benchmarks.distilled` leaves in its cache, with the classifier's tokenizer beside them.

    python -m benchmarks.runtimes --bench DIR --output benchmarks/results/runtimes.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.provenance import captioned, provenance, source_line
from recipes.evidence import write_json

COMMAND = (
    "heat-hf bench CLASSIFIER STUDENT STUDENT --task text-classification --data FILE --calibration-file FILE --memory "
    "--threads 1 --batch-size 1 8 32 --sequence-length 32 128 --output DIR && "
    "python -m benchmarks.runtimes --bench DIR --output FILE"
)
SIZES = ((1, 32), (1, 128), (8, 128), (32, 128))  # of the means
LABELS = {"minilm-sst2": "dense", "sst2-10": "10×, distilled", "sst2-20": "20×, distilled"}  # by the folders' names


def table(data: dict[str, Any]) -> str:
    """A row for each model, runtime and precision."""
    sizes = " | ".join(f"{rows} × {tokens}" for rows, tokens in SIZES)
    head = f"| model | runs in | MiB | memory, MiB | accuracy | {sizes} | mean |"
    lines = [head, "|---|---|---:|---:|---:|" + "---:|" * (len(SIZES) + 1)]
    for entry in data["entries"]:
        times = {(time["batch_size"], time["sequence_length"]): time["ratio"] for time in entry["times"]}
        ratios = [times[size] for size in SIZES]
        cells = " | ".join(f"{ratio:.2f}" for ratio in (*ratios, statistics.geometric_mean(ratios)))
        way = f"{entry['runtime']} {entry['precision']}"
        figures = f"{entry['bytes'] / 2**20:.1f} | {entry['memory'] / 2**20:.0f} | {entry['score']:.4f}"
        lines.append(f"| {LABELS[entry['model']]} | {way} | {figures} | {cells} |")
    caption = (
        f"MiniLM on SST-2 ({data['rows']} rows), students of ranks and widths by their EDP gain. Time of rows × tokens over "
        f"dense PyTorch's in the same round, median of {data['repeats']}, one thread; mean: geometric."
    )
    return captioned(lines, caption, source_line(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", type=Path, required=True, help="what heat-hf bench wrote")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/runtimes.json"))
    args = parser.parse_args()
    found = json.loads((args.bench / "bench.json").read_text())
    for entry in (*found["entries"], *found.pop("use")):
        entry["model"] = Path(entry["model"]).name  # folders of one machine mean nothing elsewhere
    found["data"] = Path(found["data"]).name
    write_json(args.output, {**found, **provenance(COMMAND, "torch", "transformers"), "versions": found["versions"]})


if __name__ == "__main__":
    main()
