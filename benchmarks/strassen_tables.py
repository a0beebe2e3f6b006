"""Tables of Strassen-Tile."""

from __future__ import annotations

import statistics

from benchmarks.distillation_tables import average, mean
from benchmarks.provenance import captioned, source_line


def algorithms(data: dict) -> str:
    """Errors of algorithms for independent elements, a row for each tile and rank."""
    lines = [
        "| tile | products r | of t³ | strassen | als, median | als, best | hadamard | random |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for key, row in data["algorithms"].items():
        tile, rank = map(int, key.split())
        lines.append(
            f"| {tile} | {rank} | {rank / tile**3:.2f} | {row['strassen']:.3f} | {statistics.median(row['als']):.3f} "
            f"| {min(row['als']):.3f} | {row['hadamard']:.3f} | {row['random']:.2f} |"
        )
    seeds = len(next(iter(data["algorithms"].values()))["als"])
    caption = (
        "Relative squared error of a product of t×t tiles whose elements are independent; 0 is exact. als: least squares from "
        f"{seeds} random starts. random: not fitted at all."
    )
    return captioned(lines, caption, source_line(data))


def starts(data: dict) -> str:
    """Initial values on MiniLM, before and after the same steps, a row for each rank and start."""
    lines = [
        "| r | start | output error | divergence | output error, refined | divergence, refined |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    order = ("strassen", "strassen, weights alone", "als", "hadamard", "random")
    for row in sorted(data["starts"].values(), key=lambda row: (row["rank"], order.index(row["start"]))):
        figures = [row.get(when, {}).get(name) for when in ("before", "after") for name in ("output_error", "divergence")]
        cells = " | ".join("" if value is None else f"{value:.4f}" for value in figures)
        lines.append(f"| {row['rank']} | {row['start']} | {cells} |")
    caption = (
        "MiniLM classifier, SST-2; tiles of 4 in one of six blocks. Output error: mean of six layers, on calibration rows. "
        "Divergence: from the dense model, on 32 rows held out. Refined: by 50 steps."
    )
    return captioned(lines, caption, source_line(data))


def sharing(data: dict) -> str:
    """Errors by what shares encoders, a row for each rank and scope."""
    lines = ["| r | encoders shared by | pairs of them | output error |", "|---:|---|---:|---:|"]
    names = {"matrix": "none", "size": "matrices of a size", "model": "all matrices"}
    for rank, scopes in sorted(data["sharing"].items()):
        lines += [
            f"| {rank} | {names[scope]} | {own['encoders']} | {own['output_error']:.4f} |" for scope, own in scopes.items()
        ]
    caption = "MiniLM classifier, SST-2: mean of 36 matrices, for tiles of inputs and weights with the moments that they have."
    return captioned(lines, caption, source_line(data))


def costs(data: dict) -> str:
    """EDP and time of layers, a row for each size and number of tokens."""
    lines = [
        "| matrix | tokens | r = 24: MACs | time | EDP | pivoted, same MACs: time | EDP | r = 49: EDP |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rows = {(row["size"], row["tokens"], row["rank"]): row for row in data["costs"]}
    for (size, tokens, rank), row in rows.items():
        if rank == 24:
            tiles, low, exact = row["tiles"], row["pivoted"], rows[size, tokens, 49]["tiles"]
            lines.append(
                f"| {size} | {tokens:,} | {row['macs']:.2f} | {tiles['seconds']:.2f} | {tiles['edp']:.2f} "
                f"| {low['seconds']:.2f} | {low['edp']:.2f} | {exact['edp']:.2f} |"
            )
    caption = "Layers on simba-l over the dense layer, tiles of 4, steps fused where that pays."
    return captioned(lines, caption, source_line(data))


def steps(data: dict) -> str:
    """A training step and inference beside the dense model, a row for each structure."""
    lines = [
        "| all encoder linears | MACs | parameters | training step, time | kept for the backward pass | inference, 8 × 128 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in data["steps"].items():
        low, median, high = row["step"]
        lines.append(
            f"| {name} | {row['macs_ratio']:.2f} | {row['params_ratio']:.2f} | {median:.2f} ({low:.2f}–{high:.2f}) "
            f"| {row['saved_ratio']:.2f} | {row['inference']:.2f} |"
        )
    caption = (
        "MiniLM classifier over the dense one: MACs and parameters of matrices; forward and backward pass of 16 × 64 tokens, "
        "median and quartiles; bytes of activations. One thread."
    )
    return captioned(lines, caption, source_line(data))


def trained(data: dict) -> str:
    """A MiniLM classifier trained alike in every structure, a row for each; means over seeds."""
    lines = [
        "| structure | MACs | parameters | EDP gain | time | untrained | distilled | divergence |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        f"| dense | 1 | 1 | 1 | 1 | | {data['dense']['SST-2']:.4f} | 0 |",
    ]
    groups: dict[str, list[dict]] = {}
    for row in data["rows"].values():
        groups.setdefault(row["structure"], []).append(row)
    for name, rows in groups.items():
        one = rows[0]
        gain = f"{one['edp_gain']:.2f}×" if "edp_gain" in one else "–"
        figures = (
            f"{one['untrained_score']:.4f}", mean(row["score"] for row in rows), average((r["divergence"] for r in rows), ".4f")
        )  # fmt: skip
        time = statistics.median(row["time"] for row in rows)
        lines.append(
            f"| {name} | {one['macs_ratio']:.2f} | {one['params_ratio']:.2f} | {gain} | {time:.2f} | {' | '.join(figures)} |"
        )
    steps = next(iter(data["rows"].values()))["schedule"]["max_steps"]
    caption = (
        f"SST-2 validation accuracy of MiniLM after {steps:,} steps of 32. "
        "MACs, parameters and EDP on simba-l: of 36 matrices. Time: of 8 × 128 tokens on a CPU, over the dense model's."
    )
    return captioned(lines, caption, source_line(data))
