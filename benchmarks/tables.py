"""Write the result tables of README and documentation from the files under benchmarks/results. Run by `make results`.

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

from benchmarks import distillation_tables as distilled
from benchmarks.provenance import source_line

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def training_free(data: dict) -> str:
    """Plain, activation-aware and loss-aware projection, a row for each format and size."""
    lines = [
        f"{data['model']}, {data['task']}, Spearman; dense {data['dense']:.4f}. No training. "
        f"Calibration: {data['calibration']}. Output error and MACs are those of the activation-aware projection.",
        "",
        "| format | shape | parameters | plain | activation-aware | loss-aware | output error | MACs |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    found: dict[tuple, dict[str, dict]] = {}
    for row in data["rows"]:
        found.setdefault((row["decomposition"], row["shape"], row["target"]), {})[row["projection"]] = row
    for (name, shape, _), own in found.items():
        if "outputs" not in own:  # the run is not finished
            continue
        scores = (f"{own[kind]['spearman']:.4f}" if kind in own else "" for kind in ("plain", "outputs", "loss"))
        aware = own["outputs"]
        lines.append(
            f"| {name} | {shape} | {aware['params_ratio']:.2f} | {' | '.join(scores)} "
            f"| {aware['output_error']:.3f} | {aware['macs_ratio']:.2f} |"
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


def ranks(data: dict) -> str:
    """Accuracy of every method at every budget: untrained by either projection, and re-trained alike."""
    gains = sorted({row["gain"] for row in data["rows"].values()})
    stages = (("outputs", "outputs"), ("loss", "loss"), ("retrained", "re-trained"))
    heads = " | ".join(f"{gain:g}× {label}" for gain in gains for _, label in stages)
    lines = [f"| ranks by | {heads} |", "|---" + "|---:" * (len(gains) * len(stages)) + "|"]
    methods = [name for name in dict.fromkeys(row["method"] for row in data["rows"].values()) if not name.startswith("random-")]
    groups = {name: [name] for name in methods}
    drawn = {row["method"] for row in data["rows"].values()} - set(methods)
    groups |= {f"random, {label} of {len(drawn)}": sorted(drawn) for label in ("median", "best")}
    for label, own in groups.items():
        pick = max if "best" in label else statistics.median
        cells = []
        for gain in gains:
            for stage, _ in stages:
                found = [data["rows"][f"{name} {gain:g}"].get(stage) for name in own]
                scores = [score for score in found if score is not None]
                cells.append(_score(scores, pick) if scores else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    used = data["rows_used"]
    note = (
        f"{data['model']}, dense {data['dense']:.4f}, at EDP gains of {', '.join(f'{gain:g}×' for gain in gains)} (ΣE·ΣT of "
        "the 36 linears, 128 tokens, simba-l, every row within the budget). Low rank, but for the manual rows that say "
        "otherwise: a hand-tuned low rank is a uniform one. In brackets the divergence from the dense model in nats, which "
        "tells apart what 872 rows cannot. Outputs: untrained, projected on the layers' outputs "
        "(activation-aware). Loss: untrained, projected on the model's (loss-aware). Re-trained: from there, "
        f"{data['retrain_steps']} steps of 32 rows. Calibration {used['calibration']}, training {used['training']}, score "
        f"{used['score']}; seed {data['seed']}."
    )
    return "\n".join([*lines, "", note, "", source_line(data)])


def _score(scores: list[dict], pick: Callable[[Iterable[float]], float]) -> str:
    """Accuracy, and the divergence that a picker of accuracies would pick: small is good."""
    apart = -pick(-score["divergence"] for score in scores)
    return f"{pick(score['accuracy'] for score in scores):.4f} ({apart:.3f})"


def ranks_supernet(data: dict) -> str:
    """What the SuperNet took and gave, and its ablation."""
    net, sensitivity, fidelity = data["supernet"], data["sensitivity"], data["supernet"]["fidelity"]
    whole = net["train_seconds"] + net["evaluate_seconds"] + net["search_seconds"]
    searched = " | ".join(
        f"{gain}×: {own['predicted']:.4f} / {own['measured']:.4f} / {own['validation']:.4f}"
        for gain, own in net["searched"].items()
    )
    lines = [
        f"SuperNet: {net['steps']} steps in {net['train_seconds'] / 60:.1f} min, {net['subnets']} SubNets measured on "
        f"{data['rows_used']['SubNets']} in {net['evaluate_seconds'] / 60:.1f} min; with the search {whole / 60:.1f} min. "
        f"Sensitivity: {sensitivity['seconds']:.0f} s, 1/{whole / sensitivity['seconds']:.0f} of it; "
        + ", ".join(f"{name} {own['seconds']:.0f} s" for name, own in data["speed"].items() if isinstance(own, dict))
        + f" from loaded model to variants. The evolution looks at {data['speed']['candidates_per_second']:,.0f} networks a "
        "second, predictions included, on one core.",
        "",
        f"The accuracy predictor on {fidelity['networks']} held-out SubNets: Spearman {fidelity['spearman']:.3f}, Kendall "
        f"{fidelity['kendall']:.3f}. {len(data['retrained_subnets'])} SubNets re-trained alike: Spearman "
        f"{data['retrained_spearman']:.3f} between predicted and re-trained accuracy. Searched networks with the SuperNet's "
        f"own cores, predicted / measured on those rows / on validation: {searched}.",
        "",
        "| SuperNet's training | median accuracy of SubNets | median divergence | steps |",
        "|---|---:|---:|---:|",
    ]
    for name, own in data["ablation"].items():
        accuracy, lost = statistics.median(own["accuracies"]), statistics.median(own["divergences"])
        label = name if name == "full recipe" else f"without it: {name}"
        lines.append(f"| {label} | {accuracy:.4f} | {lost:.4f} | {own['steps']} |")
    count = len(next(iter(data["ablation"].values()))["accuracies"])
    note = f"The same {count} SubNets of all sizes each, on {data['rows_used']['score']} rows."
    return "\n".join([*lines, "", note, "", source_line(data)])


def exported(data: dict) -> str:
    """Score, size and time of exported models."""
    sizes = list(next(iter(data["models"].values()))["time"])
    heads = "".join(f" time {size} |" for size in sizes)
    lines = [f"| model | {data['metric']} | MiB |{heads}", "|---|---:|---:|" + "---:|" * len(sizes)]
    for name, own in data["models"].items():
        times = "".join(f" {median:.2f} ({low:.2f}–{high:.2f}) |" for low, median, high in own["time"].values())
        lines.append(f"| {name} | {own['score']:.4f} | {own['MiB']:.1f} |{times}")
    note = (
        f"{data['test']}, {data['rows_count']:,} rows. Time of a forward pass of rows × tokens over that of the dense model in "
        f"PyTorch in the same round, median and quartiles, {data['threads']} threads. MiB: weights, or the ONNX file."
    )
    return "\n".join([*lines, "", note, "", source_line(data)])


# Marker in a page → what makes the table, and the stems of the result files that it is given.
TABLES: dict[str, tuple[Callable[..., str], *tuple[str, ...]]] = {
    "training_free": (training_free, "training_free"),
    "linear": (linear, "linear"),
    "cost_agreement": (cost_agreement, "cost"),
    "cost_figures": (cost_figures, "cost"),
    "cost_paper": (cost_paper, "cost"),
    "shapes_speed": (shapes_speed, "shapes_speed"),
    "shapes": (shapes, "shapes"),
    "ranks": (ranks, "ranks"),
    "ranks_supernet": (ranks_supernet, "ranks"),
    "distilled": (distilled.classification, "distillation"),
    "reached": (distilled.reached, "distillation", "exported"),
    "faster": (distilled.faster, "distillation"),
    "recipes": (distilled.recipes, "distillation"),
    "embeddings": (distilled.embeddings, "distillation"),
    "question_answering": (distilled.question_answering, "question_answering"),
    "exported": (exported, "exported"),
    "step_cost": (distilled.step_cost, "distillation"),
}


def pages() -> list[Path]:
    """README and the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def render(text: str) -> str:
    """A page with every table between its markers made anew.

    Raises:
        ValueError: for a marker that no table is known for.
    """

    def made(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise ValueError(f"no table {match[1]!r}; there are {', '.join(TABLES)}")
        table, *stems = TABLES[match[1]]
        results = (json.loads((RESULTS / f"{stem}.json").read_text()) for stem in stems)
        return f"<!-- results:{match[1]} -->\n{table(*results)}\n<!-- end -->"

    return re.sub(r"<!-- results:(\w+) -->\n.*?<!-- end -->", made, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    changed = {page: text for page in pages() if (text := render(page.read_text())) != page.read_text()}
    if not args.check:
        for page, text in changed.items():
            page.write_text(text)
    return int(args.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
