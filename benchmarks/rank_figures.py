"""Figures of Level 2 from benchmarks/results/ranks.json: fidelity (Fig. 9), ablation (Fig. 11), accuracy against EDP (Fig. 12).

python -m benchmarks.rank_figures --output docs/figures
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.tables import RESULTS
from heat_hf.reports.figures.ranks import draw_ablation, draw_fidelity
from heat_hf.reports.figures.tradeoff import Panel, draw_tradeoff

STAGES = {
    "outputs": "untrained, activation-aware projection",
    "loss": "untrained, loss-aware projection",
    "retrained": "after the same short re-training",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=Path)
    folder = parser.parse_args().output
    data = json.loads((RESULTS / "ranks.json").read_text())
    fidelity, retrained = data["supernet"]["fidelity"], data["retrained_subnets"]
    draw_fidelity(
        list(zip(fidelity["measured"], fidelity["predicted"], strict=True)),
        folder / "figure-9.png",
        (fidelity["spearman"], fidelity["kendall"]),
        [(row["accuracy"], row["predicted"]) for row in retrained],
    )
    ablation = data["ablation"]
    steps = next(iter(ablation.values()))["steps"]
    count = len(next(iter(ablation.values()))["accuracies"])
    title = f"The same {count} SubNets after {steps} steps; below the full recipe, one stabilizer left out each"
    draw_ablation({name: runs["accuracies"] for name, runs in ablation.items()}, folder / "figure-11.png", title)
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for stage, label in STAGES.items():
        for row in data["rows"].values():
            if stage in row:
                method = "random" if row["method"].startswith("random-") else row["method"]
                panels.setdefault(label, {}).setdefault(method, []).append((row["edp_ratio"], row[stage]["accuracy"]))
    for methods in panels.values():  # of low rank, manual is uniform; folded ones lie far below and are in the table
        for method in [name for name in methods if name.startswith("manual")]:
            del methods[method]
    drawn = [Panel(label, "accuracy", methods, data["dense"]) for label, methods in panels.items()]
    draw_tradeoff(drawn, folder / "figure-12.png", f"{data['model']}, validation accuracy")


if __name__ == "__main__":
    main()
