"""A subject of Level 3's measurements: compress, distil, score, keep the row, write the card."""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, DataCollatorWithPadding

from benchmarks.provenance import provenance
from heat_hf import CompressionReport, HeatConfig
from heat_hf.compression.job import Job
from heat_hf.distillation import DistillationArguments, DistillationTrainer, Teacher
from heat_hf.distillation.teacher import set_attention
from heat_hf.encoders.batches import Batch, calibration_batches, encode_rows, sequences
from heat_hf.encoders.checkpoints.folder import save_compressed
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.resuming import newest_checkpoint
from heat_hf.encoders.rows import joined_texts, load_rows
from heat_hf.encoders.statistics import Statistics
from heat_hf.evaluation.quality import Quality
from heat_hf.evaluation.tasks import TASKS, evaluate_task
from heat_hf.formats.shape import folded
from heat_hf.reports.card import Origin, inherited_license, model_card, saved_files
from heat_hf.reports.figures.distillation import draw_training
from heat_hf.search.ranks.budgets import Budget
from heat_hf.search.ranks.methods import Solution, get_rank_search
from heat_hf.search.ranks.problem import Problem
from heat_hf.search.shapes.search import ShapeSearch, search_shapes
from recipes.evidence import evaluation_of, result_row, write_json
from recipes.pipeline import training_text

TOKENS = 128
GAINS = {"HEAT-a2": 5.7, "HEAT-a1": 10.0, "HEAT-a3": 3.0}  # in the order in which they are measured
CALIBRATION = 2048
UNSEEN = 4000  # sentences on which a model is compared with the dense one
MANUAL, RANDOM, TENSORLY, HEAT = "manual", "random", "tensorly", "sensitivity"


@dataclass(frozen=True)
class Subject:
    """What is compressed, on what it is trained, and how it is scored.

    Attributes:
        name: of the data.
        task: key of `heat_hf.evaluation.tasks.TASKS`.
        train: file and column of the sentences.
        least_words: shorter sentences are left out: much of SST-2's training data are phrases of a few words.
        test: file of labelled rows.
        rows: texts drawn for training.
        joined: share of them that is made of two each, see `heat_hf.encoders.rows.joined_texts`.
        cache_gib: for the teacher's answers.
        schedule: options of its trainings: steps, learning rates.
        tokens: of a forward pass whose cost counts; longer rows are cut.
        labelled: whether rows keep their labels.
    """

    name: str
    task: str
    train: tuple[str, str]
    least_words: int
    test: str
    rows: int
    joined: float
    cache_gib: float
    schedule: Mapping[str, Any]
    tokens: int = TOKENS
    labelled: bool = False


SST2 = Subject(
    "SST-2", "text-classification", ("sst2/train.parquet", "sentence"), 12, "sst2/validation.parquet", 16000, 0.5, 12,
    {"max_steps": 1000, "layer_share": 0.75, "learning_rate": 3e-4, "logit_learning_rate": 2e-5},
)  # fmt: skip
STSB = Subject(
    "STS-B", "sentence-similarity", ("text/train.parquet", "text"), 4, "stsb/test.parquet", 32000, 0.0, 0,
    {"max_steps": 1000, "layer_share": 0.5, "learning_rate": 3e-4, "logit_learning_rate": 1e-4},
)  # fmt: skip
LABELLED = replace(SST2, name="SST-2 labelled", joined=0.0, labelled=True)  # joined texts have no labels


def parser_of(doc: str) -> argparse.ArgumentParser:
    """Options that all benchmarks of distillation have.

    Args:
        doc: of the benchmark; its first line describes it.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    return parser


class Bench:
    """A subject's dense model, rows and calibration, and the rows found so far."""

    def __init__(self, subject: Subject, checkpoint: str, args: argparse.Namespace, results: str = "distillation.json") -> None:
        self.subject, self.checkpoint, self.args = subject, checkpoint, args
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.dense = self.load()
        self.rows, self.calibration, self.unseen = self.material()
        self.test = self.tested(load_rows(args.data / subject.test))
        self.teacher = Teacher(copy.deepcopy(self.dense), subject.cache_gib)
        self.file = args.results / results
        self.found: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {"rows": {}}
        self.found.setdefault("dense_params_M", {})[subject.name] = self.dense.num_parameters() / 1e6
        self.found["unseen"] = sum(map(sequences, self.unseen))
        self.problems: dict[tuple[str, str, str], Problem] = {}
        self.metric = TASKS[subject.task].main

    def material(self) -> tuple[Any, list[Batch], list[Batch]]:
        """Encoded rows to train on, batches of them for calibration, and others to compare models with the dense one on."""
        file, column = self.subject.train
        rows, unseen = self.drawn(load_rows(self.args.data / file), column)
        calibration, others = (
            calibration_batches([row[column] for row in part], self.tokenizer, max_length=self.subject.tokens)
            for part in (rows[:CALIBRATION], unseen)
        )
        return encode_rows(rows, self.tokenizer, self.subject.tokens), calibration, others

    def tested(self, rows: Any) -> Any:
        """Of a file's labelled rows those that are scored."""
        return rows

    def drawn(self, data: Any, column: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Training rows, long texts with joined ones between, with labels if they are to be used; and long texts left over."""
        own, every = self.subject, data[column]
        labels = {"label": data["label"]} if own.labelled else {}
        long = [
            {column: text, **{name: values[place] for name, values in labels.items()}}
            for place, text in enumerate(every)
            if len(text.split()) >= own.least_words
        ]
        random.Random(0).shuffle(long)
        count = round(own.rows * own.joined)
        alone = own.rows - count
        rows = long[:alone] + [{column: text} for text in joined_texts(every, count)]
        random.Random(1).shuffle(rows)
        return rows, long[alone : alone + UNSEEN]

    def load(self) -> Any:
        return TASKS[self.subject.task].model_class.from_pretrained(self.checkpoint).eval()

    def save(self) -> None:
        write_json(self.file, {**self.found, **provenance(self.args.command, "torch", "transformers")})

    def score(self, model: Any) -> float:
        return evaluate_task(model.eval(), self.tokenizer, self.subject.task, self.test)[self.metric]

    @cached_property
    def teacher_score(self) -> float:
        return self.score(self.dense)

    @cached_property
    def fidelity(self) -> Quality:
        """What a few hundred labelled rows cannot tell apart, the divergence from the dense model on other sentences can."""
        return Quality(self.dense, self.unseen)

    def figures(self, model: Any) -> dict[str, float]:
        """Score, agreement with the dense model and divergence from it."""
        agreement, divergence = self.fidelity.both(model)
        return {"score": self.score(model), "agreement": agreement, "divergence": divergence}

    @cached_property
    def statistics(self) -> Statistics:
        """Of the dense model's matrices; every compression takes them."""
        return Statistics.collect(self.dense, encoder_linears(self.dense), self.calibration)

    @cached_property
    def table(self) -> str:
        """Level 1's cost table, which has the shapes that formats other than low rank take."""
        search, file = ShapeSearch(formats=("cp", "tucker", "ttm")), self.args.cache / f"{self.subject.name}.parquet"
        search_shapes(self.dense, "simba-l", self.subject.tokens, search, file, workers=2)
        return str(file)

    def job(self, decomposition: str, method: str, gain: float, shape: Any = None, model: Any = None) -> Job:
        """A compression to an EDP as many times below the dense one's."""
        config = HeatConfig(
            decomposition=decomposition, rank_search=method, target_edp_ratio=1 / gain, sequence_length=self.subject.tokens,
            shape=shape,
            cost_table=None if decomposition == "low_rank" or shape is not None else self.table,
        )  # fmt: skip
        return Job(model or self.dense, config, given_statistics=self.statistics)

    def settings(self, decomposition: str, method: str, gain: float, shape: Any = None) -> dict[str, Any]:
        """Ranks by a method within an EDP budget; what all budgets share is found once for each format and method."""
        key = decomposition, method, str(shape)
        if key not in self.problems:
            self.problems[key] = self.job(decomposition, method, gain, shape).problem
        problem = self.problems[key]
        limit = problem.costs.dense.of("edp") / gain
        return dict(get_rank_search(method).solve(problem, Budget("target_edp_ratio", 1 / gain, limit)).settings)

    def name(self, decomposition: str, method: str, gain: float) -> str:
        """Of a network; its rows' keys have the seed behind it."""
        return f"{self.subject.name} {decomposition} {method} {gain:g}"

    def student(self, decomposition: str, method: str, gain: float, shape: Any = None) -> tuple[Any, Any]:
        """The compressed model before training, from the cache if it is there, and its report.

        Or None, and the row that has the same network.
        """
        name = self.name(decomposition, method, gain)
        folder = self.args.cache / name.replace(" ", "-")
        if not (folder / "heat_report.json").is_file():
            settings = self.settings(decomposition, method, gain, shape)
            known = self.same_network(settings, name)
            if known is not None:
                return None, known
            model = copy.deepcopy(self.dense)
            report = self.job(decomposition, method, gain, shape, model).factorize(Solution(settings))
            model.save_pretrained(folder)
            report.save(folder)
        model = type(self.dense).from_pretrained(folder)
        return model, CompressionReport.load(folder)

    def same_network(self, settings: dict[str, Any], name: str) -> str | None:
        """The measured row whose network is the same under another name: with modes of extent 1, all formats are low rank."""
        wanted = signature(settings)
        for key, row in self.found["rows"].items():
            other = key.rpartition(" ")[0] != name  # the last word is the seed
            if other and row.get("dataset") == self.subject.name and row.get("signature") == wanted:
                return key
        return None

    def distil(self, model: Any, name: str, **options: Any) -> DistillationTrainer:
        """Train; goes on from a checkpoint of the same name."""
        folder = self.args.cache / f"{self.subject.name}-{name}-checkpoints"
        given: dict[str, Any] = {"save_steps": 250, "logging_steps": 25, **self.subject.schedule, **options}
        arguments = DistillationArguments(
            output_dir=str(folder), disable_tqdm=True, use_cpu=not torch.cuda.is_available(), **given
        )
        trainer = DistillationTrainer(model, self.teacher, arguments, self.rows, DataCollatorWithPadding(self.tokenizer))
        trainer.train(resume_from_checkpoint=newest_checkpoint(folder) is not None)
        shutil.rmtree(folder, ignore_errors=True)
        set_attention(model, False)
        return trainer


def signature(settings: dict[str, Any]) -> list[str]:
    """What every tensor computes: with modes of extent 1, all formats of one rank are the same two matrices."""
    found = []
    for setting in settings.values():
        if setting is None:
            found.append("dense")
            continue
        plain = len(setting.rank) == 1 and not any(map(folded, (setting.shape.out_modes, setting.shape.in_modes)))
        found.append(f"{'low_rank' if plain else f'{setting.format} {setting.shape}'} {setting.rank}")
    return found


def measure(
    bench: Bench, decomposition: str, method: str, variant: str, seed: int = 0, card: bool = False, keep: bool = False
) -> dict[str, Any]:
    """One row: compress, distil, score; or why there is none. With `keep`, the trained model stays in the cache."""
    gain = GAINS[variant]
    key = f"{bench.name(decomposition, method, gain)} {seed}"
    rows, trained = bench.found["rows"], bench.args.cache / f"{key} trained"
    if key in rows and not (keep and not trained.is_dir()):
        return rows[key]
    try:
        model, report = bench.student(decomposition, method, gain)
    except ValueError as error:
        if "cannot be reached" not in str(error):
            raise
        rows[key] = {"decomposition": decomposition, "rank_search": method, "variant": variant, "unreachable": str(error)}
        bench.save()
        return rows[key]
    if model is None:
        rows[key] = {"decomposition": decomposition, "rank_search": method, "variant": variant, "same_as": report}
        print(key, "is", report, flush=True)
        bench.save()
        return rows[key]
    untrained = bench.score(model)
    started = time.perf_counter()
    trainer = bench.distil(model, f"{decomposition}-{method}-{gain:g}-{seed}", seed=seed)
    seconds = time.perf_counter() - started
    found = bench.figures(model)
    rows[key] = row = result_row(
        report, bench.subject.task, found["score"], bench.teacher_score, dataset=bench.subject.name,
        decomposition=decomposition, variant=variant, rank_search=method, recipe=trainer.args.recipe, seed=seed,
        train_rows=len(bench.rows), steps=trainer.state.global_step, seconds=round(seconds, 1), untrained_score=untrained,
        agreement=found["agreement"], divergence=found["divergence"],
        signature=signature({own.name: own.setting for own in report.tensors}),
        command=bench.args.command,
    )  # fmt: skip
    print(
        key,
        f"untrained {untrained:.4f} distilled {row['score']:.4f} dense {bench.teacher_score:.4f} {seconds:.0f} s",
        flush=True,
    )
    bench.save()
    if keep:
        save_compressed(model, bench.tokenizer, trained, saved_files(report))
    if card:
        card_folder(bench, row).mkdir(parents=True, exist_ok=True)
        draw_training(trainer.state.log_history, card_folder(bench, row) / "training.png")
        write_card(bench, report, row)
    return row


def card_folder(bench: Bench, row: dict[str, Any]) -> Path:
    """Where a row's card is."""
    name = f"minilm-{bench.subject.name.lower()}-{row['decomposition']}-{row['variant']}".replace("_", "-")
    return bench.args.cards / name


def write_card(bench: Bench, report: CompressionReport, row: dict[str, Any]) -> None:
    """The card of a row; the picture of its training is beside it already."""
    folder, subject = card_folder(bench, row), bench.subject
    base = "sentence-transformers/all-MiniLM-L6-v2" if subject is STSB else Path(bench.checkpoint).name
    rows = (
        f"{subject.train[0].split('/')[0]} ({subject.joined:.0%} of them joined of two)" if subject.joined else subject.train[0]
    )
    arguments = DistillationArguments(output_dir="unused", seed=row["seed"], **subject.schedule)
    origin = Origin(
        folder.name, base, inherited_license(bench.checkpoint), training=training_text(arguments, row, rows),
        command=row["command"], figures={"Losses over the steps of training": "training.png"}, language="en",
    )  # fmt: skip
    split = Path(subject.test).stem
    scored = evaluation_of(row, subject.name, split, len(bench.test))
    card = model_card(replace(report, base_model=base), origin, [scored])
    card.save(folder / "README.md")
    write_json(folder / "metrics.json", row)


def cards(bench: Bench) -> None:
    """Write the cards again, of what has been measured."""
    for row in bench.found["rows"].values():
        measured = row.get("dataset") == bench.subject.name and row["rank_search"] == HEAT
        if measured and row["seed"] == 0 and card_folder(bench, row).is_dir():
            _, report = bench.student(row["decomposition"], row["rank_search"], GAINS[row["variant"]])
            write_card(bench, report, row)
