"""What the parts of `benchmarks.ranks` share: the model, the rows, projections and short re-trainings."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import time
from dataclasses import replace

import torch
from heat_hf.search.ranks.search import (
    Search,
    train_supernet,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)

from heat_hf import HeatConfig
from heat_hf.encoders.batches import calibration_batches, encode_rows, pad_batches
from heat_hf.encoders.linears import encoder_linears, swap_module
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.quality import Quality
from heat_hf.formats.decomposition import Factorization, balanced, decompose
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.setting import TensorSetting
from heat_hf.search.ranks.budgets import network_costs
from heat_hf.search.ranks.space import RankSpace
from heat_hf.search.ranks.supernet import RankSuperNet, Stabilizers, SuperNetArguments
from recipes.evidence import write_json

TOKENS = 128
GAINS = (3.0, 5.7, 10.0)
CALIBRATION, SEARCH_ROWS = 2048, 1000


class Bench:
    """The model, the rows, and the results so far."""

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
            Quality(self.dense, pad_batches(encode_rows(part, self.tokenizer, TOKENS), self.tokenizer, 128))
            for part in (held, validation)
        )
        self.results = json.loads(args.output.read_text()) if args.output.exists() else {}
        self.config = HeatConfig(
            rank_search="sensitivity", target_edp_ratio=[1 / gain for gain in GAINS], sequence_length=TOKENS, seed=args.seed
        )
        self.costs = network_costs(self.dense, self.config)
        start = time.perf_counter()
        self.search = Search.prepare(self.dense, self.config, self.calibration, costs=self.costs)
        self.moment_seconds = time.perf_counter() - start
        self.space = self.search.supernet_space(self.arguments(args.steps))

    def save(self) -> None:
        """Write the results so far."""
        write_json(self.args.output, self.results)

    def arguments(self, steps: int, rate: float = 1e-4) -> SuperNetArguments:
        """How the SuperNet, and everything else, is trained."""
        return SuperNetArguments(
            output_dir=str(self.cache / "unused"),
            max_steps=steps,
            learning_rate=rate,
            warmup_steps=max(1, steps // 10),
            seed=self.args.seed,
            disable_tqdm=True,
        )

    def model_of(self, settings: dict, loss_aware: bool = True) -> torch.nn.Module:
        """The dense model with these settings, projected on the calibration data."""
        model = copy.deepcopy(self.dense)
        for name, linear in encoder_linears(model).items():
            setting = settings[name]
            if setting is not None:
                projection = self.projection(name, linear, setting, loss_aware)
                swap_module(model, linear, FactorizedLinear.from_linear(linear, setting, projection, TOKENS))
        return model

    def projection(self, name: str, linear: torch.nn.Linear, setting: TensorSetting, loss_aware: bool) -> Factorization:
        """Of low rank, the first slices of one factorization are that of any rank."""
        moments = [moments[name] for moments in self.search.moments[: 2 if loss_aware else 1]]
        if setting.format != "low_rank":
            return decompose(setting.codec, linear.weight, setting.shape, setting.rank, self.config.solver, *moments)
        if (name, loss_aware) not in self.factorized:
            self.factorized[name, loss_aware] = decompose(
                setting.codec, linear.weight, setting.shape, setting.codec.max_rank(setting.shape), self.config.solver, *moments
            )
        whole = self.factorized[name, loss_aware]
        return replace(whole, cores=balanced(setting.codec.truncate(whole.cores, setting.shape, setting.rank)))

    def retrained(self, settings: dict, name: str) -> torch.nn.Module:
        """The same short distillation for every method; dense tensors are trained as well."""
        model = self.model_of(settings)
        factorized = {n: s for n, s in settings.items() if s is not None}
        space = RankSpace(self.costs, {n: (s,) for n, s in factorized.items()})
        net = RankSuperNet(model, space, Stabilizers(sandwich=False, normalized_variance=False))
        folder = self.cache / "retrained" / name
        folder.mkdir(parents=True, exist_ok=True)
        arguments = self.arguments(self.args.retrain_steps, self.args.retrain_rate)
        train_supernet(net, self.dense, arguments, self.rows, DataCollatorWithPadding(self.tokenizer), folder)
        (folder / "supernet.safetensors").unlink()
        return model

    def edp_ratio(self, settings: dict) -> float:
        """EDP of all tensors together, as a fraction of the dense ones'."""
        return self.costs.total(settings).edp / self.costs.dense.edp


def digest(settings: dict) -> str:
    text = json.dumps({name: None if s is None else s.to_dict() for name, s in settings.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ranks_of(settings: dict) -> list:
    return [None if s is None else list(s.rank) for s in settings.values()]
