"""What all recipes do: a teacher, a compressed student, distillation, scores, and the evidence of it.

Every part is kept in the output folder as soon as it is done, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from heat_hf import CompressionReport, HeatCompressor
from heat_hf.distillation import DistillationTrainer
from heat_hf.encoders.batches import pad_batches
from heat_hf.encoders.checkpoints.storage import atomic_directory
from heat_hf.encoders.rows import joined_texts, load_rows
from heat_hf.evaluation.tasks import TASKS, evaluate_task
from heat_hf.reports.card import Origin, inherited_license
from heat_hf.reports.ranks import RankRecord
from recipes.evidence import evaluation_of, result_row, write_json
from recipes.options import DataOptions, Options, parse


@dataclass(frozen=True)
class Recipe:
    """What a task adds.

    Attributes:
        task: key of `heat_hf.evaluation.tasks.TASKS`.
        encode: rows, their columns, tokenizer, options → rows of model inputs with labels, if there are any.
        collator: of a tokenizer.
        labels: rows, their columns → names of the classes; None where the task has none.
        fine_tunes: whether a teacher can be made here.
    """

    task: str
    encode: Callable[[Any, tuple[str, str, str], Any, DataOptions], Any]
    collator: Callable[[Any], Any]
    labels: Callable[[Any, tuple[str, str, str]], list[str] | None] = lambda _rows, _columns: None
    fine_tunes: bool = True

    @property
    def model_class(self) -> Any:  # noqa: ANN401
        """The Transformers class with the task's head."""
        return getattr(transformers, TASKS[self.task].model_class)


@dataclass(frozen=True)
class Material:
    """Rows that were read; `texts` are all training texts, the short ones, too, where they are to be joined."""

    train: Any
    validation: Any
    columns: tuple[str, str, str]
    train_columns: tuple[str, str, str]
    name: str
    texts: list[str]


def run(recipe: Recipe, module: str, argv: list[str] | None = None) -> dict[str, Any]:
    """Run a recipe; returns what goes to metrics.json."""
    options = parse(module, argv)
    if options.model.teacher is None and not recipe.fine_tunes:
        raise ValueError(f"{recipe.task} has no labels to fine-tune on: name a teacher, the encoder itself")
    output = Path(str(options.training.output_dir))
    training = dataclasses.replace(options.training, output_dir=str(output / "checkpoints"))
    with training.main_process_first(local=False):
        material = _material(recipe, options)
    tokenizer = AutoTokenizer.from_pretrained(options.model.teacher or options.model.model, revision=options.model.revision)
    encoded = recipe.encode(material.train, material.train_columns, tokenizer, options.data)
    teacher = _teacher(recipe, options, material, encoded, tokenizer, output)
    rows = _joined(encoded, material, tokenizer, options) if options.data.joined_rows else encoded
    with training.main_process_first(local=False):
        student, report = _student(recipe, options, teacher, rows, tokenizer, output)

    def score(model: Any) -> dict[str, float]:  # noqa: ANN401
        return evaluate_task(model, tokenizer, recipe.task, material.validation, material.columns)

    before = score(student)
    started = time.perf_counter()
    trainer = DistillationTrainer(
        student, teacher, training, rows, recipe.collator(tokenizer), report, processing_class=tokenizer
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=_last(output / "checkpoints"))
    seconds = time.perf_counter() - started
    found = {"scores": score(student.eval()), "teacher_scores": score(teacher), "untrained_scores": before}
    row = _row(
        recipe, options, report, found, len(material.train) + options.data.joined_rows, trainer.state.global_step, seconds
    )
    _keep(options, material, trainer, row, output)
    return row


def _material(recipe: Recipe, options: Options) -> Material:
    data = options.data
    if data.dataset is not None:
        import datasets

        train, validation = (
            datasets.load_dataset(data.dataset, data.dataset_config, split=split)
            for split in (data.train_split, data.validation_split)
        )
    else:
        train, validation = _concatenated(data.train_files), load_rows(str(data.validation_file), data.validation_rows)
    if data.validation_rows is not None:
        validation = validation.select(range(min(data.validation_rows, len(validation))))
    columns = tuple(data.columns or TASKS[recipe.task].columns)
    train_columns = tuple(data.train_columns or columns)
    for rows, names, which in ((train, train_columns, "train"), (validation, columns, "validation")):
        missing = [name for name in names if name and name not in rows.column_names]
        if len(names) != 3 or missing:
            what = f"no column {missing[0]!r}" if missing else f"columns {list(names)!r} named, which must be three"
            raise ValueError(f"the {which} data has {what}; it has {', '.join(rows.column_names)}")
    if data.joined_rows and train_columns[1]:
        raise ValueError(f"joined_rows are for one text a row, and the rows have a second one, {train_columns[1]!r}")
    texts = train[train_columns[0]] if data.least_words or data.joined_rows else []
    long = (
        train.select([place for place, text in enumerate(texts) if len(text.split()) >= data.least_words]) if texts else train
    )
    if data.train_rows is not None and data.train_rows < len(long):
        long = long.shuffle(seed=options.training.seed).select(range(data.train_rows))
    name = data.data_name or data.dataset or Path(data.train_files[0]).parent.name
    return Material(long, validation, columns, train_columns, name, list(texts))  # type: ignore[arg-type]


def _concatenated(paths: list[str]) -> Any:  # noqa: ANN401
    import datasets

    parts = [load_rows(path) for path in paths]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _joined(encoded: Any, material: Material, tokenizer: Any, options: Options) -> Any:  # noqa: ANN401
    """Training rows with unlabelled ones between, in random order."""
    import datasets

    seed, data = options.training.seed, options.data
    texts = joined_texts(material.texts, data.joined_rows, seed)
    added = datasets.Dataset.from_dict(dict(tokenizer(texts, truncation=True, max_length=data.max_length)))
    plain = encoded.select_columns(added.column_names).cast(added.features)
    return datasets.concatenate_datasets([plain, added]).shuffle(seed=seed)


def _last(folder: Path) -> str | None:
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _teacher(recipe: Recipe, options: Options, material: Material, encoded: Any, tokenizer: Any, output: Path) -> Any:  # noqa: ANN401
    """The dense model: as given, or fine-tuned here."""
    own, folder = options.model, output / "teacher"
    if own.teacher is not None or folder.is_dir():
        return recipe.model_class.from_pretrained(own.teacher or folder, revision=own.revision).eval()
    names = recipe.labels(material.train, material.train_columns)
    about = {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    config = AutoConfig.from_pretrained(own.model, revision=own.revision, **about)
    if own.teacher_config_overrides is not None:
        config.update_from_string(own.teacher_config_overrides)
    model = recipe.model_class.from_pretrained(own.model, revision=own.revision, config=config)
    shared = ("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "bf16", "fp16", "use_cpu")
    shared += ("save_steps", "logging_steps", "train_sampling_strategy", "disable_tqdm")
    args = TrainingArguments(
        output_dir=str(output / "teacher-checkpoints"),
        num_train_epochs=own.teacher_epochs,
        learning_rate=own.teacher_learning_rate,
        warmup_steps=0.1,
        save_total_limit=1,
        report_to=[],
        **{name: getattr(options.training, name) for name in shared},
    )
    trainer = Trainer(model=model, args=args, train_dataset=encoded, data_collator=recipe.collator(tokenizer))
    trainer.train(resume_from_checkpoint=_last(output / "teacher-checkpoints"))
    if trainer.is_world_process_zero():
        with atomic_directory(folder, overwrite=True) as place:
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
    trainer.accelerator.wait_for_everyone()
    return recipe.model_class.from_pretrained(folder).eval()


def _student(recipe: Recipe, options: Options, teacher: Any, encoded: Any, tokenizer: Any, output: Path) -> Any:  # noqa: ANN401
    """The compressed model before training, and its report; made once."""
    folder = output / "untrained"
    if not folder.is_dir():
        own = options.compression
        variant = None if own.ranks is None else RankRecord.load(own.ranks).variant(str(own.variant))
        count = min(options.data.calibration_rows, len(encoded))
        names = tokenizer.model_input_names
        rows = [{name: encoded[place][name] for name in names if name in encoded[place]} for place in range(count)]
        source = options.model.teacher or output / "teacher"
        compressor = HeatCompressor.from_pretrained(source, tokenizer, recipe.model_class, revision=options.model.revision)
        config = own.config(options.training.seed)
        config = config if variant is None else variant.configure(config)
        compressor.compress(config, pad_batches(rows, tokenizer), folder, variant=variant)
    return recipe.model_class.from_pretrained(folder).to(teacher.device), CompressionReport.load(folder)


def _row(
    recipe: Recipe,
    options: Options,
    report: CompressionReport,
    found: dict[str, dict[str, float]],
    rows: int,
    steps: int,
    seconds: float,
) -> dict[str, Any]:
    own, metric = options.compression, TASKS[recipe.task].main
    return result_row(
        report,
        recipe.task,
        metric,
        found["scores"][metric],
        found["teacher_scores"][metric],
        decomposition=own.decomposition,
        variant=own.variant or "",
        rank_search=own.rank_search,
        recipe=options.training.recipe,
        seed=options.training.seed,
        train_rows=rows,
        steps=steps,
        seconds=round(seconds, 1),
        **found,
        command=options.command,
    )


def _keep(options: Options, material: Material, trainer: DistillationTrainer, row: dict[str, Any], output: Path) -> None:
    """metrics.json, and the model with its card."""
    split = options.data.validation_split if options.data.dataset else Path(str(options.data.validation_file)).stem
    scored = evaluation_of(row, material.name, split, int(row["scores"]["rows"]))
    origin = recipe_origin(options, row, material.name)
    trainer.save(output / "model", overwrite=True, origin=origin, evaluations=[scored])
    if trainer.is_world_process_zero():
        write_json(output / "metrics.json", row)
        print(f"{row['metric']} {row['score']:.4f}, dense {row['teacher_score']:.4f}; the model is in {output / 'model'}")


def recipe_origin(options: Options, row: dict[str, Any], data: str) -> Origin:
    """What a card says of where a model comes from."""
    own = options.model
    dense = own.teacher or str(own.model)
    tuned = f"The dense model was fine-tuned on the same rows (epochs: {own.teacher_epochs:g}, learning rate "
    tuned += f"{own.teacher_learning_rate:g}). "
    return Origin(
        name=own.name or Path(str(options.training.output_dir)).name,
        base_model=Path(dense).name if Path(dense).is_dir() else dense,
        license=inherited_license(dense) if Path(dense).is_dir() else None,
        datasets=[options.data.dataset] if options.data.dataset else [],
        training=("" if own.teacher else tuned) + training_text(options.training, row, data),
        command=options.command,
    )


def training_text(training: Any, row: dict[str, Any], data: str) -> str:  # noqa: ANN401
    """A card's sentences on how a model was trained."""
    how = training.described(row["steps"], row["train_rows"], data)
    return f"Ranks by {row['rank_search']}, projected on {data} training rows; then {how}"
