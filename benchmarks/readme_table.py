"""README's table: what a reader compares first, gathered from several benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.distillation_tables import gains
from benchmarks.provenance import captioned

HEAT, STRUCTURE = "HEAT, ranks and widths, refined", "ranks and widths"


def readme(distillation: dict, exported: dict, distilled: dict) -> str:
    """Dense, int8, dropped blocks and one rank for all beside what is searched, on a sentence encoder and on a classifier."""
    lines = [
        "| task | model | EDP gain | CPU time | not distilled | distilled |",
        "|---|---|---:|---:|---:|---:|",
        *(f"| {' | '.join(cells)} |" for cells in (*_encoder(exported, distilled), *_classifier(distillation, distilled))),
    ]
    dense = next(iter(_rows(distillation, "SST-2")))["teacher_score"]
    caption = (
        f"MiniLM; Spearman on STS-B, accuracy on SST-2 (dense {dense:.4f}). EDP: of matrices (of the whole model), 128 "
        "tokens, simba-l. CPU time: 8 × 128 tokens, over dense PyTorch. int8: by ONNX Runtime. Distilled: mean of seeds."
    )
    return captioned(lines, caption, f"Measured on {distillation['machine']}.")


def _encoder(exported: dict, distilled: dict) -> Iterator[tuple[str, ...]]:
    for label, name in (("dense", "dense, PyTorch"), ("dense, int8", "dense, ONNX Runtime int8")):
        model = exported["models"][name]
        _, median, _ = model["time"]["8 × 128"]
        yield "STS-B", label, "1×" if label == "dense" else "", f"{median:.2f}", f"{model['score']:.4f}", ""
    for label, structure, size in (("every other block dropped", "blocks", 3), (HEAT, STRUCTURE, 5.7), (HEAT, STRUCTURE, 10)):
        yield "STS-B", label, *_figures(distilled, "STS-B", structure, size)


def _classifier(distillation: dict, distilled: dict) -> Iterator[tuple[str, ...]]:
    asked = ("low_rank", "manual", "HEAT-a1")
    rows = [row for row in _rows(distillation, "SST-2") if (row["decomposition"], row["rank_search"], row["variant"]) == asked]
    score, gain = statistics.mean(row["score"] for row in rows), f"{rows[0]['edp_gain']:.2f}×"
    yield "SST-2", "one rank for all", gain, "", f"{rows[0]['untrained_score']:.4f}", f"{score:.4f}"
    for size in (10, 20):
        yield "SST-2", HEAT, *_figures(distilled, "SST-2", STRUCTURE, size)


def _figures(distilled: dict, data: str, structure: str, size: float) -> tuple[str, ...]:
    """EDP gains, the first seed's time and score before training, and all seeds' mean score after it."""
    rows = [
        row for row in distilled["rows"].values() if (row["data"], row["structure"], row.get("size")) == (data, structure, size)
    ]
    score = statistics.mean(row["score"] for row in rows)
    return gains(rows[0]), f"{rows[0]['time']:.2f}", f"{rows[0]['untrained_score']:.4f}", f"{score:.4f}"


def _rows(distillation: dict, dataset: str) -> list[dict]:
    return [row for row in distillation["rows"].values() if row.get("dataset") == dataset]
