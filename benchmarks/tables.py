"""Write the result tables of README.md from the files under benchmarks/results. Run by `make results`.

With `--check`, change nothing and fail if a table does not agree with its file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from benchmarks.provenance import source_line

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"


def training_free(data: dict) -> str:
    """Plain against activation-aware projection, a row for each format and size."""
    lines = [
        f"{data['model']}, {data['task']}, Spearman; dense {data['dense']:.4f}. No training. "
        f"Calibration: {data['calibration']}.",
        "",
        "| format | shape | parameters | plain | activation-aware | gained | output error | MACs |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    pairs: dict[tuple, dict[bool, dict]] = {}
    for row in data["rows"]:
        pairs.setdefault((row["decomposition"], row["shape"], row["target"]), {})[row["activation_aware"]] = row
    for (name, shape, _), pair in pairs.items():
        if len(pair) < 2:  # the run is not finished
            continue
        plain, aware = pair[False], pair[True]
        lines.append(
            f"| {name} | {shape} | {aware['params_ratio']:.2f} | {plain['spearman']:.4f} | {aware['spearman']:.4f} "
            f"| {aware['spearman'] - plain['spearman']:+.4f} | {aware['output_error']:.3f} | {aware['macs_ratio']:.2f} |"
        )
    return "\n".join([*lines, "", source_line(data)])


def linear(data: dict) -> str:
    """Time of one layer relative to dense, a row for each layer, a column for each size and number of tokens."""
    columns = list(dict.fromkeys((row["size"], row["tokens"]) for row in data["rows"]))
    cells = {(row["layer"], row["size"], row["tokens"]): row for row in data["rows"]}
    lines = [
        "| layer | " + " | ".join(f"{size}, {tokens}" for size, tokens in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for layer in dict.fromkeys(row["layer"] for row in data["rows"]):
        found = [cells[layer, *column] for column in columns]
        texts = [f"{row['time']:.2f} ({row['lower']:.2f}–{row['upper']:.2f})" for row in found]
        lines.append(f"| {layer} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", source_line(data)])


TABLES = {"training_free": training_free, "linear": linear}


def render(text: str) -> str:
    """README with every table between its markers made anew."""
    for name, table in TABLES.items():
        data = json.loads((RESULTS / f"{name}.json").read_text())
        pattern = re.compile(rf"(<!-- results:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no markers for {name}")
        text = pattern.sub(lambda match, data=data, table=table: f"{match[1]}{table(data)}\n{match[2]}", text)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    old = README.read_text()
    new = render(old)
    if args.check:
        return int(old != new)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
