"""Write the result tables of README.md from the files under benchmarks/results. Run by `make results`.

With `--check`, change nothing and fail if a table does not agree with its file.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable
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


def cost_agreement(data: dict) -> str:
    """The paper's dense models, Timeloop's products and AccelForge's workloads beside ours."""
    products, optima = data["timeloop"], data["accelforge"]
    dense = [
        f"| {row['model']}, {row['tokens']} tokens | {row['paper']:.2f} | {row['timeloop']:.3f} | {row['free']:.3f} |"
        for row in data["dense"]
    ]
    layers = {row["workload"].rsplit("_", 1)[-1]: row for row in optima if row["workload"].startswith("lowrank")}
    ours, theirs = (1 - layers["fused"][key] / layers["unfused"][key] for key in ("edp", "accelforge"))
    return "\n".join(
        [
            "| EDP of the dense linears, µJ·s | paper | Timeloop's constraints | whole mapping space |",
            "|---|---:|---:|---:|",
            *dense,
            "",
            f"Timeloop 3.0.3, {len(products)} products under its constraints: energies differ by at most "
            f"{max(abs(row['energy']) for row in products):.1e}, cycles by {max(abs(row['cycles']) for row in products)}; "
            f"access counts are equal in {sum(row['counts_equal'] for row in products)} of {len(products)}. "
            f"Without the constraints our EDP is {_range(row['free_edp'] for row in products)} of its.",
            "",
            f"AccelForge 1.0, {len(optima)} workloads: our EDP is {_range(row['ratio'] for row in optima)} of its optimum. "
            f"Fusing a low-rank layer gains {ours:.1%} of the EDP, there {theirs:.1%}.",
            "",
            *_speed(data),
            source_line(data),
        ]
    )


def _range(values: Iterable[float], form: str = ".3f") -> str:
    found = list(values)
    return f"{min(found):{form}} to {max(found):{form}}"


def _speed(data: dict) -> list[str]:
    products, optima, table = data["timeloop"], data["accelforge"], data["candidates"]
    times = [row["free_s"] * 1e3 for row in products]
    slower = [row["timeloop_s"] / row["free_s"] for row in products]
    others = [row["accelforge_cpu_s"] / row["s"] for row in optima]
    return [
        f"Time to find a mapping, nothing known before: {statistics.median(times):.1f} ms in the median product "
        f"({_range(times, '.1f')}). Timeloop's mapper took {statistics.median(slower):,.0f} times as long "
        f"({_range(slower, ',.0f')}), AccelForge's {statistics.median(others):,.0f} times ({_range(others, ',.0f')}). "
        f"{table['candidates']:,} settings of a 768×3072 matrix, all formats, planned and costed by two processes: "
        f"{table['s']:.0f} s.",
        "",
    ]


def cost_paper(data: dict) -> str:
    """Least EDP at the paper's numbers of factor parameters."""
    lines = [
        "| format | factor parameters | paper's HEAT, µJ·s | ours | ratio | shapes and ranks (768×768, 3072×768, 768×3072) |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in data["paper"]:
        for kind, own in row["settings"].items():
            name = row["format"] if kind == "best" else f"{row['format']}, {kind}"
            lines.append(
                f"| {name} | {row['parameters_M']} M | {row['paper']} | {own['edp']:.2f} "
                f"| {own['edp'] / row['paper']:.2f} | {'; '.join(own['settings'].values())} |"
            )
    mean = f"Geometric mean of the ratios of the nine rows, best settings: {data['paper_geometric_mean']:.2f}."
    return "\n".join([*lines, "", mean, "", source_line(data)])


def cost_figures(data: dict) -> str:
    """Figures 2 and 6 in numbers."""
    table, example = data["candidates"], data["figure_6"]["128"]
    return "\n".join(
        [
            f"{table['candidates']:,} settings of a 768×3072 matrix at 384 tokens: the rank correlation with EDP is "
            f"{table['macs_spearman']:.2f} for MACs and {table['parameters_spearman']:.2f} for parameters. Settings whose MACs "
            f"are within 2 % of each other differ in EDP by up to {table['largest_spread']:.1f} times.",
            "",
            f"The paper's Figure 6 (768×768 as 768×12×64 CP of rank 280, 128 tokens): from left to right "
            f"{example['macs'][0]:,} MACs, along the best path {example['macs'][1]:,}, {example['macs_ratio']:,.0f} times "
            f"fewer; the EDP is {example['edp_ratio']:.1e} times lower.",
            "",
            source_line(data),
        ]
    )


def shapes_speed(data: dict) -> str:
    """Time and memory of whole searches."""
    lines = [
        "| search | candidates | shapes tried | settings by enumeration | time | memory |",
        "|---|---|---|---|---:|---:|",
    ]
    for row in data["rows"]:
        cells = (", ".join(f"{size}: {count:,}" for size, count in row[key].items()) for key in ("sizes", "shapes"))
        every = ", ".join(f"{size}: {count:.1e}" for size, count in row["unpruned"].items())
        spent = f"{row['seconds'] / 60:.1f} min | {row['peak_memory_GiB']:.1f} GiB"
        lines.append(f"| {row['model']} | {' | '.join(cells)} | {every} | {spent} |")
    note = f"Start to end with {data['rows'][0]['workers']} processes, loading included; memory of all of them together."
    return "\n".join([*lines, "", note, "", source_line(data)])


def shapes(data: dict) -> str:
    """Searched, hand-tuned and TensorLy's settings at the same parameters."""
    tasks = list(data["dense"])
    heads = " | ".join(f"{task} plain | {task} calibrated" for task in tasks)
    dense = " | ".join(f"{data['dense'][task]:.4f}" for task in tasks for _ in (False, True))
    lines = [
        f"| format | setting | parameters | EDP of dense | error | {heads} |",
        "|---|---|---:|---:|---:|" + "---:|---:|" * len(tasks),
        f"| dense | | 1 | 1 | 0 | {dense} |",
    ]
    rows = {(row["task"], row["format"], row["method"], row["activation_aware"]): row for row in data["rows"]}
    for name, method in dict.fromkeys((row["format"], row["method"]) for row in data["rows"]):
        first = rows[tasks[0], name, method, False]
        found = [rows.get((task, name, method, aware)) for task in tasks for aware in (False, True)]
        scores = " | ".join("" if row is None else f"{row['score']:.4f}" for row in found)
        label = {"pareto": "searched", "tensorly": "TensorLy's ranks"}.get(method, method)
        lines.append(
            f"| {name} | {label} | {first['params_ratio']:.3f} | {first['edp_ratio']:.3f} | {first['error']:.3f} | {scores} |"
        )
    note = (
        "all-MiniLM-L6-v2 on STS-B test (1,379 pairs, Spearman), a MiniLM classifier on SST-2 validation (872 rows, accuracy); "
        f"no training, seed {data['seed']}. Parameters, EDP (ΣE·ΣT of the linears, 128 tokens, simba-l) and mean weight error "
        f"are those of {tasks[0]}, plain. Calibrated: activation-aware, {data['calibration_rows']:,} sentences of text/train, "
        "or of sst2/train."
    )
    return "\n".join([*lines, "", note, "", source_line(data)])


# Marker in the README → the result file's stem and what makes the table.
TABLES: dict[str, tuple[str, Callable[[dict], str]]] = {
    "training_free": ("training_free", training_free),
    "linear": ("linear", linear),
    "cost_agreement": ("cost", cost_agreement),
    "cost_figures": ("cost", cost_figures),
    "cost_paper": ("cost", cost_paper),
    "shapes_speed": ("shapes_speed", shapes_speed),
    "shapes": ("shapes", shapes),
}


def render(text: str) -> str:
    """README with every table between its markers made anew."""
    for name, (stem, table) in TABLES.items():
        data = json.loads((RESULTS / f"{stem}.json").read_text())
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
