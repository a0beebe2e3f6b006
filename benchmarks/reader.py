"""The paper's Tables 1, 2 and 4 on SQuAD v1.1: a question-answering MiniLM, its networks distilled alike.

Rows are kept as soon as they are there, and trained weights in the cache, so an interrupted run goes on where it stopped, a
training at its last checkpoint. Parts: `networks` has those of every format and method at three EDP gains, `transfer` puts the
settings found on SQuAD into a classifier of SST-2, `recipes` is Table 4.

    python -m benchmarks.reader --data DATA --reader FOLDER --classifier FOLDER --cache DIR --results benchmarks/results
"""

from __future__ import annotations

import argparse
import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from benchmarks.distillation import RATES, TTM_SHAPE, recipe
from benchmarks.distillation_bench import GAINS, HEAT, MANUAL, RANDOM, SST2, TENSORLY, Bench, Subject, measure
from benchmarks.distillation_tables import FORMATS
from heat_hf.distillation import RECIPES
from heat_hf.encoders.batches import Batch, pad_batches
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.tasks import TASKS
from heat_hf.search.ranks.methods import Solution

TASK = TASKS["question-answering"]
# bfloat16 takes half of the time where the CPU has instructions for it. One stage's share and rates are the recipe's.
SQUAD = Subject(
    "SQuAD", TASK.name, ("squad/train.parquet", "question"), 0, "squad/validation.parquet", 18173, 0.0, 0,
    {
        "max_steps": 240, "layer_share": 0.5, "learning_rate": 3e-4, "logit_learning_rate": 1e-4,
        "per_device_train_batch_size": 16, "bf16": True, "save_steps": 80,
    },
    tokens=384,
)  # fmt: skip
EXTRA = "squad/train_extra.parquet"
STRIDE = 128
CALIBRATION = 512  # windows
UNSEEN = 1000  # windows that nothing is trained on
EVERY = 5  # of the questions of the development set, one of so many is scored


class Reader(Bench):
    """SQuAD: windows of a question and a part of its context."""

    def material(self) -> tuple[Any, list[Batch], list[Batch]]:
        own = self.subject
        files = [load_rows(self.args.data / file) for file in (own.train[0], EXTRA)]
        rows = datasets.concatenate_datasets([part.select_columns(list(TASK.columns)) for part in files])
        windows = list(TASK.encode(rows, TASK.columns, self.tokenizer, own.tokens, STRIDE))
        random.Random(0).shuffle(windows)
        train, others = windows[UNSEEN:], windows[:UNSEEN]
        calibration, unseen = (pad_batches(self.inputs(part), self.tokenizer, 32) for part in (train[:CALIBRATION], others))
        return train, calibration, unseen

    def inputs(self, windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Without the answers."""
        return [{name: row[name] for name in self.tokenizer.model_input_names if name in row} for row in windows]

    def tested(self, rows: Any) -> Any:
        return rows.select(range(0, len(rows), EVERY))


def networks(bench: Bench) -> None:
    """Of one gain after the other, HEAT's network of every format and those of other methods, distilled alike.

    With modes of extent 1 several formats may be one network.
    """
    for variant in GAINS:
        for method in (HEAT, MANUAL, TENSORLY, RANDOM):
            for decomposition in FORMATS:
                measure(bench, decomposition, method, variant)


def transfer(bench: Bench) -> None:
    """Settings found on SQuAD in a classifier of SST-2, without a search there; `distillation.json` has those found there."""
    classifier = Bench(SST2, bench.args.classifier, bench.args, "reader.json")
    classifier.found = bench.found
    rows = bench.found.setdefault("transfer", {})
    for variant, gain in GAINS.items():
        if variant in rows:
            continue
        _, report = bench.student("low_rank", HEAT, gain)
        model, settings = copy.deepcopy(classifier.dense), {own.name: own.setting for own in report.tensors}
        own = classifier.job("low_rank", HEAT, gain, None, model).factorize(Solution(settings))
        assert own.hardware is not None
        row = {"edp_gain": 1 / own.hardware.ratio, "params_ratio": own.params_ratio, "teacher_score": classifier.teacher_score}
        row["untrained_score"] = classifier.score(model)
        classifier.distil(model, f"transfer-{variant}")
        rows[variant] = {**row, **classifier.figures(model)}
        print(variant, rows[variant], flush=True)
        classifier.save()


def recipes(bench: Bench) -> None:
    """Table 4: ways to re-train a network of TTM factors, the same number of steps each."""
    untrained, _ = bench.student("ttm", "uniform", bench.args.ttm_gain, TTM_SHAPE)
    if "untrained" not in bench.found:
        bench.found["untrained"] = bench.figures(untrained)
        bench.save()
    for seed in bench.args.recipe_seeds:
        for name in RECIPES:
            recipe(bench, name, RATES[len(RECIPES[name])][-1], seed)


PARTS = {"networks": networks, "transfer": transfer, "recipes": recipes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with squad and sst2")
    parser.add_argument(
        "--reader", required=True, help="a MiniLM fine-tuned on SQuAD, as recipes/squad.yaml leaves in teacher/"
    )
    parser.add_argument("--classifier", required=True, help="folder of a MiniLM fine-tuned on SST-2")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--ttm-gain", type=float, default=3.0)
    parser.add_argument("--recipe-steps", type=int, default=240)
    parser.add_argument("--recipe-seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    args.command = (
        "python -m benchmarks.reader --data DATA --reader FOLDER --classifier FOLDER --cache DIR "
        f"--steps {args.steps} --ttm-gain {args.ttm_gain:g} --recipe-steps {args.recipe_steps} "
        f"--recipe-seeds {' '.join(map(str, args.recipe_seeds))}"
    )
    subject = replace(SQUAD, schedule={**SQUAD.schedule, "max_steps": args.steps})
    bench = Reader(subject, args.reader, args, "reader.json")
    bench.found["questions"] = len(bench.test)
    for part in args.parts:
        PARTS[part](bench)


if __name__ == "__main__":
    main()
