"""Tables of the cost model."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from benchmarks.provenance import captioned, source_line


def agreement(data: dict) -> str:
    """The paper's dense models, Timeloop's products and AccelForge's workloads beside ours."""
    lines = [
        "| EDP of the dense linears, µJ·s | paper | Timeloop's constraints | whole mapping space |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row['model']}, {row['tokens']} tokens | {row['paper']:.2f} | {row['timeloop']:.3f} | {row['free']:.3f} |"
        for row in data["dense"]
    ]
    lines += ["", "| beside | compared | result |", "|---|---|---|"]
    lines += [f"| {' | '.join(cells)} |" for cells in (*_agreement(data), *_speed(data))]
    caption = (
        "First table: what the paper states, and ours with and without Timeloop's constraints on mappings. Second table: "
        "ranges over products or workloads; times are medians with ranges, and no mapping was cached."
    )
    return captioned(lines, caption, source_line(data))


def _agreement(data: dict) -> list[tuple[str, str, str]]:
    products, optima = data["timeloop"], data["accelforge"]
    energy, cycles = (max(abs(row[key]) for row in products) for key in ("energy", "cycles"))
    layers = {row["workload"].rsplit("_", 1)[-1]: row for row in optima if row["workload"].startswith("lowrank")}
    ours, theirs = (1 - layers["fused"][key] / layers["unfused"][key] for key in ("edp", "accelforge"))
    timeloop, accelforge = f"Timeloop 3.0.3, {len(products)} products", f"AccelForge 1.0, {len(optima)} workloads"
    counts = f"equal in {sum(row['counts_equal'] for row in products)} of {len(products)}"
    return [
        (timeloop, "energy and cycles under its constraints", f"differ by at most {energy:.1e} and {cycles}"),
        (timeloop, "access counts under its constraints", counts),
        (timeloop, "our EDP without constraints, over its", _range(row["free_edp"] for row in products)),
        (accelforge, "our EDP over its optimum", _range(row["ratio"] for row in optima)),
        (accelforge, "EDP gained by fusing a low-rank layer", f"{ours:.1%} by our count, {theirs:.1%} by its"),
    ]


def _range(values: Iterable[float], form: str = ".3f") -> str:
    numbers = list(values)
    return f"{min(numbers):{form}} to {max(numbers):{form}}"


def _speed(data: dict) -> list[tuple[str, str, str]]:
    products, optima, table = data["timeloop"], data["accelforge"], data["candidates"]
    times = [row["free_s"] * 1e3 for row in products]
    slower = [row["timeloop_s"] / row["free_s"] for row in products]
    others = [row["accelforge_cpu_s"] / row["s"] for row in optima]
    settings = f"{table['candidates']:,} settings of a 768×3072 matrix planned and costed, two processes"
    return [
        ("ours", "time to find a mapping", f"{statistics.median(times):.1f} ms ({_range(times, '.1f')})"),
        ("Timeloop's mapper", "its time over ours", f"{statistics.median(slower):,.0f} ({_range(slower, ',.0f')})"),
        ("AccelForge", "its time over ours", f"{statistics.median(others):,.0f} ({_range(others, ',.0f')})"),
        ("ours", settings, f"{table['s']:.0f} s"),
    ]


def paper(data: dict) -> str:
    """Least EDP at the paper's numbers of factor parameters."""
    lines = [
        "| format | factor parameters | paper's HEAT, µJ·s | ours | ratio | shapes and ranks (768×768, 3072×768, 768×3072) |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row, every in zip(data["paper"], data["structures"], strict=True):
        for kind, result in row["settings"].items():
            name = row["format"] if kind == "best" else f"{row['format']}, {kind}"
            lines.append(
                f"| {name} | {row['parameters_M']} M | {row['paper']} | {result['edp']:.2f} "
                f"| {result['edp'] / row['paper']:.2f} | {'; '.join(result['settings'].values())} |"
            )
        lines.append(
            f"| {row['format']}'s parameters, every structure | {row['parameters_M']} M | {row['paper']} | {every['edp']:.2f} "
            f"| {every['ratio']:.2f} | attention: {every['attention']}; feed-forward: {every['feed_forward']} |"
        )
    caption = (
        f"Geometric mean of the ratios of the nine rows: {data['paper_geometric_mean']:.3f} with the format's best settings, "
        f"{data['structures_geometric_mean']:.3f} with every structure. Possible EDP at equal parameters, not accuracy."
    )
    return captioned(lines, caption, source_line(data))


def figures(data: dict) -> str:
    """Figures 2 and 6 in numbers."""
    table, example = data["candidates"], data["figure_6"]["128"]
    lines = [
        f"| {table['candidates']:,} settings of a 768×3072 matrix, 384 tokens | |",
        "|---|---:|",
        f"| rank correlation of EDP with MACs | {table['macs_spearman']:.2f} |",
        f"| rank correlation of EDP with parameters | {table['parameters_spearman']:.2f} |",
        f"| largest ratio of EDPs where MACs are within 2 % of each other | {table['largest_spread']:.1f} |",
        "",
        "| the paper's Figure 6: 768×768 as 768×12×64 CP of rank 280, 128 tokens | |",
        "|---|---:|",
        f"| MACs from left to right | {example['macs'][0]:,} |",
        f"| MACs along the best path | {example['macs'][1]:,} |",
        f"| times fewer MACs along the best path | {example['macs_ratio']:,.0f} |",
        f"| times less EDP along the best path | {example['edp_ratio']:.1e} |",
    ]
    return captioned(lines, "The paper's Figures 2 and 6 in numbers, on simba-l.", source_line(data))
