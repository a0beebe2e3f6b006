"""One model and one request: what search, projection and report share is made once, here, and handed on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm.auto import tqdm

from heat_hf.compression.config import JOINTLY, HeatConfig
from heat_hf.compression.measuring import answers, expected, measured, with_output_errors
from heat_hf.compression.projecting import Projection
from heat_hf.compression.refinement import Kept, refine_blocks
from heat_hf.compression.replacing import attach, copied, kept_of, layer_of, replacing
from heat_hf.compression.reporting import Reached, embedding_report, refined_report, report_of
from heat_hf.compression.resuming import RefinedBlocks
from heat_hf.compression.tabled import table_of
from heat_hf.compression.trial import require_parameters, require_runs
from heat_hf.encoders.batches import Batch, data_digest, sequences
from heat_hf.encoders.checkpoints.key import require_same_key
from heat_hf.encoders.checkpoints.names import checkpoint_name
from heat_hf.encoders.dropping import droppable, dropped_blocks
from heat_hf.encoders.embedding import Embedded, embed, word_embeddings
from heat_hf.encoders.linears import by_block, encoder_linears
from heat_hf.encoders.statistics import Statistics
from heat_hf.encoders.tiles import share_encoders
from heat_hf.evaluation.quality import Quality
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.setting import Settings
from heat_hf.hardware import CostModel
from heat_hf.hardware.spec import CPU
from heat_hf.reports.compression import CompressionReport
from heat_hf.reports.ranks import RankRecord
from heat_hf.search.journal import Journal
from heat_hf.search.ranks.budgets import TARGETS, Budget, network_budgets
from heat_hf.search.ranks.methods import Solution
from heat_hf.search.ranks.problem import Problem, Training
from heat_hf.search.ranks.space import Costs, matrices_of
from heat_hf.search.ranks.variants import Variant, find_variants, search_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A dense model, what is asked for, and what there is to do it with.

    Attributes:
        model: the dense model.
        config: the request.
        calibration: batches of model inputs; None without.
        given_statistics: statistics collected before; used instead of collecting them.
        given_cost_model: what settings are costed by; None for the one of the request's accelerator.
        training: for methods that train.
        given_answers: of the dense model to the rows that the finished one is measured on; None to ask it.
        given_embedded: word embeddings of low rank that were found before.
    """

    model: PreTrainedModel
    config: HeatConfig
    calibration: Sequence[Batch] | None = None
    given_statistics: Statistics | None = None
    given_cost_model: CostModel | None = None
    training: Training | None = None
    given_answers: Quality | None = None
    given_embedded: Embedded | None = None

    @cached_property
    def linears(self) -> dict[str, nn.Linear]:
        """The layers to choose for, by name; all of the model's parameters are finite."""
        linears = encoder_linears(self.model, self.config.modules, self.config.exclude)
        require_parameters(self.model)
        return linears

    @cached_property
    def cost_model(self) -> CostModel | None:
        """What settings are costed by; None without an accelerator."""
        return self.config.cost_model() if self.given_cost_model is None else self.given_cost_model

    @cached_property
    def costs(self) -> Costs:
        """Of the model's tensors."""
        matrices = matrices_of(self.model, self.linears, self.config.batch_size, self.config.sequence_length)
        return Costs(matrices, self.config.tokens, self.cost_model)

    @cached_property
    def statistics(self) -> Statistics | None:
        """C, and G where it is needed, of all layers; None without calibration data."""
        config, given = self.config, self.given_statistics
        if not self._calibrated:
            return None
        if given is not None:
            given.require(self.model, list(self.linears), config.collects_gradients, self.calibration, config.tile_extent)
            return given
        return self._collected(self.linears)

    def _collected(self, linears: Mapping[str, nn.Linear], bar: bool = True) -> Statistics:
        return Statistics.collect(self.model, linears, self.calibration or (), bar=bar, **self.config.collected)

    @property
    def _calibrated(self) -> bool:
        there = self.calibration is not None or self.given_statistics is not None
        return there and self.config.uses_calibration

    @property
    def calibration_rows(self) -> int:
        """Sequences of the calibration data that is used."""
        if not self._calibrated:
            return 0
        given = self.given_statistics
        return sum(map(sequences, self.calibration or ())) if given is None else given.rows

    @cached_property
    def embedded(self) -> Embedded | None:
        """Word embeddings of the rank that is asked for; None where they stay dense."""
        config, rank = self.config, self.config.embedding_rank
        if rank is None or self.given_embedded is not None:
            return self.given_embedded
        return embed(self.model, self.calibration or (), rank, config.uses_gradients, config.seed)

    @property
    def _searches_statistics(self) -> bool:
        return self._calibrated and (self.config.method.needs_calibration or self.config.method.needs_training)

    @cached_property
    def problem(self) -> Problem:
        """What the rank-search method is given."""
        return replace(self._problem, statistics=self.statistics if self._searches_statistics else None)

    @cached_property
    def _problem(self) -> Problem:
        """The same without statistics: all that its key takes."""
        config = self.config
        asked = ("decomposition", "rank_search", *TARGETS, "tokens", "shape", "tile", "cost_table", "seed", *JOINTLY)
        asked += ("embedding_rank",) if config.embedding_rank else ()
        if config.blocks:
            droppable(self.model, self.linears)
            if not self.calibration:
                raise ValueError("blocks=True needs the rows of a calibration_dataset, also beside statistics")
        return Problem(
            self.model,
            self.linears,
            self.costs,
            config.formats,
            shape=config.shape,
            tile=config.tile,
            rank=config.rank,
            execution=config.execution,
            solver=config.solver,
            seed=config.seed,
            loss_aware=config.uses_gradients,
            **{name: getattr(config, name) for name in JOINTLY},
            calibration=self.calibration,
            diverges=self._diverges,
            table=table_of(self.model, self.linears, config, self.cost_model),
            training=self.training,
            key={"calibration": self._searched_digest(), **{name: getattr(config, name) for name in asked}},
        )

    def _searched_digest(self) -> str | None:
        """Of the data that the search reads statistics of; of data at hand, without collecting them."""
        if not self._searches_statistics:
            return None
        if self.given_statistics is None:
            return data_digest(self.calibration or ())
        assert self.statistics is not None
        return self.statistics.data_digest

    @cached_property
    def key(self) -> dict[str, Any]:
        """What the result of the search depends on, see `search_key`."""
        return search_key(self.config.method, self._problem)

    @property
    def budgets(self) -> list[Budget]:
        """The request's, from the smallest.

        Raises:
            ValueError: if one is not below the dense network's figure.
        """
        return network_budgets(self.config.budget_name, self.config.budget_list, self.costs)

    def check(self) -> None:
        """Refuse what cannot work before any work.

        Raises:
            ValueError: if calibration data is missing, weights are not finite, the accelerator is unknown, or the model does
                not run with factorized layers.
        """
        for name in ("activation_aware", "loss_aware"):
            if getattr(self.config, name) and not self._calibrated:
                raise ValueError(f"{name}=True needs a calibration_dataset")
        if self.config.embedding_rank is not None:
            word_embeddings(self.model, self.config.embedding_rank)
            if not self.calibration:
                raise ValueError("embedding_rank needs the rows of a calibration_dataset, also beside statistics")
        _ = self.cost_model
        require_runs(self.model, self.linears, self.calibration[0] if self.calibration else None, self.config.tile_extent)

    def chosen(self, variant: Variant | None = None, expects: bool = False) -> Variant:
        """What every matrix gets: a variant's settings, or what the method finds, with `expects` also what to expect of it.

        Raises:
            ValueError: if the request cannot be met, asks for several variants, or the variant is of another model.
        """
        if variant is not None:
            return variant.of(self.model, self.linears)
        self.config.require_one_budget()
        (found,) = self._search(None, overwrite=False, expects=expects).variants
        return found

    def search(self, output: Path | None = None, overwrite: bool = False) -> RankRecord:
        """Settings for every budget of the request; the model is not changed.

        Args:
            output: JSON file to write; an interrupted search goes on from OUTPUT.partial. If it is there already, from the
                same search, it is returned.
            overwrite: whether to replace another record there.

        Raises:
            ValueError: if a budget cannot be reached, data is missing, or `output` holds another search.
        """
        if output is not None and output.exists() and not overwrite:
            record = RankRecord.load(output)
            require_same_key(record.key, self.key, str(output))
            Journal(output, self.key, overwrite).clear()
            return record
        return self._search(output, overwrite, expects=True)

    def _search(self, output: Path | None, overwrite: bool, expects: bool) -> RankRecord:
        method, started = self.config.method, time.perf_counter()
        method.require(self._calibrated, self.training is not None)
        budgets = self.budgets
        method.check(self.problem, budgets)
        # Left once the result is saved; an interrupted search goes on from OUTPUT.partial.
        with Journal(output, self.key, overwrite) if method.resumable else nullcontext() as journal:
            variants = find_variants(method, replace(self.problem, journal=journal), budgets)
            networks = tuple(map(self._expecting, variants.networks)) if expects else variants.networks
            spent = round(time.perf_counter() - started, 1)
            record = RankRecord(checkpoint_name(self.model), method.name, self.key, networks, variants.fidelity, spent)
            if output is not None and (journal is None or journal.main):
                record.save(output)
        return record

    @cached_property
    def _unrefined(self) -> HeatConfig:
        return replace(self.config, refine_steps=0)

    @cached_property
    def _unrefined_answers(self) -> Quality | None:
        """The dense model's, asked once for the networks of all budgets."""
        return answers(self.model, self.calibration, self._unrefined)

    def _expecting(self, network: Variant) -> Variant:
        """With what a copy of the model with these settings diverges by; where losses and rows are known."""
        if network.loss is None or self.calibration is None:
            return network
        return replace(network, expected_divergence=self._diverges(network.settings))

    def _diverges(self, settings: Settings) -> float | None:
        """What a copy of the model, projected and not refined, diverges by on the calibration rows, if that is known."""
        known = {"given_statistics": self.statistics, "given_answers": self._unrefined_answers, "given_embedded": self.embedded}
        job = replace(self, model=copied(self.model), config=self._unrefined, **known)  # type: ignore[arg-type]
        fidelity = job.factorize(Solution(settings)).fidelity
        return None if fidelity is None else fidelity.measured

    def planned(self, chosen: Variant) -> CompressionReport:
        """The report of what factorizing would give."""
        reached = {name: Reached(setting) for name, setting in chosen.settings.items()}
        return replace(self._report(reached), fidelity=expected(chosen))

    def _report(
        self, reached: Mapping[str, Reached], calibration_rows: int = 0, embedded: Embedded | None = None
    ) -> CompressionReport:
        """The request goes with it, less paths: these lead nowhere on other machines."""
        name = None if self.cost_model is None else self.cost_model.name
        named = {"accelerator": CPU if self.config.accelerator == CPU else name, "cost_table": None}
        request = replace(self.config, **named).to_dict()  # type: ignore[arg-type]
        fed = self.config.sequence_length, self.config.batch_size
        rank, error = self.config.embedding_rank, None if embedded is None else embedded.error
        embedding = None if rank is None else embedding_report(*word_embeddings(self.model, rank), rank, error)
        return report_of(self.model, self.costs, reached, calibration_rows, request, fed, embedding)

    def factorize(self, chosen: Variant | Solution, done: RefinedBlocks | None = None) -> CompressionReport:
        """Replace the model's linears by factorized layers, in place, blocks `done` as they are; an error changes nothing."""
        settings = chosen.settings
        projection = Projection.of(self.model, self.linears, settings, self.config, self._calibrated)
        reached, layers = dict.fromkeys(self.linears, Reached(None)), dict[str, FactorizedLinear]()
        factorized = [name for name in self.linears if settings[name] is not None]
        if not self._by_block:
            _ = self.statistics  # collected behind a bar of its own, which ends before the next begins
        with tqdm(total=len(factorized), desc="Factorizing", unit="matrix") as progress:
            for names, statistics in self._moments_by_group(factorized):
                for name, result in projection.reached(names, statistics):
                    layer = layer_of(self.linears[name], result, self.config.tokens, self.config.on_disk)
                    layers |= {} if layer is None else {name: layer}
                    reached[name] = result.less_cores  # memory holds them once
                    progress.update()
        dense = self.given_answers or answers(self.model, self.calibration, self.config)  # statistics have shown that it runs
        report = self._report(reached, self.calibration_rows, self.embedded)
        if report.few_tokens:
            logger.warning(report.few_tokens)
        gone = dropped_blocks(settings)
        with replacing(self.model, self.linears, layers, gone, self.embedded) as replace_all:
            report = self._refine(report, layers, kept_of(reached), gone, done)
            report = with_output_errors(report, self.model, self.linears, layers, self.calibration)
            replace_all()
            share_encoders(self.model, self.config.shared_encoders)
            report = replace(report, fidelity=measured(self.model, dense, expected(chosen)))
            attach(self.model, settings, self.config.tokens, report)
        return report

    def _moments_by_group(self, names: Sequence[str]) -> Iterator[tuple[Sequence[str], Statistics | None]]:
        """Layers with their statistics: all at once, or block by block where memory is short."""
        if not self._by_block:
            yield names, self.statistics
            return
        for group in by_block(names).values():
            yield group, self._collected({name: self.linears[name] for name in group}, bar=False)

    @property
    def _by_block(self) -> bool:
        """Whether statistics are collected for one block at a time."""
        by_layer = self.config.calibration_memory == "layer" and not self.config.method.needs_calibration
        return self._calibrated and self.given_statistics is None and by_layer

    def _refine(
        self,
        report: CompressionReport,
        layers: Mapping[str, FactorizedLinear],
        kept: Kept,
        gone: Sequence[str],
        done: RefinedBlocks | None,
    ) -> CompressionReport:
        """Refine the layers where there is calibration data, and report what they then are."""
        if not (self._calibrated and self.config.refine_steps):
            return report
        held = None if self._by_block else self.statistics
        given = self.model, self.linears, layers, self.calibration, self.config, held, kept, gone, done, self.embedded
        return refined_report(report, refine_blocks(*given))
