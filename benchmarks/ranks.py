"""Level 2 measured: searched ranks beside uniform, TensorLy's, hand-tuned and random ones, on a MiniLM classifier and SST-2.

Everything expensive is kept in a cache folder, and finished rows in the output file, so an interrupted run goes on where it
stopped. Parts, in order: `supernet` trains it, measures SubNets, fits the predictor and searches; `ablation` trains it with
each stabilizer left out; `before` factorizes by every method at every budget; `fidelity` re-trains SubNets of the space;
`after` re-trains what `before` listed; `combined` lets the training-free losses predict the same SubNets, and corrects them;
`speed` times a sensitivity search and the evolution.

    python -m benchmarks.ranks --data DATA --classifier FOLDER --cache DIR --output benchmarks/results/ranks.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import BertConfig, BertModel, DataCollatorWithPadding

from benchmarks.provenance import provenance
from benchmarks.ranks_bench import CALIBRATION, GAINS, SEARCH_ROWS, Bench
from heat_hf.compression.job import Job
from heat_hf.search.journal import Journal
from heat_hf.search.ranks.curves import least_lost, losses_of
from heat_hf.search.ranks.evolution import Evolution, evolve
from heat_hf.search.ranks.predictor import AccuracyPredictor
from heat_hf.search.ranks.supernet import RankSuperNet, Stabilizers, sample_subnets
from heat_hf.search.ranks.supernet_search import evaluate_subnets, supernet_model, train_supernet

FOLDED = ("cp", "tucker")  # formats whose hand-tuned shapes are not the matrix; TTM's do not reach these budgets
ABLATIONS = {
    "full recipe": Stabilizers(),
    "random slices": Stabilizers(first_slices=False),
    "unbounded change": Stabilizers(bounded_change=False),
    "no sandwich": Stabilizers(sandwich=False),
    "no variance normalization": Stabilizers(normalized_variance=False),
}


NAMES = {"prior": "sensitivity, SuperNet's space", "combined": "supernet with sensitivity as prior"}


def digest(settings: dict) -> str:
    text = json.dumps({name: None if s is None else s.to_dict() for name, s in settings.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ranks_of(settings: dict) -> list:
    return [None if s is None else list(s.rank) for s in settings.values()]


def trained_supernet(bench: Bench, name: str, stabilizers: Stabilizers, steps: int) -> tuple[RankSuperNet, float]:
    folder = bench.cache / name
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    net = RankSuperNet(supernet_model(bench.problem, bench.space), bench.space, stabilizers, bench.args.seed)
    train_supernet(net, bench.dense, bench.arguments(steps), bench.rows, DataCollatorWithPadding(bench.tokenizer), folder)
    return net, time.perf_counter() - start


def supernet(bench: Bench) -> None:
    """Train, measure SubNets, fit the predictor, search: the paper's Level 2."""
    results = bench.results.setdefault("supernet", {})
    net, seconds = trained_supernet(bench, "full", Stabilizers(), bench.args.steps)
    results.setdefault("train_seconds", seconds)
    choices = sample_subnets(net, bench.args.subnets, bench.args.seed)
    start = time.perf_counter()
    journal = Journal(bench.cache / "subnets", {"steps": bench.args.steps}, overwrite=False)
    journal.folder.mkdir(exist_ok=True)
    accuracies = evaluate_subnets(net, choices, bench.search_quality, journal)
    results.setdefault("evaluate_seconds", time.perf_counter() - start)
    results |= {"steps": bench.args.steps, "subnets": len(choices), "accuracies": accuracies}
    ratios = [bench.edp_ratio(bench.space.settings(choice)) for choice in choices]
    results["edp_ratios"] = ratios
    predictor = AccuracyPredictor(bench.space, bench.args.seed)
    start = time.perf_counter()
    results["fidelity"] = asdict(predictor.fit(choices, accuracies))
    found = {}
    for gain in GAINS:
        best = evolve(bench.space, predictor.predict, "edp", bench.budget(gain).limit)
        settings = bench.space.settings(best.choice)
        found[f"{gain:g}"] = settings
        net.set(best.choice)
        score = bench.quality.both(net.model)
        results.setdefault("searched", {})[f"{gain:g}"] = {
            "predicted": best.accuracy, "measured": bench.search_quality(net.model), "validation": score[0],
            "choice": best.choice.tolist(), "ranks": ranks_of(settings), "candidates": best.candidates,
        }  # fmt: skip
    results["search_seconds"] = time.perf_counter() - start
    bench.results["supernet"] = results
    bench.save()


def ablation(bench: Bench) -> None:
    """Accuracy of the same SubNets after the same number of steps, each stabilizer left out in turn."""
    results = bench.results.setdefault("ablation", {})
    for name, stabilizers in ABLATIONS.items():
        if name in results:
            continue
        net, seconds = trained_supernet(bench, f"ablation-{name.replace(' ', '-')}", stabilizers, bench.args.ablation_steps)
        rng, scores = np.random.default_rng([bench.args.seed, 7]), []
        for number in range(bench.args.ablation_subnets):
            net.set(net.draw(rng), net.slices(number))
            scores.append(bench.quality.both(net.model))
        results[name] = {
            "accuracies": [a for a, _ in scores], "divergences": [d for _, d in scores], "seconds": seconds,
            "steps": bench.args.ablation_steps,
        }  # fmt: skip
        print(name, statistics.median(a for a, _ in scores), statistics.median(d for _, d in scores), flush=True)
        bench.save()


def combined(bench: Bench) -> None:
    """Both methods as one: the training-free losses predict the SubNets' accuracies, and the forest corrects them."""
    net = RankSuperNet(supernet_model(bench.problem, bench.space), bench.space, Stabilizers(normalized_variance=False))
    choices, accuracies = sample_subnets(net, bench.args.subnets, bench.args.seed), bench.results["supernet"]["accuracies"]
    ratios = [bench.edp_ratio(bench.space.settings(choice)) for choice in choices]
    if not np.allclose(ratios, bench.results["supernet"]["edp_ratios"], rtol=1e-9):
        raise ValueError("the SubNets measured are of another space: measure them again (supernet)")
    prior = losses_of(bench.problem, bench.space)
    predictors = {"forest": None, "prior and forest": prior}
    results: dict = {"searched": {}, "spearman": {}}
    retrained = bench.results["retrained_subnets"]
    rng = np.random.default_rng([bench.args.seed, 9])
    again = np.stack([net.draw(rng) for _ in retrained])
    measured = [row["accuracy"] for row in retrained]
    for name, known in predictors.items():
        predictor = AccuracyPredictor(bench.space, bench.args.seed, known)
        fidelity = predictor.fit(choices, accuracies)
        results["spearman"][name] = [fidelity.spearman, float(spearmanr(predictor.predict(again), measured).statistic)]
    places, _ = predictor.split(len(choices))
    held = np.stack([choices[place] for place in places])
    results["spearman"]["prior"] = [
        float(spearmanr(-predictor.lost(subnets), scores).statistic)
        for subnets, scores in ((held, [accuracies[place] for place in places]), (again, measured))
    ]
    for gain in GAINS:
        limit = bench.budget(gain).limit
        first = least_lost(bench.space, prior, "edp", limit)
        best = evolve(bench.space, predictor.predict, "edp", limit, seeds=[first])
        results["searched"][f"{gain:g}"] = {"prior": first.tolist(), "combined": best.choice.tolist()}
    bench.results["combined"] = results
    print(results["spearman"], flush=True)
    bench.save()


def candidates(bench: Bench) -> list[tuple[str, float, dict]]:
    """Method, gain and settings of everything that is compared."""
    start = time.perf_counter()
    method = bench.config.method
    found: list[tuple[str, float, dict]] = []
    for gain in GAINS:
        solution = method.solve(bench.problem, bench.budget(gain))
        found.append((method.name, gain, solution.settings))
        bench.results.setdefault(method.name, {})[f"{gain:g}"] = {"expected_divergence": solution.loss}
    seconds = time.perf_counter() - start + bench.moment_seconds
    bench.results["sensitivity"].setdefault("seconds", seconds)
    for gain in GAINS:
        searched = bench.results["supernet"]["searched"][f"{gain:g}"]
        found.append(("supernet", gain, bench.space.settings(searched["choice"])))
        for name, choice in bench.results.get("combined", {}).get("searched", {}).get(f"{gain:g}", {}).items():
            found.append((NAMES[name], gain, bench.space.settings(choice)))
        for rule, seeds in (("uniform", 1), ("tensorly", 1), ("manual", 1), ("random", bench.args.random)):
            for seed in range(seeds):
                settings = bench.rule_settings(gain, rank_search=rule, seed=seed)
                found.append((rule if seeds == 1 else f"{rule}-{seed}", gain, settings))
    for decomposition in FOLDED:
        for gain in GAINS:
            settings = bench.rule_settings(gain, rank_search="manual", decomposition=decomposition)
            found.append((f"manual {decomposition}", gain, settings))
    return found


def before(bench: Bench) -> None:
    """Every method at every budget, projected but not trained."""
    rows = bench.results.setdefault("rows", {})
    for method, gain, settings in candidates(bench):
        row = rows.setdefault(f"{method} {gain:g}", {"method": method, "gain": gain})
        if row.get("digest") != digest(settings):
            total, dense = bench.costs.total(settings), bench.costs.dense
            row |= {
                "digest": digest(settings), "ranks": ranks_of(settings), "edp_ratio": total.objective_ratio(dense),
                "params_ratio": total.parameters / dense.parameters,
            }  # fmt: skip
            for name, aware in (("outputs", False), ("loss", True)):
                # Folded matrices take minutes; of random ranks, one projection says enough.
                if not aware and (method.removeprefix("manual ") in FOLDED or method.startswith("random-")):
                    continue
                accuracy, divergence = bench.quality.both(bench.model_of(settings, aware))
                row[name] = {"accuracy": accuracy, "divergence": divergence}
            row.pop("retrained", None)
            print(method, gain, row.get("outputs"), row["loss"], flush=True)
            bench.save()


def fidelity(bench: Bench) -> None:
    """Predicted accuracy of SubNets of all sizes beside that after re-training each alike (paper, Fig. 9, right)."""
    results = bench.results.setdefault("retrained_subnets", [])
    net = RankSuperNet(supernet_model(bench.problem, bench.space), bench.space, Stabilizers(normalized_variance=False))
    choices = sample_subnets(net, bench.args.subnets, bench.args.seed)
    predictor = AccuracyPredictor(bench.space, bench.args.seed)
    predictor.fit(choices, bench.results["supernet"]["accuracies"])
    rng = np.random.default_rng([bench.args.seed, 9])
    for number in range(bench.args.fidelity):
        choice = net.draw(rng)
        if number < len(results):
            continue
        settings = bench.space.settings(choice)
        accuracy, divergence = bench.quality.both(bench.retrained(settings, f"subnet-{number}"))
        results.append(
            {
                "predicted": float(predictor.predict(choice[None])[0]), "accuracy": accuracy, "divergence": divergence,
                "edp_ratio": bench.edp_ratio(settings),
            }
        )  # fmt: skip
        print(results[-1], flush=True)
        bench.save()
    pairs = [[row[key] for row in results] for key in ("predicted", "accuracy")]
    bench.results["retrained_spearman"] = float(spearmanr(*pairs).statistic)
    bench.save()


def after(bench: Bench) -> None:
    """The same short re-training of everything that `before` lists."""
    rows = bench.results["rows"]
    for method, gain, settings in candidates(bench):
        row = rows[f"{method} {gain:g}"]
        if "retrained" in row:
            continue
        same = [own["retrained"] for own in rows.values() if own["digest"] == row["digest"] and "retrained" in own]
        if not same:
            accuracy, divergence = bench.quality.both(bench.retrained(settings, f"{method.replace(' ', '-')}-{gain:g}"))
            same.append({"accuracy": accuracy, "divergence": divergence})
        row["retrained"] = same[0]
        print(method, gain, row["loss"], row["retrained"], flush=True)
        bench.save()


def speed(bench: Bench) -> None:
    """Time of a sensitivity search from loaded model to variants, and networks an evolution looks at in a second."""
    results = bench.results.setdefault("speed", {})
    torch.manual_seed(0)
    models = {"MiniLM": lambda: bench.dense, "BERT-base, random weights": lambda: BertModel(BertConfig()).eval()}
    for name, load in models.items():
        if name not in results:
            start = time.perf_counter()
            record = Job(load(), bench.config, bench.calibration).search()
            results[name] = {"seconds": time.perf_counter() - start, "matrices": len(record.variants[0].settings)}
            print(name, results[name], flush=True)
            bench.save()
    predictor = AccuracyPredictor(bench.space, bench.args.seed)
    net = RankSuperNet(supernet_model(bench.problem, bench.space), bench.space, Stabilizers(normalized_variance=False))
    choices = sample_subnets(net, bench.args.subnets, bench.args.seed)
    predictor.fit(choices, bench.results["supernet"]["accuracies"])
    _ = bench.space.table
    rates = []
    for seed in range(3):
        start = time.perf_counter()
        best = evolve(bench.space, predictor.predict, "edp", bench.budget(5.7).limit, Evolution(seed=seed))
        rates.append(best.candidates / (time.perf_counter() - start))
    results["candidates_per_second"] = statistics.median(rates)
    print(rates, flush=True)
    bench.save()


PARTS = {
    "supernet": supernet, "ablation": ablation, "before": before, "fidelity": fidelity, "after": after, "speed": speed,
    "combined": combined,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--data", required=True, type=Path, help="folder with sst2")
    parser.add_argument("--classifier", required=True, help="folder of a MiniLM fine-tuned on SST-2")
    parser.add_argument("--cache", required=True, type=Path, help="folder for weights and measurements")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=600, help="of the SuperNet's training, 32 rows each")
    parser.add_argument("--subnets", type=int, default=400)
    parser.add_argument("--ablation-steps", type=int, default=150)
    parser.add_argument("--ablation-subnets", type=int, default=64)
    parser.add_argument("--retrain-steps", type=int, default=40)
    parser.add_argument("--retrain-rate", type=float, default=1e-4)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--fidelity", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(2)
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {sorted(unknown)[0]!r}; known are {', '.join(PARTS)}")
    bench = Bench(args)
    named = ("steps", "subnets", "ablation_steps", "ablation_subnets", "retrain_steps", "retrain_rate", "random", "seed")
    options = " ".join(f"--{name.replace('_', '-')} {getattr(args, name)}" for name in named)
    command = f"python -m benchmarks.ranks {options} --data DATA --classifier FOLDER --cache DIR --output FILE"
    bench.results |= {
        "seed": args.seed,
        "retrain_steps": args.retrain_steps,
        "model": "MiniLM fine-tuned on SST-2",
        "dense": bench.quality(bench.dense),
        "dense_edp_J_s": bench.costs.dense.of("edp"),
        "tensors": list(bench.space.names),
        "rows_used": {
            "calibration": f"sst2/train[:{CALIBRATION}]",
            "training": f"{32 * args.steps:,} of sst2/train less its last {SEARCH_ROWS:,}",
            "SubNets": f"the last {SEARCH_ROWS:,} of sst2/train",
            "score": "sst2/validation, 872",
        },
        **provenance(command, "torch", "transformers", "scikit-learn"),
    }
    for name in args.parts or PARTS:
        PARTS[name](bench)


if __name__ == "__main__":
    main()
