"""The table of how well the machine at hand is known as a cost model."""

from __future__ import annotations

from benchmarks.provenance import captioned, source_line


def machine(data: dict) -> str:
    """A row for each runtime, precision and number of tokens: layers held out, and whole models."""
    lines = [
        "| runs in | tokens | layers held out | median error | largest | Spearman | whole models, predicted / measured |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for name, found in data["runtimes"].items():
        for tokens, layers in found["held_out"].items():
            share = layers["share"]
            models = [row for row in found["models"] if row["tokens"] == tokens and row["model"] != "dense"]
            errors = ", ".join(f"{1 + row['error']:.2f}" for row in models)
            lines.append(
                f"| {name} | {tokens} | {layers['layers']} | {share['median_error']:.1%} | {share['largest_error']:.0%} "
                f"| {share['spearman']:.3f} | {errors} |"
            )
    rows = next(iter(data["runtimes"].values()))["models"]
    names = dict.fromkeys(row["model"] for row in rows if row["model"] != "dense")
    caption = (
        f"all-MiniLM-L6-v2, {data['device'].split(' avx')[0]}, threads: {data['threads']}. Layers: time over the dense one's. "
        f"Models: {'; '.join(names)}."
    )
    return captioned(lines, caption, source_line(data))
