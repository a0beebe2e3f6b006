"""From a dense sentence encoder to static embeddings: STS-B's Spearman against sentences a second, tokenizing included.

The static models are distilled from the same encoder by model2vec, which is no dependency: pip install 'model2vec[distill]'

    python -m benchmarks.frontier --dense FOLDER --students NAME=FOLDER … --test FILE --output FILE --figure FILE
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy.stats import spearmanr

import heat_hf  # noqa: F401
from benchmarks.provenance import provenance
from heat_hf.encoders.checkpoints.sentence_encoder import sentence_encoder
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.tasks import evaluate_task
from heat_hf.evaluation.tasks.sentence_similarity import sentence_embeddings
from heat_hf.hardware.machine.race import race
from heat_hf.integrations.bench import Loaded, runners, ways
from heat_hf.reports.figures.bench import MARKS
from heat_hf.reports.figures.style import COLOURS, WIDEST, save_figure, tidy_axes
from heat_hf.search.shapes.pareto import pareto_front
from recipes.evidence import write_json

DIMENSIONS = (64, 256)  # of the static models' embeddings
SENTENCES = 128  # of a race, in batches of 32
CALIBRATION = 200
STATIC = "static"

Encode = Callable[[Sequence[str]], Any]


def encoders(folder: str, scratch: Path, rows: Any) -> dict[str, tuple[float, Encode]]:
    """A model in every way that is installed: its score, and what encodes sentences."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    texts = rows["sentence1"][:CALIBRATION]
    calibration = [dict(tokenizer([text], return_tensors="pt", truncation=True, max_length=128)) for text in texts]
    loaded = Loaded(model, tokenizer, sentence_encoder(folder), calibration)
    found = {}
    for way, runner in runners(loaded, ways(None, None, calibration=True)[0], scratch, [torch.get_num_threads()]):
        score = evaluate_task(runner.model, tokenizer, "sentence-similarity", rows)["spearman"]

        def encode(sentences: Sequence[str], own: Any = runner.model) -> Any:
            with torch.inference_mode():
                return sentence_embeddings(own, tokenizer, sentences, 32)

        found[" ".join(way)] = score, encode
    return found


def static(folder: str, rows: Any) -> dict[str, tuple[float, Encode]]:
    """Static models of the encoder's tokens."""
    from model2vec.distill import distill

    found = {}
    for size in DIMENSIONS:
        model = distill(folder, pca_dims=size)
        first, second = (model.encode(list(rows[name])) for name in ("sentence1", "sentence2"))
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        similar = (first * second).sum(1) / np.maximum(lengths, 1e-12)
        found[f"{size} dimensions"] = float(spearmanr(similar, rows["score"]).statistic), model.encode
    return found


def measured(models: Mapping[str, Mapping[str, tuple[float, Encode]]], sentences: Sequence[str], repeats: int) -> list[Any]:
    """Every model's score, and sentences a second with quartiles, all in one race."""
    flat = {(name, way): own for name, ways in models.items() for way, own in ways.items()}
    print("timing", flush=True)
    calls = {str(k): (lambda own=own: own[1](sentences)) for k, own in enumerate(flat.values())}
    rates = [[len(sentences) / seconds for seconds in own] for own in race(calls, repeats).values()]
    rows = []
    for ((name, way), (score, _)), own in zip(flat.items(), rates, strict=True):
        quartiles = statistics.quantiles(own, n=4, method="inclusive")
        rows.append({"model": name, "runs in": way, "spearman": score, "rate": [float(f"{rate:.4g}") for rate in quartiles]})
    kept = pareto_front([(-row["rate"][1], -row["spearman"]) for row in rows])
    for row, keep in zip(rows, kept, strict=True):
        row["undominated"] = bool(keep)
        print(row, flush=True)
    return rows


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Score over sentences a second, and the front: of encoders alone, and with the static models, which are far away."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(WIDEST, 4.4), layout="constrained")
    near, far = figure.subplots(1, 2, width_ratios=(3, 2))
    encoders_ = [row for row in rows if row["model"] != STATIC]
    models, ways_ = (list(dict.fromkeys(row[name] for row in encoders_)) for name in ("model", "runs in"))
    colours = {name: COLOURS[number] for number, name in enumerate([*models, STATIC])}
    marks = {way: MARKS[number] for number, way in enumerate(ways_)}
    front = sorted((row for row in rows if row["undominated"]), key=lambda row: row["rate"][1])
    for axes, own in ((near, encoders_), (far, rows)):
        shown = [_point(row) for row in front if row in own]
        axes.plot(*zip(*shown, strict=True), color="grey", linewidth=1, zorder=1)
        for row in own:
            colour, mark = colours[row["model"]], marks.get(row["runs in"], "*")
            axes.scatter(*_point(row), marker=mark, c=colour, edgecolors="black", linewidths=0.5, zorder=3)
        axes.set(xlabel="sentences a second")
        tidy_axes(axes)
    near.set(ylabel="Spearman on STS-B test", title="encoders")
    far.set(xscale="log", title="with static models")
    handles = [Line2D([], [], linestyle="", marker="o", color=colour, label=name) for name, colour in colours.items()]
    handles += [Line2D([], [], linestyle="", marker=mark, color="grey", label=way) for way, mark in marks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save_figure(figure, path)


def _point(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["rate"][1], row["spearman"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dense", required=True)
    parser.add_argument("--students", nargs="+", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--test", type=Path, required=True, help="rows with sentence1, sentence2, score")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/frontier.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/frontier.png"))
    args = parser.parse_args()
    rows = load_rows(args.test)
    folders = {"dense": args.dense} | dict(student.split("=", 1) for student in args.students)
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: encoders(folder, Path(scratch) / str(k), rows) for k, (name, folder) in enumerate(folders.items())}
        models[STATIC] = static(args.dense, rows)
        found = measured(models, rows["sentence2"][:SENTENCES], args.repeats)
    command = "python -m benchmarks.frontier --dense FOLDER --students NAME=FOLDER … --test FILE --output FILE --figure FILE"
    about = provenance(command, "torch", "onnxruntime", "openvino", "model2vec")
    about |= {"threads": torch.get_num_threads(), "repeats": args.repeats}
    write_json(args.output, {**about, "rows": found})
    draw(found, args.figure)


if __name__ == "__main__":
    main()
