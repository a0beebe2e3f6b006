"""Model cards: what a compressed model is, what it costs, how good it is, and how it was made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from heat_hf.encoders.checkpoints.names import CARD_NAME, REPORT_NAME
from heat_hf.evaluation.tasks import usage
from heat_hf.formats import GONE
from heat_hf.hardware.cost import EDP, TIME
from heat_hf.reports.markdown import code, plain

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from heat_hf.reports.compared import Compared
    from heat_hf.reports.compression import CompressionReport
from heat_hf.reports.tensor import TensorReport

OF_DENSE = " of the dense model"  # after a metric's name
HARDWARE_METRICS = {EDP: "edp", TIME: "latency"}  # what a report compares → the Hub's type of metric
_SAVED = {EDP: "energy-delay product (EDP)", TIME: "time"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TEMPLATE = Path(__file__).with_name("model_card.md")


@dataclass(frozen=True)
class Evaluation:
    """A score of a compressed model, and the dense model's on the same rows.

    Attributes:
        task: as the Hub's pipelines are named, "text-classification".
        dataset: its name, "SST-2".
        split: rows, "validation".
        rows: how many.
        metric: name of the score.
        score, dense_score: what both reach.
        dataset_type: the Hub's id of the data set; default: the name in lower case.
    """

    task: str
    dataset: str
    split: str
    rows: int
    metric: str
    score: float
    dense_score: float
    dataset_type: str = ""


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as far as its card says so.

    Attributes:
        name: of the model.
        base_model: Hub id or name of the dense checkpoint; default: the report's.
        license: of the dense checkpoint; default: the report's.
        datasets: Hub ids or names of training data.
        training: sentences on how it was trained.
        command: that makes it again.
        figures: label → path of a picture, beside the card.
        language: of the data.
        task: as the Hub's pipelines are named; default: that of the scores, or else "feature-extraction".
    """

    name: str
    base_model: str | None = None
    license: str | None = None
    datasets: Sequence[str] = ()
    training: str = ""
    command: str = ""
    figures: Mapping[str, str] | None = None
    language: str | None = None
    task: str = ""


def model_card(report: CompressionReport, origin: Origin, evaluations: Sequence[Evaluation] = ()) -> ModelCard:
    """The card of a compressed model.

    Args:
        report: of the compression.
        origin: what the report does not know.
        evaluations: scores.
    """
    from huggingface_hub import ModelCard

    base = origin.base_model or report.base_model
    task = origin.task or (evaluations[0].task if evaluations else "feature-extraction")
    factorized = [t for t in report.tensors if t.setting is not None and t.setting.format not in GONE]
    cost = report.hardware
    card: ModelCard = ModelCard.from_template(
        _card_data(report, origin, evaluations, base, task),
        template_path=str(TEMPLATE),
        name=plain(origin.name),
        base_link=f"https://huggingface.co/{base}" if HUB_ID.fullmatch(base) else "",
        base_model=plain(base),
        factorized=len(factorized),
        tensors=len(report.tensors),
        formats=", ".join(sorted(_formats(report))),
        dropped="" if report.dropped is None else plain(str(report.dropped)),
        embedding="" if report.embedding is None else plain(str(report.embedding)),
        params_ratio=f"{report.params_ratio:.3f}",
        gain="" if cost is None else _gain(cost, report.whole),
        error="‖W − W′‖/‖W‖"
        if all(map(_tokenwise, factorized))
        else "‖P − I⊗W‖/‖I⊗W‖, P what a layer does to a tile of tokens,",
        measure=report.measure[0].upper() + report.measure[1:],
        accelerator=plain(report.accelerator),
        usage=usage(origin.name, task),
        comparison=_comparison(report, evaluations),
        scores_note=_scores_note(evaluations),
        hardware_note=_hardware_note(report),
        training=origin.training,
        command=origin.command.replace("\n", " "),
        figures=[{"label": plain(label), "path": quote(path)} for label, path in (origin.figures or {}).items()],
        settings=_settings(report.tensors, report.measure),
    )
    return card


def saved_files(report: CompressionReport, card: ModelCard | None = None) -> dict[str, bytes]:
    """Report and card as the files of a compressed model's folder: name → content."""
    files = {REPORT_NAME: report.to_json().encode()}
    return files if card is None else {**files, CARD_NAME: str(card).encode()}


def origin_of(report: CompressionReport, name: str, task: str = "") -> Origin:
    """What is known of a model's origin from its report.

    Args:
        report: of the compression.
        name: of the model.
        task: of the model, see `heat_hf.evaluation.tasks.task_of`.
    """
    return Origin(name, report.base_model, report.license, task=task)


def inherited_license(checkpoint: str | Path) -> str | None:
    """The licence that a dense checkpoint's own card states, if it has a card in its folder."""
    from huggingface_hub import ModelCard

    path = Path(checkpoint) / CARD_NAME
    return ModelCard.load(path, ignore_metadata_errors=True).data.get("license") if path.is_file() else None


def _card_data(report: CompressionReport, origin: Origin, evaluations: Sequence[Evaluation], base: str, task: str) -> Any:  # noqa: ANN401
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for scored in evaluations:
        about: dict[str, Any] = {
            "task_type": scored.task,
            "dataset_type": scored.dataset_type or scored.dataset.lower().replace(" ", "-"),
            "dataset_name": scored.dataset,
            "dataset_split": scored.split,
        }
        results.append(
            EvalResult(**about, metric_type=scored.metric, metric_name=scored.metric, metric_value=round(scored.score, 5))
        )
        dense = f"{scored.metric}{OF_DENSE}"
        results.append(
            EvalResult(**about, metric_type=scored.metric, metric_name=dense, metric_value=round(scored.dense_score, 5))
        )
        if report.hardware is not None:
            measure, unit, before, now = report.hardware.rows()[0]
            where = f"on {report.accelerator}, {report.tokens} tokens, {unit}"
            kind = HARDWARE_METRICS[measure]
            for label, value in ((measure, now), (f"{measure}{OF_DENSE}", before)):
                figure = float(f"{value:.6g}")
                results.append(EvalResult(**about, metric_type=kind, metric_name=f"{label} {where}", metric_value=figure))
    return ModelCardData(
        language=origin.language,
        license=origin.license or report.license,
        library_name="heat_hf",
        tags=["heat_hf", "tensor-decomposition", "model-compression", *sorted(_formats(report))],
        base_model=base,
        datasets=list(origin.datasets) or None,
        pipeline_tag=task,
        model_name=origin.name if results else None,
        eval_results=results or None,
    )


def _gain(cost: Compared, whole: Compared | None) -> str:
    of_all = "" if whole is None else f" ({_times(whole, 'as much')} for the whole model)"
    return f"{_times(cost, 'the')} {_SAVED[cost.measure]}{of_all}"


def _times(cost: Compared, more: str) -> str:
    return f"{1 / cost.ratio:.2f} times less" if cost.ratio <= 1 else f"{cost.ratio:.2f} times {more}"


def _tokenwise(tensor: TensorReport) -> bool:
    return tensor.setting is None or tensor.setting.codec.tokenwise


def _formats(report: CompressionReport) -> set[str]:
    return {t.setting.format for t in report.tensors if t.setting is not None} - GONE.keys()


def _comparison(report: CompressionReport, evaluations: Sequence[Evaluation]) -> str:
    lines = ["| | dense | this model | change |", "|---|---:|---:|---:|"]
    for scored in evaluations:
        what = plain(f"{scored.dataset} {scored.split}, {scored.metric}")
        lines.append(f"| {what} | {scored.dense_score:.4f} | {scored.score:.4f} | {scored.score - scored.dense_score:+.4f} |")
    figures = [
        ("parameters", report.model_parameters, report.compressed_model_parameters),
        ("parameters of the encoder matrices", report.dense_parameters, report.parameters),
    ]
    lines += [f"| {label} | {before:,} | {after:,} | ×{after / before:.3f} |" for label, before, after in figures]
    for label, unit, before, after in report.figures:
        lines.append(f"| {label}, {unit} | {before:.4g} | {after:.4g} | ×{after / before:.3f} |")
    return "\n".join(lines)


def _scores_note(evaluations: Sequence[Evaluation]) -> str:
    return "; ".join(f"{plain(scored.dataset)}: {scored.rows:,} rows of {plain(scored.split)}" for scored in evaluations) + (
        "." if evaluations else ""
    )


def _hardware_note(report: CompressionReport) -> str:
    if report.accelerator is None:
        return ""
    hardware, digest = code(report.accelerator), code(report.accelerator_digest)
    if report.measure == TIME:
        return (
            f"The time is summed over the encoder matrices for {report.tokens} tokens, as the cost model {hardware} "
            f"(digest {digest}) gives it; energies are not known."
        )
    from heat_hf.hardware import load_accelerator

    note = (
        f"EDP is ΣE·ΣT over the encoder matrices for {report.tokens} tokens on {hardware} (specification digest "
        f"{digest}), each product with its best mapping, as heat_hf's cost model has it; it is computed, "
        "not measured on a chip."
    )
    if report.around is not None:
        note += (
            " The whole model also has attention's products, normalization, activations and embeddings, one after the other."
        )
    try:
        specification = load_accelerator(report.accelerator)
    except (OSError, ValueError):
        return note
    return f"{note} {plain(specification.technology)}" if specification.digest == report.accelerator_digest else note


def _settings(tensors: Sequence[TensorReport], measure: str) -> str:
    lines = [
        f"| tensor | size | format | shape | rank | parameters | {measure} | error | output error |",
        "|---|---|---|---|---|---:|---:|---:|---:|",
    ]
    for tensor in tensors:
        name, size, form, shape, rank, _, ratio, _, gain, error, output = tensor.row()
        lines.append(f"| {plain(name)} | {size} | {form} | {shape} | {rank} | ×{ratio} | {gain} | {error} | {output} |")
    return "\n".join(lines)
