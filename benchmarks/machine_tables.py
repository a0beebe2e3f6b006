"""Tables of times on the machine at hand: how well they are known, and what they are in runtimes, servers and training."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.provenance import captioned, source_line

INSTRUCTIONS = {"avx512_vnni": "VNNI", "amx_int8": "AMX"}


def processor(found: dict[str, Any]) -> str:
    """What a measurement is of: its name, and the instructions that int8 takes."""
    name, _, flags = found["device"].replace("(R)", "").replace(" Processor", "").partition(" avx2")
    return name + "".join(f", {label}" for flag, label in INSTRUCTIONS.items() if flag in flags)


def machine(data: dict) -> str:
    """A row for each runtime, precision and number of tokens: layers held out, and whole models."""
    lines = [
        "| runs in | processor | tokens | layers held out | median error | largest | Spearman "
        "| whole models, predicted / measured |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for name, found in data["runtimes"].items():
        for tokens, layers in found["held_out"].items():
            share = layers["share"]
            models = [row for row in found["models"] if row["tokens"] == tokens and row["model"] != "dense"]
            errors = ", ".join(f"{1 + row['error']:.2f}" for row in models)
            lines.append(
                f"| {name} | {processor(found)} | {tokens} "
                f"| {layers['layers']} | {share['median_error']:.1%} | {share['largest_error']:.0%} "
                f"| {share['spearman']:.3f} | {errors} |"
            )
    rows = next(iter(data["runtimes"].values()))["models"]
    names = dict.fromkeys(row["model"] for row in rows if row["model"] != "dense")
    caption = f"all-MiniLM-L6-v2, threads: {data['threads']}. Layers: time over the dense one's. Models: {'; '.join(names)}."
    return captioned(lines, caption, source_line(data))


def machine_search(data: dict[str, Any]) -> str:
    """A row for each runtime, precision and gain."""
    lines = ["| runs in | processor | EDP gain | simba-l's, of dense | this machine's, of dense "
             "| one over the other | predicted |",
             "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for row in data["rows"]:
        (chip, here), (low, middle, high) = row["of_dense"], row["measured"]
        cells = f"{chip:.2f} | {here:.2f} | {middle:.2f} ({low:.2f}–{high:.2f}) | {row['predicted']:.2f}"
        lines.append(f"| {row['runs in']} | {processor(row)} | {row['gain']}× | {cells} |")
    caption = (
        f"all-MiniLM-L6-v2, 8 × 128 tokens, threads: {data['threads']}. Networks of a search for simba-l's "
        "EDP and from one for the time here, at equal predicted loss; whole networks, medians and quartiles of rounds."
    )
    return captioned(lines, caption, source_line(data))


def amdahl(data: dict[str, Any]) -> str:
    """Two rows for each way: the dense model's and the compressed one's."""
    kinds = list(next(iter(data["ways"].values()))["dense"])
    lines = [f"| runs in | model | {' | '.join(kinds)} | all, ms | bound | reached |", "|---|---|" + "---:|" * (len(kinds) + 3)]
    for way, own in data["ways"].items():
        for name in ("dense", "compressed"):
            whole = sum(own[name].values())
            cells = " | ".join(f"{own[name][kind] / whole:.0%}" for kind in kinds)
            bound = f"{own['bound']:.2f}× | {own['speedup'] / own['bound']:.0%}" if name == "compressed" else " | "
            lines.append(f"| {way} | {name} | {cells} | {1e3 * whole:.1f} | {bound} |")
    caption = (
        f"MiniLM on SST-2 and its student for this machine, 8 × 128 tokens, threads: {data['threads']}; runtimes' profiles, "
        f"means of 20 passes. Bound: Amdahl's, by multiply-accumulates, heads and neurons left."
    )
    return captioned(lines, caption, source_line(data))


def tensorly_layers(data: dict[str, Any]) -> str:
    """A row for each format and shape: geometric means, and the least, of all sizes and tokens."""
    lines = ["| format | shape | factorized | least | reconstructed | least | the faster of both | least |",
             "|---|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    kinds = dict.fromkeys((row["format"], row["shape"]) for row in data["rows"])
    for format, shape in (*kinds, ("all", "")):
        own = [row["slower"] for row in data["rows"] if format == "all" or (row["format"], row["shape"]) == (format, shape)]
        columns = [[row[way][1] for row in own] for way in ("factorized", "reconstructed")]
        columns.append([min(pair) for pair in zip(*columns, strict=True)])
        cells = " | ".join(f"{statistics.geometric_mean(ratios):.1f} | {min(ratios):.2f}" for ratios in columns)
        lines.append(f"| {format} | {shape} | {cells} |")
    tokens = " and ".join(dict.fromkeys(str(row["tokens"]) for row in data["rows"]))
    sizes = ", ".join(dict.fromkeys(row["size"] for row in data["rows"]))
    caption = (
        f"Time of TensorLy-Torch's layer over ours with the same cores, a tenth of the parameters; geometric mean over "
        f"{sizes}, each with {tokens} tokens, threads: {data['threads']}."
    )
    return captioned(lines, caption, source_line(data))


def serving(data: dict[str, Any]) -> str:
    """A row for each model, way and number of threads."""
    lines = ["| model | runs in | threads | rows/s | sorted, rows/s | p50, ms | p99, ms | cold start, s |",
             "|---|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for row in data["rows"]:
        cells = (
            f"{row['mixed']:.0f} | {row['sorted']:.0f} | {1e3 * row['p50']:.1f} | {1e3 * row['p99']:.1f} | {row['cold']:.1f}"
        )
        lines.append(f"| {row['model']} | {row['runs in']} | {row['threads']} | {cells} |")
    caption = (
        f"SST-2 sentences behind uvicorn on loopback, client on the same machine. Rows a second: batches of 32. p50, p99: "
        f"single requests, {data['rate']} a second for {data['seconds']} s. Cold start: process start to first answer."
    )
    return captioned(lines, caption, source_line(data))


def frontier(data: dict[str, Any]) -> str:
    """From the slowest: each model in PyTorch as it was trained, the fastest way of each, and what nothing beats."""
    lines = ["| model | runs in | Spearman | sentences/s | beaten by none |", "|---|---|---:|---:|---|"]
    ordered = sorted(data["rows"], key=lambda row: row["rate"][1])
    fastest = {row["model"]: row for row in ordered}
    for row in ordered:
        if not (row["undominated"] or row["runs in"] == "torch float32" or row is fastest[row["model"]]):
            continue
        low, middle, high = row["rate"]
        mark = "yes" if row["undominated"] else ""
        lines.append(
            f"| {row['model']} | {row['runs in']} | {row['spearman']:.4f} | {middle:,.0f} ({low:,.0f}–{high:,.0f}) | {mark} |"
        )
    caption = (
        f"all-MiniLM-L6-v2 on STS-B test, batches of 32 sentences by length, tokenizing included, threads: {data['threads']}; "
        f"medians and quartiles of {data['repeats']} rounds. Static: model2vec's distillation."
    )
    return captioned(lines, caption, source_line(data))


def training_step(data: dict[str, Any]) -> str:
    """A row for each model."""
    lines = ["| model | training step | loading |", "|---|---:|---:|"]
    for name in data["step"]["ratios"]:
        quartiles = [data[what]["ratios"][name] for what in ("step", "load")]
        cells = [f"{middle:.2f} ({low:.2f}–{high:.2f})" for low, middle, high in quartiles]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    step_, load = (1e3 * data[what]["dense_seconds"] for what in ("step", "load"))
    caption = (
        f"MiniLM on SST-2 and its students. Time over the dense model's of the same round, medians and quartiles; that takes "
        f"{step_:.0f} ms a step and {load:.0f} ms to load. PyTorch, threads: {data['threads']}."
    )
    return captioned(lines, caption, source_line(data))


def blocks(data: dict) -> str:
    """The search with whole blocks as candidates and without, and blocks dropped evenly."""
    lines = [
        "| data | within | what | blocks dropped, from 0 | score | divergence | parameters | EDP gain | CPU time |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
        *(f"| {name} | | dense | | {score:.4f} | | 1.00 | 1× | 1.00 |" for name, score in data["dense"].items()),
    ]
    order = list(data["dense"])
    for row in sorted(data["rows"], key=lambda row: (order.index(row["data"]), row["where"], -row["gain"])):
        gone = ", ".join(str(number) for number in row["gone"]) or "none"
        apart = "" if row.get("divergence") is None else f"{row['divergence']:.3f}"
        within = "" if row["structure"].endswith("evenly") else f"{row['where']} {row['gain']:g}"
        lines.append(
            f"| {row['data']} | {within} | {row['structure']} | {gone} | {row['score']:.4f} | {apart} "
            f"| {row['params_ratio']:.2f} | {1 / row['edp_ratio']:.1f}× | {row['time']:.2f} |"
        )
    caption = (
        f"MiniLM, untrained, {data['calibration_rows']:,} calibration sentences. Spearman on STS-B test, accuracy on SST-2 "
        "validation. One row where the search drops nothing. EDP on simba-l; CPU time: 8 × 128 tokens over dense, side by side."
    )
    return captioned(lines, caption, source_line(data))
