"""What the paper's Level 2 took and gave beside the training-free search."""

from __future__ import annotations

import statistics

from benchmarks.provenance import captioned, source_line

LEVEL_TWO = {"prior": "`sensitivity`'s losses alone, without a SuperNet", "prior and forest": "them, corrected by the forest"}


def table(data: dict) -> str:
    """What the SuperNet took and gave, and its ablation."""
    count = len(next(iter(data["ablation"].values()))["accuracies"])
    lines = [
        "| SuperNet | |",
        "|---|---|",
        *(f"| {label} | {figure} |" for label, figure in (*_supernet_times(data), *_supernet_fidelity(data))),
        "",
        "| SuperNet's training | median accuracy of SubNets | median divergence | steps |",
        "|---|---:|---:|---:|",
    ]
    for name, runs in data["ablation"].items():
        accuracy, lost = statistics.median(runs["accuracies"]), statistics.median(runs["divergences"])
        label = name if name == "full recipe" else f"without it: {name}"
        lines.append(f"| {label} | {accuracy:.4f} | {lost:.4f} | {runs['steps']} |")
    caption = f"Second table: the same {count} SubNets of all sizes each, on {data['rows_used']['score']} rows."
    return captioned(lines, caption, source_line(data))


def _supernet_times(data: dict) -> list[tuple[str, str]]:
    net, seconds = data["supernet"], data["sensitivity"]["seconds"]
    whole = net["train_seconds"] + net["evaluate_seconds"] + net["search_seconds"]
    models = [(name, run["seconds"]) for name, run in data["speed"].items() if isinstance(run, dict)]
    return [
        (f"{net['steps']} steps of training", f"{net['train_seconds'] / 60:.1f} min"),
        (f"{net['subnets']} SubNets measured on {data['rows_used']['SubNets']}", f"{net['evaluate_seconds'] / 60:.1f} min"),
        ("both, and the search", f"{whole / 60:.1f} min"),
        ("`sensitivity` instead", f"{seconds:.0f} s, 1/{whole / seconds:.0f} of it"),
        *((f"`sensitivity` from loaded model to variants, {name}", f"{spent:.0f} s") for name, spent in models),
        (
            "networks that evolution looks at in a second, predictions included, on one core",
            f"{data['speed']['candidates_per_second']:,.0f}",
        ),
    ]


def _supernet_fidelity(data: dict) -> list[tuple[str, str]]:
    net, fidelity = data["supernet"], data["supernet"]["fidelity"]
    retrained = f"predicted accuracy beside that of {len(data['retrained_subnets'])} re-trained SubNets"
    return [
        (
            f"predicted accuracy beside that of {fidelity['networks']} held-out SubNets",
            f"Spearman {fidelity['spearman']:.3f}, Kendall {fidelity['kendall']:.3f}",
        ),
        (retrained, f"Spearman {data['retrained_spearman']:.3f}"),
        *(
            (f"both, predicted by {LEVEL_TWO[name]}", f"Spearman {held:.3f} and {again:.3f}")
            for name, (held, again) in data["combined"]["spearman"].items()
            if name in LEVEL_TWO
        ),
        *(
            (
                f"searched network at {gain}×, SuperNet's cores: accuracy predicted / on those rows / on validation",
                f"{scores['predicted']:.4f} / {scores['measured']:.4f} / {scores['validation']:.4f}",
            )
            for gain, scores in net["searched"].items()
        ),
    ]
