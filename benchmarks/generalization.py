"""The accuracy predictor on another data set (paper, Fig. 9, middle).

The forest is fitted to SubNets of a classifier on SST-2, whose accuracies `ranks.json` has; 256 others, which it has not seen,
are put into a reader of SQuAD and scored there. Scores are kept as they come, so an interrupted run goes on where it stopped.

    python -m benchmarks.generalization --data DATA --classifier FOLDER --reader FOLDER --cache DIR --results benchmarks/results
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from benchmarks.provenance import captioned, provenance, source_line
from benchmarks.ranks_bench import Bench as Classifier
from benchmarks.reader import SQUAD, Reader
from heat_hf.reports.figures.ranks import draw_fidelity
from heat_hf.search.ranks.predictor import AccuracyPredictor
from heat_hf.search.ranks.supernet import RankSuperNet, Stabilizers, sample_subnets
from heat_hf.search.ranks.supernet_search import supernet_model
from recipes.evidence import write_json

SUBNETS = 256
QUESTIONS = 250
WINDOWS = 4  # batches of 32
STREAM = 11  # of random numbers: no other part of the benchmarks draws from it


class Networks(Classifier):
    """Networks of the same ranks in a reader, projected from its own weights."""

    def __init__(self, reader: Reader) -> None:  # its own rows and statistics take the place of the classifier's
        job = reader.job("low_rank", "sensitivity", 5.7)
        self.dense, self.problem, self.config = reader.dense, job.problem, job.config
        self.factorized = {}


def measured(classifier: Classifier, reader: Reader, results: dict[str, Any], file: Path) -> None:
    """F1 and divergence of unseen SubNets, in the reader."""
    net = RankSuperNet(
        supernet_model(classifier.problem, classifier.space), classifier.space, Stabilizers(normalized_variance=False)
    )
    seed, fitted = results["seed"], classifier.results["supernet"]
    choices = sample_subnets(net, fitted["subnets"], seed)
    predictor = AccuracyPredictor(classifier.space, seed)
    results["same data"] = predictor.fit(choices, fitted["accuracies"]).spearman
    known, rng = {tuple(choice) for choice in choices}, np.random.default_rng([seed, STREAM])
    networks, rows = Networks(reader), results["rows"]
    number = 0
    while number < SUBNETS:
        choice = net.draw(rng)
        if tuple(choice) in known:
            continue
        known.add(tuple(choice))
        if number >= len(rows):
            settings = classifier.space.settings(choice)
            model = networks.model_of(settings)
            predicted = float(predictor.predict(choice[None])[0])
            rows.append({"predicted": predicted, "edp_ratio": classifier.edp_ratio(settings), **reader.figures(model)})
            if len(rows) % 16 == 0:
                print(len(rows), rows[-1], flush=True)
                write_json(file, results)
        number += 1


def table(data: dict[str, Any]) -> str:
    """How the order agrees."""
    results = data["correlations"]
    lines = ["| predicted accuracy on SST-2 beside | networks | Spearman | Kendall |", "|---|---:|---:|---:|"]
    for name, (spearman, kendall) in results.items():
        lines.append(f"| {name} | {len(data['rows'])} | {spearman:.3f} | {kendall:.3f} |")
    caption = (
        f"A forest fitted to 320 SubNets of a classifier on SST-2 (Spearman {data['same data']:.3f} on others there), and the "
        f"same ranks in a reader: {data['questions']} questions, dense F1 {data['dense']:.2f}."
    )
    return captioned(lines, caption, source_line(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with squad and sst2")
    parser.add_argument("--classifier", required=True, help="folder of a MiniLM fine-tuned on SST-2")
    parser.add_argument("--reader", required=True, help="folder of a MiniLM fine-tuned on SQuAD")
    parser.add_argument("--cache", required=True, type=Path)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/figure-9-squad.png"))
    args = parser.parse_args()
    file = args.results / "generalization.json"
    results = json.loads(file.read_text()) if file.exists() else {"rows": []}
    command = "python -m benchmarks.generalization --data DATA --classifier FOLDER --reader FOLDER --cache DIR"
    about = json.loads((args.results / "ranks.json").read_text())
    args.command, args.output, args.seed, args.steps = (
        command,
        args.results / "ranks.json",
        about["seed"],
        about["supernet"]["steps"],
    )
    reader = Reader(SQUAD, args.reader, args, "reader.json")
    reader.test, reader.unseen = reader.test.select(range(QUESTIONS)), reader.unseen[:WINDOWS]
    results |= {"seed": args.seed, "questions": QUESTIONS, "dense": reader.teacher_score}
    results |= provenance(command, "torch", "transformers", "scikit-learn")
    measured(Classifier(args), reader, results, file)
    predicted, scores, lost = ([row[name] for row in results["rows"]] for name in ("predicted", "score", "divergence"))
    results["correlations"] = {
        name: [float(kind(predicted, values).statistic) for kind in (spearmanr, kendalltau)]
        for name, values in (("F1 on SQuAD", scores), ("less divergence there", [-value for value in lost]))
    }
    write_json(file, results)
    pairs = list(zip(scores, predicted, strict=True))
    draw_fidelity(pairs, args.figure, tuple(results["correlations"]["F1 on SQuAD"]), measure="F1 on SQuAD, projected")
    print(results["correlations"], flush=True)


if __name__ == "__main__":
    main()
