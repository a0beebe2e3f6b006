"""Write the result tables of README and documentation from the files under benchmarks/results. Run by `make results`.

With `--check`, change nothing and fail if a table does not agree with its file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import cost_tables as costs
from benchmarks import distillation_tables as distilled
from benchmarks import equal_loss, from_scratch, growth, processes, runtimes, vocabulary, whole_blocks
from benchmarks import machine_tables as machine
from benchmarks import strassen_tables as tiles
from benchmarks import supernet_table as supernet
from benchmarks.provenance import captioned, source_line
from benchmarks.readme_table import readme

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PROJECTIONS = {"plain": "plain", "outputs": "activation-aware", "loss": "loss-aware"}


def training_free(data: dict) -> str:
    """Plain, activation-aware and, where measured, loss-aware projection, a row for each format and size."""
    groups: dict[tuple, dict[str, dict]] = {}
    for row in data["rows"]:
        groups.setdefault((row["decomposition"], row["shape"], row["target"]), {})[row["projection"]] = row
    measured = {kind for rows in groups.values() for kind in rows}
    kinds = {kind: label for kind, label in PROJECTIONS.items() if kind in measured}
    lines = [
        f"| format | shape | parameters | {' | '.join(kinds.values())} | output error | MACs |",
        "|---|---|" + "---:|" * (len(kinds) + 3),
    ]
    for (name, shape, _), rows in groups.items():
        if "outputs" not in rows:  # the run is not finished
            continue
        scores = (f"{rows[kind]['spearman']:.4f}" if kind in rows else "" for kind in kinds)
        aware = rows["outputs"]
        lines.append(
            f"| {name} | {shape} | {aware['params_ratio']:.2f} | {' | '.join(scores)} "
            f"| {aware['output_error']:.3f} | {aware['macs_ratio']:.2f} |"
        )
    caption = (
        f"{data['model']}, {data['task']}, Spearman; dense {data['dense']:.4f}. No training. Calibration: "
        f"{data['calibration']}. Output error and MACs are those of the activation-aware projection."
    )
    return captioned(lines, caption, source_line(data))


def linear(data: dict) -> str:
    """Time of one layer relative to dense, a row for each layer, a column for each size and number of tokens."""
    columns = list(dict.fromkeys((row["size"], row["tokens"]) for row in data["rows"]))
    cells = {(row["layer"], row["size"], row["tokens"]): row for row in data["rows"]}
    lines = [
        "| layer | " + " | ".join(f"{size}, {tokens}" for size, tokens in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for layer in dict.fromkeys(row["layer"] for row in data["rows"]):
        rows = [cells[layer, *column] for column in columns]
        texts = [f"{row['time']:.2f} ({row['lower']:.2f}–{row['upper']:.2f})" for row in rows]
        lines.append(f"| {layer} | " + " | ".join(texts) + " |")
    caption = (
        "Time of a forward pass over that of the dense layer, median and quartiles; columns are matrix size and number of "
        f"tokens. Factorized layers have {data['ratio']:g} of the dense parameters."
    )
    return captioned(lines, caption, source_line(data))


def untrained(data: dict) -> str:
    """What compression reaches without training, a row for each EDP gain and structure."""
    lines = [
        "| data | EDP gain | what | score | parameters | CPU time | minutes |",
        "|---|---:|---|---:|---:|---:|---:|",
        *(f"| {name} | 1× | dense | {score:.4f} | 1.00 | 1.00 | |" for name, score in data["dense"].items()),
    ]
    groups: dict[tuple, list[dict]] = {}
    for row in data["rows"]:
        groups.setdefault((list(data["dense"]).index(row["data"]), row["gain"], row["structure"]), []).append(row)
    for _, (row, *others) in sorted(groups.items(), key=lambda own: own[0][:2]):
        note = f", {row['bytes_ratio']:.2f} of the bytes" if "bytes_ratio" in row else ""
        head = f"| {row['data']} | {row['gain']:g}× | {row['structure']}{note} |"
        if "unreachable" in row:
            lines.append(f"{head} out of reach | | | |")
            continue
        minutes = f"{row['seconds'] / 60:.1f}" if row["seconds"] else ""
        scores = [row["score"], *(other["score"] for other in others)]
        score = f"{statistics.median(scores):.4f}" + (f" ({min(scores):.4f}–{max(scores):.4f})" if others else "")
        lines.append(f"{head} {score} | {row['params_ratio']:.2f} | {row['time']:.2f} | {minutes} |")
    caption = (
        "MiniLM; Spearman on STS-B test, accuracy on SST-2 validation; of several seeds median and range. EDP, parameters: of "
        "matrices, 128 tokens, simba-l. CPU time: 8 × 128 tokens, over dense. Minutes: processor time."
    )
    return captioned(lines, caption, source_line(data))


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
    caption = f"Start to end with {data['rows'][0]['workers']} processes, loading included; memory of all of them together."
    return captioned(lines, caption, source_line(data))


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
        cells = [rows.get((task, name, method, aware)) for task in tasks for aware in (False, True)]
        scores = " | ".join("" if row is None else f"{row['score']:.4f}" for row in cells)
        label = {"pareto": "searched", "tensorly": "TensorLy's ranks"}.get(method, method)
        lines.append(
            f"| {name} | {label} | {first['params_ratio']:.3f} | {first['edp_ratio']:.3f} | {first['error']:.3f} | {scores} |"
        )
    caption = (
        "all-MiniLM-L6-v2 on STS-B test (Spearman), a MiniLM classifier on SST-2 validation (accuracy); no training, seed "
        f"{data['seed']}. Parameters, EDP and weight error: those of {tasks[0]}, plain. Calibrated: activation-aware, "
        f"{data['calibration_rows']:,} sentences."
    )
    return captioned(lines, caption, source_line(data))


def ranks(data: dict) -> str:
    """Accuracy of every method at every budget: untrained by either projection, and re-trained alike."""
    gains = sorted({row["gain"] for row in data["rows"].values()})
    stages = {"outputs": "outputs", "loss": "loss", "retrained": "re-trained"}
    heads = " | ".join(f"{gain:g}× {label}" for gain, label in itertools.product(gains, stages.values()))
    lines = [f"| ranks by | {heads} |", "|---" + "|---:" * (len(gains) * len(stages)) + "|"]
    for label, methods in _methods(data).items():
        pick = max if "best" in label else statistics.median
        cells = []
        for gain, stage in itertools.product(gains, stages):
            scores = [scored for name in methods if (scored := data["rows"][f"{name} {gain:g}"].get(stage)) is not None]
            cells.append(_score(scores, pick) if scores else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    caption = (
        f"{data['model']}, dense {data['dense']:.4f}, at three EDP gains: accuracy, in brackets divergence from the dense "
        "model in nats. Outputs, loss: untrained, projected activation-aware, loss-aware. Re-trained: from the latter, "
        f"{data['retrain_steps']} steps. Low rank unless named."
    )
    return captioned(lines, caption, source_line(data))


def losses(data: dict) -> str:
    """What losses sum to, and what is expected, beside measured divergence, of random networks."""
    lines = [
        "| data | networks | divergence | losses: rank correlation | divergence over their sum | expected: rank correlation "
        "| divergence over it | within 1.25 | within 1.5 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, own in data["summary"].items():
        figures = [row["measured"] for row in data["rows"][name]]
        ratios, known = (", ".join(f"{ratio:.2f}" for ratio in own[key]) for key in ("ratios", "expected_ratios"))
        within = " | ".join(f"{own['within'][factor]:.0%}" for factor in ("1.25", "1.5"))
        lines.append(
            f"| {name} | {own['networks']} | {min(figures):.4f}–{max(figures):.3f} | {own['spearman']:.3f} | {ratios} "
            f"| {own['expected_spearman']:.3f} | {known} | {within} |"
        )
    caption = (
        "MiniLM; random ranks, widths and groups, projected, not refined. Divergence: on 2,048 other sentences; STS-B: "
        "one minus cosine, SST-2: Kullback-Leibler. Ratios: least, median, most; rank correlation: Spearman's."
    )
    return captioned(lines, caption, source_line(data))


def _methods(data: dict) -> dict[str, list[str]]:
    """Label of a table's row → the methods that it sums up: each alone, but for random ranks."""
    methods = list(dict.fromkeys(row["method"] for row in data["rows"].values()))
    drawn = sorted(name for name in methods if name.startswith("random-"))
    alone = {name: [name] for name in methods if name not in drawn}
    return alone | {f"random, {label} of {len(drawn)}": drawn for label in ("median", "best")}


def _score(scores: list[dict], pick: Callable[[Iterable[float]], float]) -> str:
    """Accuracy, and the divergence that a picker of accuracies would pick: small is good."""
    apart = -pick(-score["divergence"] for score in scores)
    return f"{pick(score['accuracy'] for score in scores):.4f} ({apart:.3f})"


def exported(data: dict) -> str:
    """Score, size and time of exported models."""
    sizes = list(next(iter(data["models"].values()))["time"])
    heads = "".join(f" time {size} |" for size in sizes)
    lines = [f"| model | {data['metric']} | MiB |{heads}", "|---|---:|---:|" + "---:|" * len(sizes)]
    for name, model in data["models"].items():
        times = "".join(f" {median:.2f} ({low:.2f}–{high:.2f}) |" for low, median, high in model["time"].values())
        lines.append(f"| {name} | {model['score']:.4f} | {model['MiB']:.1f} |{times}")
    caption = (
        f"{data['test']}, {data['rows_count']:,} rows. Time of a forward pass of rows × tokens over that of the dense model in "
        f"PyTorch in the same round, median and quartiles, {data['threads']} threads. MiB: weights, or the ONNX file."
    )
    return captioned(lines, caption, source_line(data))


# Marker in a page → what makes the table, and the stems of the result files it is made from.
TABLES: dict[str, tuple[Callable[..., str], *tuple[str, ...]]] = {
    "readme": (readme, "distillation", "exported", "distilled"),
    "training_free": (training_free, "training_free"),
    "untrained": (untrained, "untrained"),
    "blocks": (machine.blocks, "blocks"),
    "linear": (linear, "linear"),
    "cost_agreement": (costs.agreement, "cost"),
    "cost_figures": (costs.figures, "cost"),
    "cost_paper": (costs.paper, "cost"),
    "equal_loss": (equal_loss.table, "equal_loss"),
    "shapes_speed": (shapes_speed, "shapes_speed"),
    "shapes": (shapes, "shapes"),
    "ranks": (ranks, "ranks"),
    "losses": (losses, "losses"),
    "ranks_supernet": (supernet.table, "ranks"),
    "distilled": (distilled.classification, "distillation"),
    "faster": (distilled.faster, "distillation"),
    "recipes": (distilled.recipes, "distillation"),
    "embeddings": (distilled.embeddings, "distillation"),
    "beside": (distilled.beside, "distilled"),
    "question_answering": (distilled.question_answering, "question_answering"),
    "reader": (distilled.reader, "reader"),
    "exported": (exported, "exported"),
    "runtimes": (runtimes.table, "runtimes"),
    "runtimes_repeated": (runtimes.repeated, "runtimes_repeated"),
    "machine": (machine.machine, "machine"),
    "machine_search": (machine.machine_search, "machine_search"),
    "amdahl": (machine.amdahl, "amdahl"),
    "frontier": (machine.frontier, "frontier"),
    "training_step": (machine.training_step, "training_step"),
    "serving": (machine.serving, "serving"),
    "tensorly_layers": (machine.tensorly_layers, "tensorly_layers"),
    "vocabulary": (vocabulary.table, "vocabulary"),
    "embedding_ranks": (vocabulary.ranks_table, "vocabulary"),
    "step_cost": (distilled.step_cost, "distillation"),
    "processes": (processes.table, "processes"),
    "growth": (growth.table, "growth"),
    "whole_blocks": (whole_blocks.table, "whole_blocks"),
    "tile_algorithms": (tiles.algorithms, "strassen_tile"),
    "tile_starts": (tiles.starts, "strassen_tile"),
    "tile_sharing": (tiles.sharing, "strassen_tile"),
    "tile_costs": (tiles.costs, "strassen_tile"),
    "tile_steps": (tiles.steps, "strassen_tile"),
    "tile_trained": (tiles.trained, "strassen_trained"),
    "from_scratch": (from_scratch.table, "from_scratch"),
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
        results = [json.loads((RESULTS / f"{stem}.json").read_text()) for stem in stems]
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
