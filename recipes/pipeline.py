"""What all recipes do: a teacher, a compressed student, distillation, scores, and the evidence of it.

Every part is kept in the output folder as soon as it is done, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, Trainer, TrainingArguments

from heat_hf import CompressionReport, HeatCompressor
from heat_hf.distillation import DistillationTrainer
from heat_hf.encoders.batches import data_digest, pad_batches
from heat_hf.encoders.checkpoints.key import read_key, require_same_key
from heat_hf.encoders.checkpoints.sentence_encoder import sentence_encoder
from heat_hf.encoders.checkpoints.storage import atomic_directory
from heat_hf.encoders.resuming import deciding, newest_checkpoint
from heat_hf.encoders.rows import joined_texts
from heat_hf.encoders.served import Served
from heat_hf.evaluation.tasks import evaluate_task
from heat_hf.reports.card import Origin, inherited_license
from heat_hf.reports.markdown import plain
from heat_hf.reports.ranks import RankRecord
from recipes.evidence import evaluation_of, result_row, write_json
from recipes.material import Material, read_material
from recipes.options import Options

# Options that say what is scored and how the result is called, not what it is.
_SHOWN = ("name", "data_name", "validation_rows", "validation_file", "validation_split")


@dataclass(frozen=True)
class Job:
    """A run's options, rows and tokenizer.

    Attributes:
        options: all of them.
        material: rows to train on and to score.
        tokenizer: the dense model's.
        words: the same as its checkpoint serves texts with it.
        prompt: that is served in front of every text.
        encoded: training rows as the task encodes them, with labels where it has any.
    """

    options: Options
    material: Material
    tokenizer: Any
    words: Any
    prompt: str
    encoded: Any

    @property
    def output(self) -> Path:
        """Where everything is kept."""
        return Path(str(self.options.training.output_dir))

    @property
    def training_rows(self) -> int:
        """Rows that the student is trained on; one may be encoded as several inputs."""
        return len(self.material.train) + self.options.data.joined_rows

    def score(self, model: Any) -> dict[str, float]:  # noqa: ANN401
        """The task's scores on the validation rows."""
        task, material = self.options.task, self.material
        return evaluate_task(model, self.tokenizer, task.name, material.validation, material.columns)


def run(options: Options) -> dict[str, Any]:
    """Run a recipe; returns what goes to metrics.json."""
    first = options.training.main_process_first
    with first(local=False):
        material = read_material(options)
    model, data = options.model, options.data
    tokenizer = AutoTokenizer.from_pretrained(model.teacher or model.model, revision=model.revision)
    words, prompt = _served(options, tokenizer)
    train = _prompted(material, prompt)
    encoded = options.task.encode(train, material.train_columns, words, data.max_length, data.stride)
    job = Job(options, material, tokenizer, words, prompt, encoded)
    with first(local=False):
        _require_run(job)
    teacher = _teacher(job)
    rows = _joined(job) if data.joined_rows else encoded
    with first(local=False):
        student, report = _student(job, teacher, rows)
    untrained = job.score(student)
    started = time.perf_counter()
    checkpoints = job.output / "checkpoints"
    training = dataclasses.replace(options.training, output_dir=str(checkpoints))
    trainer = DistillationTrainer(
        student, teacher, training, rows, options.task.collator(tokenizer), report, processing_class=tokenizer
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=newest_checkpoint(checkpoints) is not None)
    seconds = time.perf_counter() - started
    scores = {"scores": job.score(student.eval()), "teacher_scores": job.score(teacher), "untrained_scores": untrained}
    row = _row(job, report, scores, trainer.state.global_step, seconds)
    _keep(job, trainer, row)
    return row


def _served(options: Options, tokenizer: Any) -> tuple[Any, str]:  # noqa: ANN401
    """What a sentence encoder's checkpoint serves texts with: its tokenizer, in lower case where it says so, and its prompt."""
    model = options.model
    if options.task.fine_tunes:
        return tokenizer, ""
    served = Served(sentence_encoder(model.teacher or str(model.model), revision=model.revision))
    return served.tokenizer(tokenizer), served.prompt


def _prompted(material: Material, prompt: str) -> Any:  # noqa: ANN401
    """The training rows, their texts with a prompt in front."""
    texts = [name for name in material.train_columns[:2] if name]
    return material.train.map(lambda row: {name: prompt + row[name] for name in texts}) if prompt else material.train


def _joined(job: Job) -> Any:  # noqa: ANN401
    """Training rows with unlabelled ones between, in random order."""
    import datasets

    seed, data = job.options.training.seed, job.options.data
    texts = [job.prompt + text for text in joined_texts(job.material.texts, data.joined_rows, seed)]
    added = datasets.Dataset.from_dict(dict(job.words(texts, truncation=True, max_length=data.max_length)))
    plain = job.encoded.select_columns(added.column_names).cast(added.features)
    return datasets.concatenate_datasets([plain, added]).shuffle(seed=seed)


def _require_run(job: Job) -> None:
    """Make sure that what the output folder keeps is of this very run.

    Raises:
        ValueError: if it is of another; the message says in what they differ.
    """
    options, file = job.options, job.output / "run.json"
    asked = {**vars(options.model), **vars(options.data), **vars(options.compression), **deciding(options.training)}
    key = {name: value for name, value in asked.items() if name not in _SHOWN}
    key["training data"] = data_digest(job.encoded[row] for row in range(len(job.encoded)))
    for name in ("ranks", "cost_table"):
        key[f"content of {name}"] = hashlib.sha256(Path(key[name]).read_bytes()).hexdigest() if key[name] else None
    key = json.loads(json.dumps(key, default=str))
    if file.exists():
        require_same_key(read_key(file), key, str(job.output), "run", "remove it")
    else:
        write_json(file, key)


def _teacher(job: Job) -> Any:  # noqa: ANN401
    """The dense model: as given, or fine-tuned here."""
    model_class, model, folder = job.options.task.model_class, job.options.model, job.output / "teacher"
    if model.teacher is None and not folder.is_dir():
        _fine_tune(job, folder)
    return model_class.from_pretrained(model.teacher or folder, revision=model.revision).eval()


def _fine_tune(job: Job, folder: Path) -> None:
    options, checkpoints = job.options, job.output / "teacher-checkpoints"
    shared = ("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "bf16", "fp16", "use_cpu")
    shared += ("save_steps", "logging_steps", "train_sampling_strategy", "disable_tqdm")
    args = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=options.model.teacher_epochs,
        learning_rate=options.model.teacher_learning_rate,
        warmup_steps=0.1,
        save_total_limit=1,
        report_to=[],
        **{name: getattr(options.training, name) for name in shared},
    )
    model, collator = _with_a_new_head(job), options.task.collator(job.tokenizer)
    trainer = Trainer(model=model, args=args, train_dataset=job.encoded, data_collator=collator)
    newest = newest_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    if trainer.is_world_process_zero():
        with atomic_directory(folder, overwrite=True) as scratch:
            model.save_pretrained(scratch)
            job.tokenizer.save_pretrained(scratch)
    trainer.accelerator.wait_for_everyone()


def _with_a_new_head(job: Job) -> Any:  # noqa: ANN401
    """The encoder to fine-tune, its head named as the task names labels."""
    task, model = job.options.task, job.options.model
    names = task.labels(job.material.train, job.material.train_columns)
    labels = {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    config = AutoConfig.from_pretrained(model.model, revision=model.revision, **labels)
    if model.teacher_config_overrides is not None:
        config.update_from_string(model.teacher_config_overrides)
    return task.model_class.from_pretrained(model.model, revision=model.revision, config=config)


def _student(job: Job, teacher: Any, encoded: Any) -> Any:  # noqa: ANN401
    """The compressed model before training, and its report; made once."""
    options, folder = job.options, job.output / "untrained"
    model_class, tokenizer = options.task.model_class, job.tokenizer
    if not folder.is_dir():
        asked = options.compression
        variant = None if asked.ranks is None else RankRecord.load(asked.ranks).variant(str(asked.variant))
        count = min(options.data.calibration_rows, len(encoded))
        names = tokenizer.model_input_names
        rows = [{name: encoded[row][name] for name in names if name in encoded[row]} for row in range(count)]
        source = options.model.teacher or job.output / "teacher"
        compressor = HeatCompressor.from_pretrained(source, tokenizer, model_class, revision=options.model.revision)
        compressor.compress(asked.config(options.training.seed), pad_batches(rows, tokenizer), folder, variant=variant)
    return model_class.from_pretrained(folder).to(teacher.device), CompressionReport.load(folder)


def _row(
    job: Job, report: CompressionReport, scores: dict[str, dict[str, float]], steps: int, seconds: float
) -> dict[str, Any]:
    options, metric = job.options, job.options.task.main
    return result_row(
        report,
        options.task.name,
        scores["scores"][metric],
        scores["teacher_scores"][metric],
        decomposition=options.compression.decomposition,
        variant=options.compression.variant or "",
        rank_search=options.compression.rank_search,
        recipe=options.training.recipe,
        seed=options.training.seed,
        train_rows=job.training_rows,
        steps=steps,
        seconds=round(seconds, 1),
        **scores,
        command=options.command,
    )


def _keep(job: Job, trainer: DistillationTrainer, row: dict[str, Any]) -> None:
    """metrics.json, and the model with its card."""
    data, name, folder = job.options.data, job.material.name, job.output / "model"
    split = data.validation_split if data.dataset else Path(str(data.validation_file)).stem
    scored = evaluation_of(row, name, split, int(row["scores"]["rows"]))
    trainer.save(folder, overwrite=True, origin=recipe_origin(job.options, row, name), evaluations=[scored])
    if trainer.is_world_process_zero():
        write_json(job.output / "metrics.json", row)
        print(f"{row['metric']} {row['score']:.4f}, dense {row['teacher_score']:.4f}; the model is in {folder}")


def recipe_origin(options: Options, row: dict[str, Any], data: str) -> Origin:
    """What a card needs to know of where a model comes from."""
    model = options.model
    dense = model.teacher or str(model.model)
    tuned = f"The dense model was fine-tuned on the same rows (epochs: {model.teacher_epochs:g}, learning rate "
    tuned += f"{model.teacher_learning_rate:g}). "
    return Origin(
        name=model.name or Path(str(options.training.output_dir)).name,
        base_model=Path(dense).name if Path(dense).is_dir() else dense,
        license=inherited_license(dense) if Path(dense).is_dir() else None,
        datasets=[options.data.dataset] if options.data.dataset else [],
        training=("" if model.teacher else tuned) + training_text(options.training, row, data),
        command=options.command,
    )


def training_text(training: Any, row: dict[str, Any], data: str) -> str:  # noqa: ANN401
    """A card's sentences on how a model was trained."""
    how = training.described(row["steps"], row["train_rows"], data)
    return f"Ranks by {row['rank_search']}, projected on {plain(data)} training rows; then {how}"
