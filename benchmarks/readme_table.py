"""README's table: what a reader compares first, gathered from several benchmarks."""

from __future__ import annotations

import statistics

from benchmarks.provenance import captioned


def readme(distillation: dict, exported: dict, shapes: dict, untrained: dict) -> str:
    """Dense, int8, dropped blocks and plain SVD beside what is searched, on a sentence encoder and on a classifier."""
    lines = [
        "| task | model | EDP gain | CPU time | not distilled | distilled |",
        "|---|---|---:|---:|---:|---:|",
        *(
            f"| {' | '.join(cells)} |"
            for cells in (
                *_encoder(distillation, exported, shapes),
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


def _encoder(distillation: dict, exported: dict, shapes: dict) -> list[tuple[str, ...]]:
    models = exported["models"]
    plain = next(row for row in shapes["rows"] if _is_plain_svd(row))
    dense, int8, ours, both = (
        models[name] for name in ("dense, PyTorch", "dense, ONNX Runtime int8", "HEAT, PyTorch", "HEAT, ONNX Runtime int8")
    )
    small, large = (row for row in sorted(_rows(distillation, "STS-B"), key=lambda row: -row["edp_gain"]))
    gain = f"{small['edp_gain']:.2f}×"
    return [
        ("STS-B", "dense", "1×", _time(dense), f"{dense['score']:.4f}", ""),
        ("STS-B", "dense, int8", "", _time(int8), f"{int8['score']:.4f}", ""),
        ("STS-B", "plain SVD, one share for all", f"{1 / plain['edp_ratio']:.2f}×", "", f"{plain['score']:.4f}", ""),
        ("STS-B", "HEAT", f"{large['edp_gain']:.2f}×", "", f"{large['untrained_score']:.4f}", f"{large['score']:.4f}"),
        ("STS-B", "HEAT", gain, _time(ours), f"{small['untrained_score']:.4f}", f"{small['score']:.4f}"),
        ("STS-B", "HEAT, int8", gain, _time(both), "", f"{both['score']:.4f}"),
    ]


def _untrained(untrained: dict, data: str) -> list[tuple[str, ...]]:
    """Dropped blocks, and ranks with widths, refined and not trained."""
    wanted = ("every other block dropped", "ranks and widths, refined")
    rows = sorted(
        (row for row in untrained["rows"] if row["data"] == data and row["structure"] in wanted), key=lambda r: r["gain"]
    )
    return [
        (
            data,
            row["structure"].replace("ranks", "HEAT, ranks"),
            f"{1 / row['edp_ratio']:.2f}×",
            f"{row['time']:.2f}",
            f"{row['score']:.4f}",
            "",
        )
        for row in rows
    ]


def _is_plain_svd(row: dict) -> bool:
    return (row["task"], row["format"], row["method"], row["activation_aware"]) == ("STS-B", "low_rank", "manual", False)


def _time(model: dict) -> str:
    _, median, _ = model["time"]["8 × 128"]
    return f"{median:.2f}"


def _rows(distillation: dict, dataset: str) -> list[dict]:
    return [row for row in distillation["rows"].values() if row.get("dataset") == dataset]


def _classifier(distillation: dict) -> list[tuple[str, ...]]:
    cells = []
    for label, method in (("one rank for all", "manual"), ("HEAT", "sensitivity")):
        asked = ("low_rank", method, "HEAT-a1")
        rows = [
            row for row in _rows(distillation, "SST-2") if (row["decomposition"], row["rank_search"], row["variant"]) == asked
        ]
        score = statistics.mean(row["score"] for row in rows)
        cells.append(("SST-2", label, f"{rows[0]['edp_gain']:.2f}×", "", f"{rows[0]['untrained_score']:.4f}", f"{score:.4f}"))
    return cells
