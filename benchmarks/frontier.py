"""From a dense sentence encoder to static embeddings: STS-B against sentences a second, every model in every runtime here.

Compressed models, those with fewer blocks, and a static model that model2vec makes of the dense one: a table of vectors of
tokens, whose mean is the embedding. All embed the same sentences, tokenized and batched, and take turns in every round.

    python -m benchmarks.frontier DENSE STUDENT… --data DATA --output FILE --figure docs/figures/frontier.png
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer

import heat_hf  # noqa: F401 - registers the models
from benchmarks.alternatives import in_int8
from benchmarks.provenance import captioned, provenance, source_line
from benchmarks.untrained import sentences
from heat_hf.encoders.batches import calibration_batches
from heat_hf.encoders.checkpoints.storage import temporary_directory
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.tasks import evaluate_task
from heat_hf.evaluation.tasks.sentence_similarity import sentence_embeddings
from heat_hf.hardware.machine.race import race
from heat_hf.hardware.machine.runtimes import torch_threads
from heat_hf.integrations.bench import ways
from heat_hf.integrations.exported import EXPORTED
from heat_hf.integrations.exporting import written
from heat_hf.reports.figures.style import COLOURS, save_figure, tidy_axes
from heat_hf.search.shapes.pareto import pareto_front
from recipes.evidence import write_json

BATCH, CALIBRATION = 32, 128
STATIC, DIMENSIONS = "static, of its tokens (model2vec)", 256
Embed = Callable[[Sequence[str]], Any]


class Candidate(NamedTuple):
    """A model in a runtime: its Spearman correlation in STS-B, and what embeds sentences."""

    model: str
    way: str
    score: float
    embed: Embed


def in_every_way(folder: str, name: str, args: argparse.Namespace, scratch: Path) -> Iterator[Candidate]:
    """A model of Transformers in all runtimes and precisions that are installed."""
    model, tokenizer = AutoModel.from_pretrained(folder).float().eval(), AutoTokenizer.from_pretrained(args.models[0])
    test = load_rows(args.data / "stsb" / "test.parquet").to_dict()
    texts = sentences(args.data / "text" / "train.parquet", "text", args.seed)[:CALIBRATION]
    rows = calibration_batches(texts, tokenizer, batch_size=1)
    found, _ = ways(None, None, calibration=True)
    with written(model, tokenizer) as graph:
        for way in found:
            if way.runtime == "torch":
                runner = in_int8(model) if way.precision == "int8" else model
            else:
                kind, place = EXPORTED[way.runtime], scratch / f"{name}-{way.runtime}-{way.precision}"
                graph.place(kind, place, way.precision == "int8", rows)
                runner = kind(place, args.threads).eval()
            score = evaluate_task(runner, tokenizer, "sentence-similarity", test)["spearman"]
            embed = partial(sentence_embeddings, runner, tokenizer, batch_size=BATCH)
            yield Candidate(name, f"{way.runtime} {way.precision}", score, embed)


def static(folder: str, args: argparse.Namespace) -> Candidate:
    """What model2vec makes of a model without training: its embeddings of single tokens, less their main directions."""
    from model2vec.distill import distill_from_model

    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    made = distill_from_model(model, tokenizer, device="cpu", pca_dims=DIMENSIONS)
    test = load_rows(args.data / "stsb" / "test.parquet")
    first, second = (made.encode(list(test[name])) for name in ("sentence1", "sentence2"))
    cosines = (first * second).sum(1) / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))
    return Candidate(STATIC, "numpy", float(spearmanr(cosines, test["score"])[0]), made.encode)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each candidate."""
    texts = list(load_rows(args.data / "stsb" / "test.parquet")["sentence1"])[: args.sentences]
    names = args.names or [Path(folder).name for folder in args.models]
    with torch_threads(args.threads), temporary_directory() as scratch:
        found = [
            one for folder, name in zip(args.models, names, strict=True) for one in in_every_way(folder, name, args, scratch)
        ]
        found.append(static(args.models[0], args))
        with torch.inference_mode():
            seconds = race({str(number): partial(one.embed, texts) for number, one in enumerate(found)}, args.repeats)
    rows = []
    for number, one in enumerate(found):
        ratios = [before / now for now, before in zip(seconds[str(number)], seconds["0"], strict=True)]
        low, times, high = statistics.quantiles(ratios, n=4)
        speed = len(texts) / statistics.median(seconds[str(number)])
        rows.append({"model": one.model, "way": one.way, "score": one.score, "sentences_s": speed})
        rows[-1] |= {"times": times, "lower": low, "upper": high}
    return rows


def best(rows: Sequence[dict[str, Any]]) -> list[bool]:
    """Which rows nothing beats both in score and in speed."""
    return [bool(kept) for kept in pareto_front([(-row["sentences_s"], -row["score"]) for row in rows])]


def table(data: dict[str, Any]) -> str:
    """Every model in every runtime, the slowest first; in bold what nothing beats in both."""
    lines = ["| model | runs in | STS-B | sentences a second | times as fast |", "|---|---|---:|---:|---:|"]
    kept = best(data["rows"])
    for row, on_front in sorted(zip(data["rows"], kept, strict=True), key=lambda pair: pair[0]["sentences_s"]):
        name = f"**{row['model']}**" if on_front else row["model"]
        spread = f"{row['times']:.1f} ({row['lower']:.1f}–{row['upper']:.1f})"
        lines.append(f"| {name} | {row['way']} | {row['score']:.4f} | {row['sentences_s']:,.0f} | {spread} |")
    caption = (
        f"STS-B test, Spearman. {data['sentences']} of its sentences, batches of {BATCH} by length, tokenizing included, "
        f"{data['threads']} thread(s); medians of {data['repeats']} rounds, quartiles. Bold: nothing is better in both."
    )
    return captioned(lines, caption, source_line(data))


def draw(data: dict[str, Any], path: Path) -> None:
    """Score over sentences a second; a colour for each model, a line through what nothing beats."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    rows = data["rows"]
    front = sorted((row for row, kept in zip(rows, best(rows), strict=True) if kept), key=lambda row: row["sentences_s"])
    axes.plot(*zip(*map(_point, front), strict=True), color="grey", linewidth=1, zorder=1)
    for number, name in enumerate(dict.fromkeys(row["model"] for row in rows)):
        own = [row for row in rows if row["model"] == name]
        colour = COLOURS[number % len(COLOURS)]
        axes.scatter(
            [row["sentences_s"] for row in own], [row["score"] for row in own], s=40, color=colour, label=name, zorder=2
        )
    for number, row in enumerate(front):
        shift = (0, 8) if number % 2 else (0, -14)
        axes.annotate(
            row["way"], (row["sentences_s"], row["score"]), shift, textcoords="offset points", ha="center", fontsize=8
        )
    axes.set(xscale="log", xlabel="sentences a second", ylabel="STS-B, Spearman")
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    tidy_axes(axes)
    save_figure(figure, path)


def _point(row: dict[str, Any]) -> tuple[float, float]:
    return row["sentences_s"], row["score"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="folders, the dense one first")
    parser.add_argument("--names", nargs="+", help="of the models; default: the folders'")
    parser.add_argument("--data", required=True, type=Path, help="folder with stsb and text")
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    command = f"python -m benchmarks.frontier DENSE STUDENT --data DATA --threads {args.threads} --output FILE --figure FILE"
    about = {name: getattr(args, name) for name in ("sentences", "repeats", "threads")}
    packages = ("torch", "transformers", "onnxruntime", "openvino", "model2vec")
    data = {**provenance(command, *packages), **about, "rows": measure(args)}
    write_json(args.output, data)
    if args.figure is not None:
        draw(data, args.figure)
    print(json.dumps(data["rows"], indent=1))


if __name__ == "__main__":
    main()
