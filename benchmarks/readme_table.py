"""README's table: what a reader compares first, gathered from several benchmarks."""

from __future__ import annotations

import statistics

from benchmarks.provenance import captioned


def readme(distillation: dict, exported: dict, untrained: dict) -> str:
    """Dense, int8, dropped blocks and one rank for all beside what is searched, on a sentence encoder and on a classifier."""
    lines = [
        "| task | model | EDP gain | CPU time | not distilled | distilled |",
        "|---|---|---:|---:|---:|---:|",
        *(
            f"| {' | '.join(cells)} |"
            for cells in (
                *_encoder(distillation, exported),
                *_untrained(untrained, "STS-B"),
                *_classifier(distillation),
                *_untrained(untrained, "SST-2"),
            )
        ),
    ]
    dense = next(iter(_rows(distillation, "SST-2")))["teacher_score"]
    caption = (
        f"MiniLM; Spearman on STS-B, accuracy on SST-2 (dense {dense:.4f}). EDP: ΣE·ΣT of the encoder's matrices, 128 tokens, "
        "simba-l. CPU time: 8 × 128 tokens, over dense PyTorch. int8: by ONNX Runtime."
    )
    return captioned(lines, caption, f"Measured on {distillation['machine']}.")


def _encoder(distillation: dict, exported: dict) -> list[tuple[str, ...]]:
    models = exported["models"]
    dense, int8, ours = (models[name] for name in ("dense, PyTorch", "dense, ONNX Runtime int8", "HEAT, PyTorch"))
    small = max(_rows(distillation, "STS-B"), key=lambda row: row["edp_gain"])
    gain = f"{small['edp_gain']:.2f}×"
    return [
        ("STS-B", "dense", "1×", _time(dense), f"{dense['score']:.4f}", ""),
        ("STS-B", "dense, int8", "", _time(int8), f"{int8['score']:.4f}", ""),
        ("STS-B", "HEAT, ranks alone", gain, _time(ours), f"{small['untrained_score']:.4f}", f"{small['score']:.4f}"),
    ]


def _untrained(untrained: dict, data: str) -> list[tuple[str, ...]]:
    """Dropped blocks on the sentence encoder, and ranks with widths, refined and not trained."""
    wanted = {
        "STS-B": (("every other block dropped", 4), ("ranks and widths, refined", 5.7), ("ranks and widths, refined", 10)),
        "SST-2": (("ranks and widths, refined", 10),),
    }
    by_key = {(row["data"], row["structure"], row["gain"]): row for row in untrained["rows"]}
    cells = []
    for structure, gain in wanted[data]:
        row = by_key[data, structure, gain]
        label, gained = structure.replace("ranks", "HEAT, ranks"), f"{1 / row['edp_ratio']:.2f}×"
        cells.append((data, label, gained, f"{row['time']:.2f}", f"{row['score']:.4f}", ""))
    return cells


def _time(model: dict) -> str:
    _, median, _ = model["time"]["8 × 128"]
    return f"{median:.2f}"


def _rows(distillation: dict, dataset: str) -> list[dict]:
    return [row for row in distillation["rows"].values() if row.get("dataset") == dataset]


def _classifier(distillation: dict) -> list[tuple[str, ...]]:
    asked = ("low_rank", "manual", "HEAT-a1")
    rows = [row for row in _rows(distillation, "SST-2") if (row["decomposition"], row["rank_search"], row["variant"]) == asked]
    score = statistics.mean(row["score"] for row in rows)
    gain, before = f"{rows[0]['edp_gain']:.2f}×", f"{rows[0]['untrained_score']:.4f}"
    return [("SST-2", "one rank for all", gain, "", before, f"{score:.4f}")]
