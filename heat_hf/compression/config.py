"""HeatConfig: what the user asks for."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from heat_hf.compression import fields
from heat_hf.encoders.checkpoints.names import METHOD
from heat_hf.encoders.values import shown, whole
from heat_hf.formats import FORMATS, JOINT, OPERATORS, Solver, get_format
from heat_hf.formats.setting import EXECUTIONS, Execution
from heat_hf.formats.strassen_tile import SCOPES, STARTS, TILE, TILES
from heat_hf.hardware import CostModel, cost_model
from heat_hf.hardware.machine.runtimes import PRECISIONS, RUNTIMES, check_runtime
from heat_hf.search.ranks.budgets import TARGETS
from heat_hf.search.ranks.methods import MIXED, RANK_SEARCHES, RankSearch, get_rank_search

CALIBRATION_MEMORY = ("model", "layer", "disk")
JOINTLY = ("widths", "groups", "blocks")  # what several matrices may get together


@dataclass
class HeatConfig:
    """How to factorize a model's encoder linears.

    Give the size by exactly one of `target_params_ratio`, `target_edp_ratio`, `target_latency_ratio`, `target_latency` and
    `rank`; with `rank_search="pareto"` or "supernet" it may be left open. A target may be a list:
    `HeatCompressor.search_ranks` then finds a variant for each in one search. What a compressed model carries is not this
    request but what came of it.

    Args:
        decomposition: "low_rank", "pivoted", "cp", "tucker", "ttm" or "monarch"; or "mixed": every tensor gets
            the format that suits it, with `rank_search="sensitivity"`. "strassen_tile" is no factorization but a bilinear
            operator on tiles, with fewer multiply-accumulates and more parameters; half of its quality comes from distillation.
        target_params_ratio: parameters of all factorized matrices together, as a fraction of the dense ones; between 0 and 1,
            both excluded. Every matrix gets the largest uniform rank within this fraction.
        target_edp_ratio: energy-delay product ΣE·ΣT of all these matrices together on the accelerator instead, as a fraction of
            the dense ones. With `rank_search="pareto"` the settings of the matrix sizes are chosen together, for the least sum
            of squared errors.
        target_latency_ratio: time of one forward pass through all these matrices on the accelerator instead, as a fraction of
            the dense ones'. On "cpu" it includes attention and the activation functions between them, if the family is known.
        target_latency: the same in seconds.
        rank: decomposition rank instead: one for all matrices (an integer is a uniform rank), or a mapping from a matrix size
            such as "384x1536" (output × input features) to a rank.
        shape: tensorization shape for all matrices, or a mapping from a matrix size to a shape such as "384:16x24".
            Default: the format's own, or the choice of a cost table.
        rank_search: how ranks, and shapes that are not given, are found. "uniform": the largest uniform rank. "pareto": shape
            and rank of each matrix size from the Pareto front of its cost table, within the target or at the knee (paper,
            section 2.2.1). "sensitivity": for every tensor a rank of its own, or none where it stays dense, by the exact
            allocation of what the model's outputs mind; needs calibration data, trains nothing. "supernet": a rank for every
            tensor by weight-sharing SuperNet, accuracy predictor and evolution, without a target by the objective
            (1 − Acc)(E·T)^γ (paper, section 2.2.2). To compare with: "tensorly" takes TensorLy's rule, "manual" hand-tuned
            high-order shapes with uniform ranks, "random" random ranks.
        cost_table: Parquet file that `heat-hf search shapes` made of the same weights for the same accelerator and tokens.
            Default: none; "pareto" then searches before it compresses, which takes minutes.
        activation_aware: project the layers' outputs on calibration inputs instead of their weights. Default: whenever there
            is a calibration dataset.
        loss_aware: also weight errors by how much the model's outputs mind them, by the Fisher information on the calibration
            inputs. Default: whenever the projection is activation-aware.
        match_variance: scale W′ to the variance of W (paper, section 2.2.2).
        execution: how factorized layers compute, see `TensorSetting`.
        sequence_length: tokens of an input; contraction paths are chosen, and costs reported, for this many.
        batch_size: times so many inputs; together at most 262,144 tokens.
        accelerator: hardware for which energy, time and EDP are reported: a shipped name or a .yaml file; None for no such
            report. "cpu" is this machine: layers are measured when a search first asks for them, then kept in the user's cache
            folder. What would run no faster than dense, stays dense.
        runtime: of "cpu", "torch", or "onnxruntime" or "openvino" for what `heat-hf export` writes.
        precision: of "cpu", "float32"; with "torch" or "openvino" also "bfloat16", with "onnxruntime" or "openvino" "int8".
        modules: regular expressions, searched in the names of the model's linear layers, that choose what to factorize.
            Default: the linears of the Transformer blocks of a known model family. One that may take for ever, by repetitions
            inside one another, is refused.
        exclude: regular expressions for linears to leave dense.
        calibration_memory: "model" collects all second moments in one pass over the calibration data; "layer" takes one pass
            per Transformer block and holds the moments of one block at a time; "disk" is "model" with them in files that have
            no name, in the folder that `TMPDIR` names, and the cores, too: nothing stays in memory that grows with the model.
        seed: of decompositions that start at random, see `Solver`; from 0 to 2³² − 1.
        max_sweeps: of iterative decompositions, likewise.
        refinement_steps: of a projection that has no closed form, likewise.
        widths: whether feed-forward networks may also get fewer inner neurons, and attentions fewer heads, with
            `rank_search="sensitivity"`: their matrices then stay single products. The search weighs that beside ranks. Not
            for ModernBERT; no fewer heads for DeBERTa and MPNet.
        groups: whether the query, key and value of an attention block may also share a basis, likewise: their input is then
            multiplied with it once. Not for ALBERT, DeBERTa and ModernBERT.
        blocks: whether whole Transformer blocks may go, likewise. What that costs is measured on calibration rows, set by set.
            Not for ALBERT and ModernBERT.
        embedding_rank: of the word embeddings, which then take rank·(tokens + width) parameters. What is lost is weighed by how
            often tokens come in the calibration data, and by the gradients there. Default: they stay dense.
        tile: t of "strassen_tile", 2, 3 or 4: tokens and features of a tile. Default: 4.
        initial_values: of "strassen_tile": "strassen", what least squares make of the algorithm of its name, fitted to each
            matrix and its inputs; "als", the same from random starts; "hadamard", characters of a group; "random".
        shared_encoders: of "strassen_tile", which layers share what encodes and decodes tiles: those of a matrix "size", or all
            of the "model". Default: none do. It is one parameter of all of them, also in training.
        refine_steps: optimizer steps on every Transformer block after the projection, towards the dense block's outputs, where
            there is calibration data; 0 for none.

    Raises:
        ValueError: for a value that cannot work; the message names the argument and what would be right.
    """

    quant_method: ClassVar[str] = METHOD  # with `from_pretrained(dense, quantization_config=…)` Transformers asks for it
    decomposition: str = "low_rank"
    target_params_ratio: float | list[float] | None = None
    target_edp_ratio: float | list[float] | None = None
    target_latency_ratio: float | list[float] | None = None
    target_latency: float | list[float] | None = None
    rank: Any = None
    shape: Any = None
    rank_search: str = "uniform"
    cost_table: str | None = None
    activation_aware: bool | None = None
    loss_aware: bool | None = None
    match_variance: bool = False
    execution: Execution = "auto"
    sequence_length: int = 128
    batch_size: int = 1
    accelerator: str | None = "simba-l"
    runtime: str = "torch"
    precision: str = "float32"
    modules: list[str] | None = None
    exclude: list[str] = field(default_factory=list)
    calibration_memory: str = "model"
    seed: int = 0
    max_sweeps: int = 100
    refinement_steps: int = 40
    refine_steps: int = 100
    widths: bool = False
    groups: bool = False
    blocks: bool = False
    embedding_rank: int | None = None
    tile: int | None = None
    initial_values: str | None = None
    shared_encoders: str | None = None

    def __post_init__(self) -> None:
        for name, check in CHECKS.items():
            setattr(self, name, check(name, getattr(self, name)))
        whole("batch_size × sequence_length", self.tokens, 1, fields.MOST_TOKENS)
        if self.loss_aware and self.activation_aware is False:
            raise ValueError("loss_aware=True needs calibration data, which activation_aware=False leaves out")
        self._check_search(self.method)
        self._check_operator()
        self._check_size()
        self._check_accelerator()

    def _check_search(self, method: RankSearch) -> None:
        search = f"rank_search={self.rank_search!r}"
        if self.rank is not None and not method.takes_rank:
            raise ValueError(f"{search} finds the ranks: leave out rank, got {self.rank!r}")
        if self.shape is not None and not method.takes_shape:
            raise ValueError(f"{search} finds the shapes: leave out shape, got {self.shape!r}")
        for name in JOINTLY:
            if getattr(self, name) and not method.mixes_formats:
                raise ValueError(f"{name}=True needs rank_search='sensitivity', got {self.rank_search!r}")
        if self.decomposition == MIXED and not method.mixes_formats:
            mixing = " or ".join(f"rank_search={other.name!r}" for other in RANK_SEARCHES.values() if other.mixes_formats)
            raise ValueError(f"decomposition='mixed' needs {mixing}, got {self.rank_search!r}")
        if self.embedding_rank is not None and self.activation_aware is False:
            raise ValueError("embedding_rank needs calibration data, which activation_aware=False leaves out")
        if method.needs_calibration and self.activation_aware is False:
            raise ValueError(f"{search} needs calibration data, which activation_aware=False leaves out")

    def _check_operator(self) -> None:
        if self.decomposition not in OPERATORS:
            for name in ("tile", "initial_values", "shared_encoders"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for {', '.join(OPERATORS)} alone: leave it out for {self.decomposition!r}")
            return
        operator = f"decomposition={self.decomposition!r}"
        if not self.method.takes_rank:
            raise ValueError(f"{operator} has no ranks to search: give rank, and leave out rank_search={self.rank_search!r}")
        for name in ("loss_aware", "match_variance"):
            if getattr(self, name):
                raise ValueError(f"{operator} has no use for {name}=True: leave it out")
        if self.shape is not None:
            raise ValueError(f"{operator} takes tile in the place of shape, got shape={self.shape!r}")
        self._check_shared()

    def _check_shared(self) -> None:
        if self.shared_encoders is None:
            return
        if self.refine_steps:
            raise ValueError("shared_encoders needs refine_steps=0: refinement changes one block after the other")
        if self.calibration_memory == "layer":
            raise ValueError("shared_encoders needs the statistics of all layers at once: leave out calibration_memory='layer'")

    def _check_size(self) -> None:
        sizes = {name: getattr(self, name) for name in (*TARGETS, "rank")}
        given = [name for name, value in sizes.items() if value is not None]
        if len(given) > 1 or not (given or self.method.budget_optional):
            values = ", ".join(f"{name}={value!r}" for name, value in sizes.items())
            raise ValueError(f"give exactly one of {', '.join(TARGETS)} and rank, got {values}")

    def _check_accelerator(self) -> None:
        check_runtime(self.accelerator, self.runtime, self.precision)
        needs = {f"rank_search={self.rank_search!r}": self.method.needs_table, "cost_table": self.cost_table is not None}
        needs |= {name: getattr(self, name) is not None for name in TARGETS if name != "target_params_ratio"}
        for name, needed in needs.items():
            if needed and self.accelerator is None:
                raise ValueError(f"{name} needs an accelerator, got accelerator=None")

    @property
    def method(self) -> RankSearch:
        """The rank-search method asked for."""
        return get_rank_search(self.rank_search)

    def cost_model(self) -> CostModel | None:
        """What settings are costed by; None without an accelerator.

        Raises:
            ImportError, OSError, ValueError: as `heat_hf.hardware.cost_model`.
        """
        return None if self.accelerator is None else cost_model(self.accelerator, None, self.runtime, self.precision)

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the formats that a tensor may get."""
        return tuple(FORMATS) if self.decomposition == MIXED else (self.decomposition,)

    @property
    def budget_name(self) -> str | None:
        """Which target is given; None for a rank, or the knee."""
        return next((name for name in TARGETS if getattr(self, name) is not None), None)

    @property
    def budget_list(self) -> list[float]:
        """The target as a list; empty if none is given."""
        value = None if self.budget_name is None else getattr(self, self.budget_name)
        return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]

    def require_one_budget(self) -> None:
        """Raise ValueError if several variants are asked for."""
        value = None if self.budget_name is None else getattr(self, self.budget_name)
        if isinstance(value, (list, tuple)):
            raise ValueError(
                f"{self.budget_name}={list(value)} asks for several variants: find them with search_ranks, "
                "then compress with one of them"
            )

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass: batch size × sequence length."""
        return self.batch_size * self.sequence_length

    @property
    def uses_calibration(self) -> bool:
        """Whether calibration data, if there is any, is used."""
        return self.activation_aware is not False

    @property
    def uses_gradients(self) -> bool:
        """Whether the projection uses the model's gradients on calibration data, if there is any."""
        return self.uses_calibration and self.loss_aware is not False

    @property
    def collects_gradients(self) -> bool:
        """Whether the projection or the search reads them."""
        return (self.uses_gradients and not self.tile_extent) or self.method.needs_calibration

    @property
    def collected(self) -> dict[str, Any]:
        """What is collected of calibration data, as `Statistics.collect` takes it."""
        known = {"seed": self.seed, "tile": self.tile_extent, "disk": self.on_disk}
        return {"gradients": self.collects_gradients, **known}

    @property
    def on_disk(self) -> bool:
        """Whether what grows with the model is kept in files."""
        return self.calibration_memory == "disk"

    @property
    def tile_extent(self) -> int:
        """t, where layers take tiles of tokens; 0 elsewhere."""
        return (self.tile or TILE) if self.decomposition in OPERATORS else 0

    @property
    def solver(self) -> Solver:
        """Limits of the iterative decompositions."""
        start = self.initial_values or STARTS[0]
        return Solver(seed=self.seed, max_sweeps=self.max_sweeps, refinement_steps=self.refinement_steps, start=start)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without options left at None."""
        data = {"quant_method": METHOD, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}}
        return {name: value for name, value in data.items() if value is not None}


def _decomposition(name: str, value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str) or value in JOINT:
        raise ValueError(f"{name} must be one of {', '.join((*FORMATS, *OPERATORS, MIXED))}, got {shown(value)}")
    if value != MIXED:
        get_format(value)
    return value


_POSITIVE = fields.number(1, fields.MOST_TOKENS)
_ITERATIONS = fields.number(1, fields.MOST_ITERATIONS)
_FRACTION = fields.optional(fields.targets(1, "between 0 and 1, both excluded (at 1 the model would not shrink)"))
# What every field may hold. Run in this order, so that a value that another depends on is known to be good.
CHECKS: dict[str, fields.Check] = {
    "decomposition": _decomposition,
    "rank_search": fields.choice(lambda: RANK_SEARCHES),
    "target_params_ratio": _FRACTION,
    "target_edp_ratio": _FRACTION,
    "target_latency_ratio": _FRACTION,
    "target_latency": fields.optional(fields.targets(math.inf, "a positive number of seconds")),
    "rank": fields.optional(fields.by_size(fields.rank)),
    "shape": fields.optional(fields.by_size(fields.shape)),
    "cost_table": fields.optional(fields.path),
    "activation_aware": fields.optional(fields.truth),
    "loss_aware": fields.optional(fields.truth),
    "match_variance": fields.truth,
    "execution": fields.choice(lambda: EXECUTIONS),
    "sequence_length": _POSITIVE,
    "batch_size": _POSITIVE,
    "accelerator": fields.optional(fields.path),
    "runtime": fields.choice(lambda: RUNTIMES),
    "precision": fields.choice(lambda: PRECISIONS),
    "modules": fields.optional(fields.patterns),
    "exclude": fields.patterns,
    "calibration_memory": fields.choice(lambda: CALIBRATION_MEMORY),
    "seed": fields.number(0, fields.MOST_SEED),
    "max_sweeps": _ITERATIONS,
    "refinement_steps": _ITERATIONS,
    "tile": fields.optional(fields.number(TILES[0], TILES[-1])),
    "initial_values": fields.optional(fields.choice(lambda: STARTS)),
    "shared_encoders": fields.optional(fields.choice(lambda: SCOPES)),
    "widths": fields.truth,
    "groups": fields.truth,
    "blocks": fields.truth,
    "embedding_rank": fields.optional(fields.number(1, fields.MOST_EXTENT)),
    "refine_steps": fields.number(0, fields.MOST_ITERATIONS),
}
