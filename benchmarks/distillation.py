"""Level 3 measured: searched networks distilled in two stages, beside others re-trained alike, and the paper's Table 4.

Rows are kept as soon as they are there, so an interrupted run goes on where it stopped; trained weights go to the cache folder.
Parts: `headline` distils searched classifiers, `others` those that other formats and methods choose, `faster` some of them at
a higher learning rate; `recipes` is Table 4; `step` times a step beside its parts; `embeddings` distils the sentence encoder
without labels; `cards` only writes cards again.

    python -m benchmarks.distillation --data DATA --classifier FOLDER --encoder FOLDER --cache DIR --results benchmarks/results
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.distillation_bench import (
    GAINS,
    HEAT,
    LABELLED,
    MANUAL,
    RANDOM,
    SST2,
    STSB,
    TENSORLY,
    Bench,
    cards,
    measure,
    parser_of,
)
from benchmarks.distillation_step import step_ratios
from benchmarks.distillation_tables import FORMATS
from heat_hf.distillation import RECIPES
from heat_hf.distillation.teacher import set_attention
from heat_hf.reports.figures.distillation import draw_attention


def headline(bench: Bench) -> None:
    """Searched networks of SST-2, two of them for three seeds."""
    for variant in GAINS:
        measure(bench, "low_rank", HEAT, variant, card=True)
    for seed in (1, 2):
        for variant in ("HEAT-a2", "HEAT-a1"):
            measure(bench, "low_rank", HEAT, variant, seed)


def others(bench: Bench) -> None:
    """What other formats choose at every gain, then what other methods choose, re-trained alike; one gain after the other."""
    for decomposition in FORMATS[1:]:  # low rank is the headline's
        for variant in GAINS:
            measure(bench, decomposition, HEAT, variant)
    for variant in GAINS:
        for method in (MANUAL, RANDOM, TENSORLY):
            for decomposition in FORMATS:
                measure(bench, decomposition, method, variant)


FASTER = {"learning_rate": 1e-3, "logit_learning_rate": 1e-4}


def faster(bench: Bench) -> None:
    """The schedule was tuned for low rank: what a network that lost much, and those that did not, reach at another."""
    faster = bench.found.setdefault("faster", {})
    gain = GAINS["HEAT-a2"]
    networks = [("tucker", method) for method in (TENSORLY, HEAT, MANUAL, RANDOM)]
    for decomposition, method in (*networks, ("cp", MANUAL), ("low_rank", HEAT)):
        key = f"{bench.name(decomposition, method, gain)} 0"
        if key in faster:
            continue
        model, _ = bench.student(decomposition, method, gain)
        bench.distil(model, f"{decomposition}-{method}-faster", **FASTER)
        faster[key] = {**bench.figures(model), **FASTER}
        print(key, faster[key], flush=True)
        bench.save()


TTM_SHAPE = {"384x384": "96x4:4x96", "1536x384": "192x8:4x96", "384x1536": "96x4:8x192"}  # no mode of extent 1
RATES = {1: ("3e-4", "1e-3"), 2: ("3e-4, 2e-5", "3e-4, 1e-4", "1e-3, 1e-4")}  # peaks of every stage, by the number of stages
SENTENCE = "the acting is stiff , but the story has a warmth that grows on you"
HEADS = ((0, 3), (1, 7), (3, 5), (5, 10))


def recipes(bench: Bench) -> None:
    """The paper's Table 4: ways to re-train a TTM network, the same number of steps each, at several learning rates."""
    labels = {
        "labels": "labels only", "logits": "logits only", "hidden-logits": "hidden, logits", "one-stage": "one stage",
        "attention-logits": "attention, logits", "two-stage": "two stages",
    }  # fmt: skip
    untrained, _ = bench.student("ttm", "uniform", bench.args.ttm_gain, TTM_SHAPE)
    if "untrained" not in bench.found:
        bench.found["untrained"] = bench.figures(untrained)
        bench.save()
    maps = {"dense": attention_maps(bench, bench.dense), "not re-trained": attention_maps(bench, untrained)}
    for seed in bench.args.recipe_seeds:
        for name in labels:
            for rates in RATES[len(RECIPES[name])]:
                recipe(bench, name, rates, seed)
                compare(bench, name, rates, seed)
    for name, label in labels.items():
        tried = bench.found["recipes"][name]
        best = min(tried, key=lambda rates: statistics.mean(tried[rates]["divergence"].values()))
        folder = recipe_folder(bench, name, best, bench.args.recipe_seeds[-1])
        if not folder.is_dir():
            print(f"No picture: {folder.name} is not in the cache; with its row deleted, it is trained again.", flush=True)
            return
        maps[label] = attention_maps(bench, type(bench.dense).from_pretrained(folder))
    tokens = bench.tokenizer.convert_ids_to_tokens(bench.tokenizer(SENTENCE)["input_ids"])
    draw_attention(maps, HEADS, tokens, bench.args.figures / "table-4-attention.png")


def recipe_folder(bench: Bench, name: str, rates: str, seed: int) -> Path:
    """Where a way's network is kept."""
    return bench.args.cache / f"recipe-{name}-{rates.replace(', ', '-')}-{seed}"


def recipe(bench: Bench, name: str, rates: str, seed: int) -> None:
    """One way at the learning rates of its stages, one seed; the row is kept."""
    tried = bench.found.setdefault("recipes", {}).setdefault(name, {})
    if str(seed) in tried.get(rates, {}).get("scores", {}):
        return
    model, report = bench.student("ttm", "uniform", bench.args.ttm_gain, TTM_SHAPE)
    folder = recipe_folder(bench, name, rates, seed)
    peaks = [float(rate) for rate in rates.split(", ")]
    options = {"recipe": name, "max_steps": bench.args.recipe_steps, "seed": seed}
    options |= {"learning_rate": peaks[0], "logit_learning_rate": peaks[-1]}
    trainer = bench.distil(model, folder.name, **options)
    cost = report.hardware
    assert cost is not None
    model.save_pretrained(folder)
    row = tried.setdefault(rates, {"scores": {}})
    row["scores"][str(seed)] = bench.score(model)
    row |= {
        "teacher_score": bench.teacher_score,
        "steps": trainer.state.global_step, "edp_gain": cost.dense.edp / cost.now.edp, "params_ratio": report.params_ratio,
        "shape": TTM_SHAPE, "rank_search": "uniform", "train_rows": len(bench.rows),
    }  # fmt: skip
    print(name, rates, seed, row["scores"][str(seed)], flush=True)
    bench.save()


def compare(bench: Bench, name: str, rates: str, seed: int) -> None:
    """How far a way's network is from the dense model on sentences that it was not trained on, if it is in the cache."""
    row, folder = bench.found["recipes"][name][rates], recipe_folder(bench, name, rates, seed)
    if str(seed) in row.setdefault("divergence", {}) or not folder.is_dir():
        return
    model = type(bench.dense).from_pretrained(folder)
    agreement, row["divergence"][str(seed)] = bench.fidelity.both(model)
    row.setdefault("agreement", {})[str(seed)] = agreement
    print(name, rates, seed, "agreement", agreement, "divergence", row["divergence"][str(seed)], flush=True)
    bench.save()


def attention_maps(bench: Bench, model: Any) -> torch.Tensor:
    """Of one sentence."""
    set_attention(model, True)
    with torch.no_grad():
        maps = model.eval()(**bench.tokenizer(SENTENCE, return_tensors="pt"), output_attentions=True).attentions
    set_attention(model, False)
    return torch.cat(maps)


def embeddings(bench: Bench) -> None:
    """The sentence encoder, without labels."""
    measure(bench, "low_rank", HEAT, "HEAT-a3", card=True)
    measure(bench, "low_rank", HEAT, "HEAT-a2", card=True, keep=True)  # exported and quantized by benchmarks.exported


def step(bench: Bench) -> None:
    """What a step of either stage costs."""
    model, _ = bench.student("low_rank", HEAT, 5.7)
    bench.found["step"] = step_ratios(model, bench.dense, bench.rows, bench.tokenizer, bench.args.repeats)
    print(bench.found["step"], flush=True)
    bench.save()


PARTS = {
    "headline": headline, "step": step, "others": others, "faster": faster, "recipes": recipes, "embeddings": embeddings,
    "cards": cards,
}  # fmt: skip
SUBJECTS = {"recipes": LABELLED, "embeddings": STSB}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cards", type=Path, default=Path("model_cards"))
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[name for name in PARTS if name != "cards"])
    parser.add_argument("--ttm-gain", type=float, default=3.0)
    parser.add_argument("--recipe-steps", type=int, default=600)
    parser.add_argument("--recipe-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=22)
    args = parser.parse_args()
    args.command = (
        "python -m benchmarks.distillation --data DATA --classifier FOLDER --encoder FOLDER --cache DIR "
        f"--ttm-gain {args.ttm_gain:g} --recipe-steps {args.recipe_steps} "
        f"--recipe-seeds {' '.join(map(str, args.recipe_seeds))} --repeats {args.repeats}"
    )
    benches: dict[str, Bench] = {}
    for part in args.parts:
        subject = SUBJECTS.get(part, SST2)
        checkpoint = args.encoder if subject is STSB else args.classifier
        if subject.name not in benches:
            benches.clear()
            benches[subject.name] = Bench(subject, checkpoint, args)
        PARTS[part](benches[subject.name])


if __name__ == "__main__":
    main()
