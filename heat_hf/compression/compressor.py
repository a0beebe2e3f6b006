"""HeatCompressor: from a dense checkpoint to a factorized one. Orchestration only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from heat_hf.compression.config import HeatConfig
from heat_hf.compression.job import Job
from heat_hf.compression.loading import load_dense
from heat_hf.compression.resuming import refined_blocks
from heat_hf.encoders.batches import calibration_batches, encode_rows, pad_batches, require_vocabulary
from heat_hf.encoders.checkpoints.adapter import merge
from heat_hf.encoders.checkpoints.folder import save_compressed
from heat_hf.encoders.checkpoints.hub import push_saved
from heat_hf.encoders.checkpoints.sentence_encoder import SentenceEncoder, encoder_of
from heat_hf.encoders.checkpoints.storage import check_target
from heat_hf.encoders.config import require_dense
from heat_hf.encoders.statistics import Statistics
from heat_hf.evaluation.quality import Quality
from heat_hf.evaluation.tasks import as_served, task_of
from heat_hf.hardware import CostModel
from heat_hf.reports.card import Evaluation, Origin, model_card, origin_of, saved_files
from heat_hf.reports.compression import CompressionReport
from heat_hf.reports.ranks import RankRecord
from heat_hf.search.ranks.evolution import Evolution
from heat_hf.search.ranks.problem import Training
from heat_hf.search.ranks.supernet import SuperNetArguments
from heat_hf.search.ranks.variants import Variant


class HeatCompressor:
    """Factorizes the encoder linears of a Transformers model.

    Args:
        model: a dense model, changed in place by `compress`.
        tokenizer: its tokenizer, for calibration on text and to be saved beside the model.
        encoder: what makes sentence embeddings of a headless model's outputs (`sentence_encoder`), saved beside the model;
            default: what is in the folder or repository that the model was loaded from, if anything. Without any, embeddings
            are the means of tokens, as sentence-transformers has it.

    Raises:
        ValueError: if the model is compressed or quantized already.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        encoder: SentenceEncoder | None = None,
    ) -> None:
        require_dense(model.config)
        self.model = model
        self.tokenizer = tokenizer
        self.report: CompressionReport | None = None
        self.encoder = encoder_of(model) if encoder is None else encoder

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_class: Any = None,  # noqa: ANN401
        **kwargs: Any,
    ) -> HeatCompressor:
        """Load what is to be compressed.

        Args:
            model: a Hub id, a checkpoint folder, or a model object. A checkpoint of sentence-transformers keeps what it has
                beside its Transformer, and is saved as one. An adapter, as PEFT's LoRA, is merged into its dense model first; a
                warning says so.
            tokenizer: default: the checkpoint's own, if it has one.
            model_class: default: the class named in the checkpoint's config.json.
            **kwargs: passed to the model's `from_pretrained`, for example `dtype`. `revision`, `token`, `cache_dir`,
                `local_files_only`, `subfolder`, `trust_remote_code` and `code_revision` count for configuration and tokenizer,
                too.

        Raises:
            OSError: if there is no such checkpoint, or its weights are pickled.
            ValueError: if it is compressed or quantized already, is an adapter that cannot be merged, or an object of another
                library.
        """
        if isinstance(model, nn.Module):
            merged = merge(model)
            if not isinstance(merged, PreTrainedModel):
                raise ValueError(
                    f"model must be a model of Transformers, a folder or a Hub id, got a {type(model).__name__}; "
                    "of a SentenceTransformer, name the folder or id that it was loaded from"
                )
            return cls(merged, tokenizer)
        found = load_dense(model, tokenizer, model_class, **kwargs)
        return cls(found.model, found.tokenizer, found.encoder)

    def statistics_of(self, config: HeatConfig, calibration_dataset: Any) -> Statistics:  # noqa: ANN401
        """Collect what a compression reads of calibration data, to be saved or used for several compressions.

        Args:
            config: which linears, tokens of a row, seed, and whether gradients are needed.
            calibration_dataset: see `compress`.

        Raises:
            ValueError: if the data has none of the known forms, or does not reach a layer.
        """
        statistics = self._job(replace(config, activation_aware=None), calibration_dataset).statistics
        if statistics is None:
            raise ValueError("statistics need a calibration_dataset")
        return statistics

    def plan(
        self,
        config: HeatConfig,
        calibration_dataset: Any = None,  # noqa: ANN401
        variant: Variant | None = None,
        *,
        statistics: Statistics | None = None,
        cost_model: CostModel | None = None,
    ) -> CompressionReport:
        """What `compress` would do: every matrix's shape, rank, parameters and MACs. The model is not changed.

        Where a search weighs losses and there is calibration data, a copy of the model is projected, and what it diverges by is
        the plan's `fidelity`.

        Args:
            config: what to factorize and how.
            calibration_dataset: for searches that look at it.
            variant: take what `search_ranks` found.
            statistics: see `compress`.
            cost_model: see `compress`.

        Raises:
            ValueError: if the configuration does not fit the model.
        """
        job = self._job(config, calibration_dataset, statistics, cost_model)
        return job.planned(job.chosen(variant, expects=True))

    def search_ranks(
        self,
        config: HeatConfig,
        calibration_dataset: Any = None,  # noqa: ANN401
        output: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        *,
        statistics: Statistics | None = None,
        cost_model: CostModel | None = None,
        train_dataset: Any = None,  # noqa: ANN401
        eval_dataset: Any = None,  # noqa: ANN401
        arguments: SuperNetArguments | None = None,
        evolution: Evolution | None = None,
    ) -> RankRecord:
        """Find ranks for every budget of the configuration in one search; the model is not changed (paper, section 2.2.2).

        Args:
            config: `rank_search`, and a target or a list of them.
            calibration_dataset: see `compress`.
            output: JSON file for the record; an interrupted search with the same arguments goes on from OUTPUT.partial.
            overwrite: whether to replace another record there.
            statistics: see `compress`.
            cost_model: see `compress`.
            train_dataset: rows to distil the SuperNet on; labels are not used. Default: the calibration data.
            eval_dataset: rows to score SubNets on, with a column `label` for accuracy, else by agreement with the dense model.
                Default: the calibration data.
            arguments: of the SuperNet's training.
            evolution: of the evolutionary search.

        Returns:
            The record; hand one of its variants to `compress`.

        Raises:
            ValueError: if data is missing, a budget cannot be reached, or `output` holds another search.
        """
        training = self._training(config, calibration_dataset, train_dataset, eval_dataset, arguments, evolution)
        job = self._job(config, calibration_dataset, statistics, cost_model, training)
        return job.search(None if output is None else Path(output), overwrite)

    def _training(
        self,
        config: HeatConfig,
        calibration: Any,  # noqa: ANN401
        train: Any,  # noqa: ANN401
        evaluation: Any,  # noqa: ANN401
        arguments: SuperNetArguments | None = None,
        evolution: Evolution | None = None,
    ) -> Training | None:
        """Tokenized training rows with their collator, and what scores SubNets, if the method trains."""
        if not config.method.needs_training:
            return None
        train, evaluation = (calibration if rows is None else rows for rows in (train, evaluation))
        config.method.require(True, train is not None and evaluation is not None)
        if self.tokenizer is None:
            raise ValueError(f"rank_search={config.rank_search!r} needs a tokenizer, and the checkpoint has none")
        length, vocabulary = config.sequence_length, self._vocabulary
        classes: Any = self.model.config.label2id
        given = ((train, "train_dataset"), (evaluation, "eval_dataset"))
        served = [as_served(self.model, self.tokenizer, *data, self.encoder) for data in given]
        rows = encode_rows(served[0][1], served[0][0], length, "train_dataset")
        held_out = encode_rows(served[1][1], served[1][0], length, "eval_dataset", classes)
        for encoded, name in ((rows, "train_dataset"), (held_out, "eval_dataset")):
            require_vocabulary(encoded, vocabulary, name)
        quality = Quality(self.model, pad_batches(held_out, self.tokenizer, batch_size=128))
        return Training(rows, DataCollatorWithPadding(self.tokenizer), quality, arguments, evolution)

    @property
    def _vocabulary(self) -> int | None:
        return getattr(self.model.config, "vocab_size", None)

    def _job(
        self,
        config: HeatConfig,
        dataset: Any,  # noqa: ANN401
        statistics: Statistics | None = None,
        cost_model: CostModel | None = None,
        training: Training | None = None,
    ) -> Job:
        batches = None
        if dataset is not None and config.uses_calibration:
            tokenizer, rows = as_served(self.model, self.tokenizer, dataset, "calibration_dataset", self.encoder)
            batches = calibration_batches(rows, tokenizer, max_length=config.sequence_length)
            require_vocabulary(batches, self._vocabulary)
        return Job(self.model, config, batches, statistics, cost_model, training)

    def compress(
        self,
        config: HeatConfig,
        calibration_dataset: Any = None,  # noqa: ANN401
        save_directory: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        *,
        statistics: Statistics | None = None,
        cost_model: CostModel | None = None,
        variant: Variant | None = None,
        train_dataset: Any = None,  # noqa: ANN401
        eval_dataset: Any = None,  # noqa: ANN401
        **save_options: Any,
    ) -> CompressionReport:
        """Factorize the model in place, and save it if asked.

        Args:
            config: what to factorize and how.
            calibration_dataset: sentences, rows of a `datasets.Dataset`, or batches; see `calibration_batches`.
            save_directory: where to save model, tokenizer and report; appears only when all is done. Refined blocks are kept in
                SAVE_DIRECTORY.partial until then: an interrupted compression with the same arguments goes on with the next.
            overwrite: whether to replace a non-empty directory there.
            statistics: what was collected before of the same model (`statistics_of`, `Statistics.load`); the calibration data
                is then not run again, and need not be given.
            cost_model: what settings are costed by; default: that of `config.accelerator`.
            variant: take the settings that `search_ranks` found; the configuration then says how to decompose.
            train_dataset: for methods that train, see `search_ranks`.
            eval_dataset: likewise.
            **save_options: for `save_pretrained`, for example `max_shard_size`.

        Returns:
            The report, which also goes to `heat_report.json`.

        Raises:
            ValueError: if the configuration, the calibration data or the weights cannot work. The model is then unchanged.
            OSError: if `save_directory` cannot be written. Checked before any work.
        """
        require_dense(self.model.config)
        if save_directory is not None:
            check_target(save_directory, overwrite)
        training = None
        if variant is None:
            config.require_one_budget()
            training = self._training(config, calibration_dataset, train_dataset, eval_dataset)
        else:
            config = variant.configure(config)
        job = self._job(config, calibration_dataset, statistics, cost_model, training)
        job.check()
        chosen = job.chosen(variant)
        if save_directory is not None:
            expected = job.planned(chosen)
            check_target(save_directory, overwrite, expected.compressed_model_parameters * self.model.dtype.itemsize)
        with refined_blocks(save_directory, self.model, config, job.calibration, chosen.settings) as done:
            self.report = job.factorize(chosen, done)
            if save_directory is not None:
                self.save(save_directory, overwrite, **save_options)
        return self.report

    def save(self, save_directory: str | os.PathLike[str], overwrite: bool = False, **kwargs: Any) -> None:
        """Save the compressed model, its tokenizer, its report and its card; the directory appears whole or not at all.

        Args:
            save_directory: where.
            overwrite: whether to replace a non-empty directory there.
            **kwargs: for `save_pretrained`, for example `max_shard_size`.

        Raises:
            RuntimeError: if the model has not been compressed.
            OSError: if the directory cannot be written.
        """
        if self.report is None:
            raise RuntimeError("nothing to save: call compress first")
        self._save(save_directory, overwrite, None, (), **kwargs)

    def push_to_hub(
        self, repo_id: str, *, evaluations: Sequence[Evaluation] = (), origin: Origin | None = None, **hub: Any
    ) -> Any:  # noqa: ANN401
        """Push the compressed model with its card, its settings and its EDP figures, all in one commit.

        Args:
            repo_id: "name" or "owner/name".
            evaluations: scores for the card.
            origin: what else the card says; default: what the report knows.
            **hub: private, revision, token, commit_message, create_pr; see `heat_hf.encoders.checkpoints.hub.push_folder`.

        Returns:
            `huggingface_hub.CommitInfo`.

        Raises:
            RuntimeError: if the model has not been compressed.
            OSError: if the Hub refuses or cannot be reached.
        """
        if self.report is None:
            raise RuntimeError("nothing to push: call compress first")
        return push_saved(lambda folder: self._save(folder, False, origin, evaluations), repo_id, **hub)

    def _save(
        self,
        folder: str | os.PathLike[str],
        overwrite: bool,
        origin: Origin | None,
        evaluations: Sequence[Evaluation],
        **kwargs: Any,
    ) -> None:
        assert self.report is not None
        files = self.encoder.files
        about = origin or origin_of(self.report, Path(folder).name, task_of(self.model, bool(files)))
        card = model_card(self.report, about, evaluations)
        files = {**saved_files(self.report, card), **files}
        save_compressed(self.model, self.tokenizer, folder, files, overwrite, **kwargs)
