"""What the parts of benchmarks.ranks share: the model, the rows, calibration and the problem, made once."""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from heat_hf import HeatConfig, TensorSetting, TensorShape, decompose
from heat_hf.compression.job import Job
from heat_hf.encoders.batches import calibration_batches, encode_rows, pad_batches
from heat_hf.encoders.linears import encoder_linears, swap_modules
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.quality import Quality
from heat_hf.formats.decomposition import Factorization
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.spectra import balanced
from heat_hf.search.ranks.budgets import Budget
from heat_hf.search.ranks.space import RankSpace
from heat_hf.search.ranks.supernet import RankSuperNet, Stabilizers, SuperNetArguments
from heat_hf.search.ranks.supernet_search import supernet_space, train_supernet
from recipes.evidence import write_json

TOKENS = 128
GAINS = (3.0, 5.7, 10.0)
CALIBRATION, SEARCH_ROWS = 2048, 1000


class Bench:
    """The model, the rows, and what has been found so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.cache = args.cache
        self.factorized: dict = {}
        self.cache.mkdir(parents=True, exist_ok=True)
        self.tokenizer = AutoTokenizer.from_pretrained(args.classifier)
        self.dense = AutoModelForSequenceClassification.from_pretrained(args.classifier).eval()
        train, validation = (load_rows(args.data / f"sst2/{name}.parquet") for name in ("train", "validation"))
        self.calibration = calibration_batches(list(train.select(range(CALIBRATION))["sentence"]), self.tokenizer)
        held = train.select(range(len(train) - SEARCH_ROWS, len(train)))
        rows = train.select(range(len(train) - SEARCH_ROWS)).shuffle(seed=args.seed).select(range(32 * args.steps))
        self.rows = encode_rows(rows, self.tokenizer, TOKENS)
        self.search_quality, self.quality = (
            Quality(self.dense, pad_batches(encode_rows(own, self.tokenizer, TOKENS), self.tokenizer, 128))
            for own in (held, validation)
        )
        self.results = json.loads(args.output.read_text()) if args.output.exists() else {}
        self.config = HeatConfig(
            rank_search="sensitivity", target_edp_ratio=[1 / gain for gain in GAINS], sequence_length=TOKENS, seed=args.seed
        )
        self.job = Job(self.dense, self.config, self.calibration)
        self.costs = self.job.costs
        start = time.perf_counter()
        self.problem = self.job.problem
        self.moment_seconds = time.perf_counter() - start
        shapes = {size: TensorShape.matrix(*size) for size in self.problem.sizes}
        self.space = supernet_space(self.problem, shapes, self.arguments(args.steps))

    def save(self) -> None:
        """Write what has been found."""
        write_json(self.args.output, self.results)

    def arguments(self, steps: int, rate: float = 1e-4) -> SuperNetArguments:
        """How the SuperNet, and everything else, is trained."""
        return SuperNetArguments(
            output_dir=str(self.cache / "unused"),
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=rate,
            warmup_steps=max(1, steps // 10),
            train_sampling_strategy="group_by_length",
            save_steps=100,
            save_total_limit=1,
            logging_steps=50,
            report_to=[],
            seed=self.args.seed,
            disable_tqdm=True,
        )

    def model_of(self, settings: dict, loss_aware: bool = True) -> torch.nn.Module:
        """The dense model with these settings, projected on the calibration data."""
        model, swapped = copy.deepcopy(self.dense), {}
        for name, linear in encoder_linears(model).items():
            setting = settings[name]
            if setting is not None:
                found = self.projection(name, linear, setting, loss_aware)
                swapped[linear] = FactorizedLinear.from_linear(linear, setting, found, TOKENS)
        swap_modules(model, swapped)
        return model

    def projection(self, name: str, linear: torch.nn.Linear, setting: TensorSetting, loss_aware: bool) -> Factorization:
        """Of low rank, the first slices of one factorization are that of any rank."""
        moments = self.problem.statistics.moments(name, loss_aware)
        if setting.format != "low_rank":
            return decompose(setting.codec, linear.weight, setting.shape, setting.rank, self.config.solver, *moments)
        if (name, loss_aware) not in self.factorized:
            whole = setting.codec.max_rank(setting.shape)
            found = decompose(setting.codec, linear.weight, setting.shape, whole, self.config.solver, *moments)
            self.factorized[name, loss_aware] = found
        whole = self.factorized[name, loss_aware]
        return replace(whole, cores=balanced(setting.codec.truncate(whole.cores, setting.shape, setting.rank)))

    def retrained(self, settings: dict, name: str) -> torch.nn.Module:
        """The same short distillation for every method; dense tensors are trained as well."""
        model = self.model_of(settings)
        own = {n: s for n, s in settings.items() if s is not None}
        space = RankSpace(self.costs, {n: (s,) for n, s in own.items()})
        net = RankSuperNet(model, space, Stabilizers(sandwich=False, normalized_variance=False))
        folder = self.cache / "retrained" / name
        folder.mkdir(parents=True, exist_ok=True)
        arguments = self.arguments(self.args.retrain_steps, self.args.retrain_rate)
        train_supernet(net, self.dense, arguments, self.rows, DataCollatorWithPadding(self.tokenizer), folder)
        (folder / "supernet.safetensors").unlink()
        return model

    def edp_ratio(self, settings: dict) -> float:
        """EDP of all tensors together, as a fraction of the dense ones'."""
        return self.costs.total(settings).objective_ratio(self.costs.dense)

    def budget(self, gain: float) -> Budget:
        """An EDP as many times below the dense one's."""
        return Budget("target_edp_ratio", 1 / gain, self.costs.dense.of("edp") / gain)

    def rule_settings(self, gain: float, **options: object) -> dict:
        """What a request for one gain gets, with the calibration of this bench."""
        config = replace(self.config, target_edp_ratio=1 / gain, **options)
        return Job(self.dense, config, given_statistics=self.problem.statistics).chosen().settings
