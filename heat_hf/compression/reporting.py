"""What compression gained and lost, put together from settings, costs and decompositions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from heat_hf.compression.refinement import Refined
from heat_hf.encoders.around import cost_around
from heat_hf.encoders.checkpoints.names import checkpoint_name, package_version
from heat_hf.encoders.dropping import dropped_blocks
from heat_hf.formats import GONE
from heat_hf.formats.decomposition import Factorization
from heat_hf.formats.setting import Settings, TensorSetting
from heat_hf.hardware.analytic import AnalyticModel
from heat_hf.reports.card import inherited_license
from heat_hf.reports.compared import Compared
from heat_hf.reports.compression import CompressionReport
from heat_hf.reports.dropping import Dropped
from heat_hf.reports.embedding import EmbeddingReport
from heat_hf.reports.tensor import TensorReport
from heat_hf.search.ranks.space import Costs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Reached:
    """What a matrix got.

    Attributes:
        setting: None where it stays dense.
        factorization: None where it stays dense, or in a plan.
    """

    setting: TensorSetting | None
    factorization: Factorization | None = None

    @property
    def less_cores(self) -> Reached:
        """The same once a layer has the cores."""
        return self if self.factorization is None else replace(self, factorization=replace(self.factorization, cores=()))


def report_of(
    model: PreTrainedModel,
    costs: Costs,
    reached: Mapping[str, Reached],
    calibration_rows: int = 0,
    request: Mapping[str, Any] | None = None,
    fed: tuple[int, int] | None = None,
    embedding: EmbeddingReport | None = None,
) -> CompressionReport:
    """The report of a model that is still dense.

    Args:
        model: the dense model.
        costs: of its matrices.
        reached: what every matrix gets.
        calibration_rows: sequences of the calibration data.
        request: what was asked for, as JSON.
        fed: tokens of a sequence and sequences of a forward pass, to cost what is around the matrices.
        embedding: of word embeddings of low rank.
    """
    settings = {name: result.setting for name, result in reached.items()}
    hardware, place = costs.model, str(model.config._name_or_path)
    return CompressionReport(
        base_model=checkpoint_name(model),
        license=inherited_license(place) if place else None,
        model_parameters=model.num_parameters(),
        tokens=costs.tokens,
        tensors=tuple(_tensor(name, result, costs, model) for name, result in reached.items()),
        accelerator=None if hardware is None else hardware.name,
        accelerator_digest=None if hardware is None else hardware.digest,
        calibration_rows=calibration_rows,
        heat_version=package_version(),
        request=request or {},
        dropped=_dropped(model, settings),
        embedding=embedding,
        around=None if fed is None else _around(model, costs, settings, fed, embedding),
    )


def embedding_report(name: str, dense: nn.Embedding, rank: int, error: float | None) -> EmbeddingReport:
    """Of word embeddings that get a rank; the error is known once they have it."""
    return EmbeddingReport(name, dense.num_embeddings, dense.embedding_dim, rank, error)


def _around(
    model: PreTrainedModel, costs: Costs, settings: Settings, fed: tuple[int, int], embedding: EmbeddingReport | None
) -> Compared | None:
    """Only where the accelerator is described: other cost models know products of matrices."""
    if not isinstance(costs.model, AnalyticModel):
        return None
    found = cost_around(model, settings, costs.model, *fed, 0 if embedding is None else embedding.rank)
    return None if found is None else Compared(*found)


def _dropped(model: PreTrainedModel, settings: Settings) -> Dropped | None:
    gone = dropped_blocks(settings)
    if not gone:
        return None
    whole = sum(parameter.numel() for block in gone for parameter in model.get_submodule(block).parameters())
    matrices = sum(setting.dense_parameters for setting in settings.values() if setting and setting.format in GONE)
    places = (model.get_submodule(place) for place in {block.rpartition(".")[0] for block in gone})
    return Dropped(tuple(gone), sum(len(list(place.children())) for place in places), whole - matrices)


def refined_report(report: CompressionReport, refined: Refined) -> CompressionReport:
    """The report of a model whose layers were refined since; output errors that said nothing stay left out."""
    tensors = []
    for tensor in report.tensors:
        error, output_error = refined.errors.get(tensor.name, (tensor.relative_error, tensor.output_error))
        told = None if tensor.output_error is None else output_error
        tensors.append(replace(tensor, relative_error=error, output_error=told))
    return replace(report, tensors=tuple(tensors), refinement=refined.refinement)


def _tensor(name: str, result: Reached, costs: Costs, model: PreTrainedModel) -> TensorReport:
    matrix, setting, factorization = costs.matrices[name], result.setting, result.factorization
    size, now, dense = matrix.size, costs.one_run(name, setting), costs.one_run(name, None)
    return TensorReport(
        name,
        size.rows,
        size.columns,
        setting,
        macs=size.elements if setting is None else setting.plan(costs.tokens).macs / costs.tokens,
        hardware=None if now is None or dense is None else Compared(now, dense),
        runs=matrix.runs,
        relative_error=None if factorization is None else factorization.relative_error,
        output_error=None if factorization is None else factorization.output_error,
        sweeps=0 if factorization is None else factorization.sweeps,
        converged=True if factorization is None else factorization.converged,
        bias_lost=0 if model.get_submodule(name).bias is None else _outputs_lost(setting),
    )


def _outputs_lost(setting: TensorSetting | None) -> int:
    return 0 if setting is None or setting.format != "fewer_outputs" else setting.shape.rows - setting.rank[0]
