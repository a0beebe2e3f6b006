"""HeatConfig: what the user asks for, and, once a model is compressed, what every tensor got."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from heat_hf.encoders.checkpoints.names import METHOD, package_version
from heat_hf.encoders.rows import CALIBRATION_MEMORY
from heat_hf.formats import Solver, get_format
from heat_hf.formats.setting import EXECUTIONS, Execution, TensorSetting
from heat_hf.search.ranks.names import MIXED, RANK_SEARCHES

NETWORK_SEARCHES = ("sensitivity", "supernet")  # every tensor gets a rank of its own, within a budget of the whole network


TARGETS = {"target_params_ratio": "parameters", "target_edp_ratio": "edp", "target_latency": "seconds"}  # what each limits


def _check_target(name: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "target_latency":
        if not number or not 0 < value < math.inf:  # type: ignore[operator]
            raise ValueError(f"{name} must be a positive number of seconds, got {value!r}")
    elif not number or not 0 < value < 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be between 0 and 1, both excluded (at 1 the model would not shrink), got {value!r}")


@dataclass
class HeatConfig(QuantizationConfigMixin):
    """How to factorize a model's encoder linears.

    Give the size by exactly one of `target_params_ratio`, `target_edp_ratio`, `target_latency` and `rank`; with
    `rank_search="pareto"` or "supernet" it may be left open. A target may be a list: `HeatCompressor.search_ranks` then finds
    a variant for each in one search. The saved form of this object is the `quantization_config` of a compressed model's
    config.json, where `tensors` says what every matrix got.

    Args:
        decomposition: "low_rank", "cp", "tucker" or "ttm"; or "mixed": every tensor gets the format that suits it, with
            `rank_search="sensitivity"`.
        target_params_ratio: parameters of all factorized matrices together, as a fraction of the dense ones; between 0 and 1,
            both excluded. Every matrix gets the largest uniform rank within this fraction.
        target_edp_ratio: energy-delay product ΣE·ΣT of all these matrices together on the accelerator instead, as a fraction of
            the dense ones. With `rank_search="pareto"` the settings of the matrix sizes are chosen together, for the least sum
            of squared errors.
        target_latency: time of one forward pass through all these matrices on the accelerator instead, in seconds.
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
        batch_size: times so many inputs.
        accelerator: hardware for which energy, time and EDP are reported: a shipped name or a .yaml file; None for no such
            report.
        modules: regular expressions, searched in the names of the model's linear layers, that choose what to factorize.
            Default: the linears of the Transformer blocks of a known model family.
        exclude: regular expressions for linears to leave dense.
        calibration_memory: "model" collects all second moments in one pass over the calibration data; "layer" takes one pass
            per Transformer block and holds the moments of one block at a time.
        seed: of decompositions that start at random, see `Solver`.
        max_sweeps: of iterative decompositions, likewise.
        refinement_steps: of a projection that has no closed form, likewise.
        tensors: the result, by module name. Set by compression; not for users.
        weights_file: name of the weights file of a saved model, if not the usual one. Set on saving.
        heat_version: version of heat_hf that compressed the model. Set by compression.

    Raises:
        ValueError: for a value that cannot work; the message names the argument and what would be right.
    """

    quant_method: str = field(default=METHOD, init=False)  # type: ignore[assignment]
    decomposition: str = "low_rank"
    target_params_ratio: float | list[float] | None = None
    target_edp_ratio: float | list[float] | None = None
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
    modules: list[str] | None = None
    exclude: list[str] = field(default_factory=list)
    calibration_memory: str = "model"
    seed: int = 0
    max_sweeps: int = 100
    refinement_steps: int = 40
    tensors: dict[str, TensorSetting] | None = None
    weights_file: str | None = None
    heat_version: str | None = None

    def __post_init__(self) -> None:
        if self.tensors is not None:
            self.tensors = {
                name: setting if isinstance(setting, TensorSetting) else TensorSetting.from_dict(setting)
                for name, setting in self.tensors.items()
            }
        if self.decomposition != MIXED:
            get_format(self.decomposition)
        for name in ("sequence_length", "batch_size", "max_sweeps", "refinement_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name, allowed in (
            ("execution", EXECUTIONS),
            ("calibration_memory", CALIBRATION_MEMORY),
            ("rank_search", RANK_SEARCHES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.loss_aware and self.activation_aware is False:
            raise ValueError("loss_aware=True needs calibration data, which activation_aware=False leaves out")
        self._check_search()
        self._check_size()
        for name in ("modules", "exclude"):
            patterns = getattr(self, name)
            if isinstance(patterns, str) or (patterns is not None and not all(isinstance(p, str) for p in patterns)):
                raise ValueError(f"{name} must be a list of regular expressions, got {patterns!r}")

    def _check_size(self) -> None:
        sizes = {name: getattr(self, name) for name in (*TARGETS, "rank")}
        given = [name for name, value in sizes.items() if value is not None]
        if self.tensors is None and len(given) != 1 and (given or self.rank_search not in ("pareto", "supernet")):
            values = ", ".join(f"{name}={value!r}" for name, value in sizes.items())
            raise ValueError(f"give exactly one of {', '.join(TARGETS)} and rank, got {values}")
        for name in TARGETS:
            value = sizes[name]
            for number in value if isinstance(value, (list, tuple)) else [] if value is None else [value]:
                _check_target(name, number)
            if isinstance(value, (list, tuple)) and (not value or len(set(value)) != len(value)):
                raise ValueError(f"{name} must be one number, or a list of different ones, got {value!r}")

    def _check_search(self) -> None:
        search = self.rank_search
        if self.rank is not None and search not in ("uniform", "manual"):
            raise ValueError(f"rank_search={search!r} finds the ranks: leave out rank, got {self.rank!r}")
        if self.target_latency is not None and search == "pareto":
            raise ValueError("target_latency is a budget of the whole network: use another rank_search than 'pareto'")
        if self.shape is not None and search == "pareto":
            raise ValueError(f"rank_search='pareto' finds the shapes: leave out shape, got {self.shape!r}")
        if self.decomposition == MIXED and search != "sensitivity":
            raise ValueError(f"decomposition='mixed' needs rank_search='sensitivity', got {search!r}")
        if search == "sensitivity" and self.activation_aware is False:
            raise ValueError("rank_search='sensitivity' needs calibration data, which activation_aware=False leaves out")
        needs = {"rank_search='pareto'": search == "pareto", "cost_table": self.cost_table is not None}
        needs |= {name: getattr(self, name) is not None for name in ("target_edp_ratio", "target_latency")}
        for name, given in needs.items():
            if given and self.accelerator is None:
                raise ValueError(f"{name} needs an accelerator, got accelerator=None")

    def single(self, name: str) -> float | None:
        """The value of a target, which must be one number.

        Raises:
            ValueError: if it is a list.
        """
        value: float | list[float] | None = getattr(self, name)
        if isinstance(value, (list, tuple)):
            raise ValueError(
                f"{name}={list(value)} asks for several variants: find them with search_ranks, then compress with one of them"
            )
        return value

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
        if self.budget_name is not None:
            self.single(self.budget_name)

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
        """Whether the model's gradients on calibration data, if there is any, are used."""
        return self.uses_calibration and self.loss_aware is not False

    @property
    def solver(self) -> Solver:
        """Limits of the iterative decompositions."""
        return Solver(seed=self.seed, max_sweeps=self.max_sweeps, refinement_steps=self.refinement_steps)

    def for_matrix(self, option: str, rows: int, columns: int) -> Any:  # noqa: ANN401
        """The value of `shape` or `rank` for a matrix of M×N; None if a mapping does not mention the size."""
        value = getattr(self, option)
        return value.get(f"{rows}x{columns}") if isinstance(value, Mapping) else value

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without options left at None."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.tensors is not None:
            data["tensors"] = {name: setting.to_dict() for name, setting in self.tensors.items()}
        return {name: value for name, value in data.items() if value is not None}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:  # noqa: ANN401
        """Read what `to_dict` wrote.

        Raises:
            ValueError: if the method is not "heat" or an option is unknown (written by a newer version).
        """
        data = {**config_dict, **kwargs}
        if data.pop("quant_method", METHOD) != METHOD:
            raise ValueError(f"quant_method must be {METHOD!r}, got {config_dict['quant_method']!r}")
        unknown = set(data) - {f.name for f in dataclasses.fields(cls) if f.init}
        if unknown:
            raise ValueError(
                f"unknown options {sorted(unknown)} in a heat quantization_config "
                f"(written by heat_hf {data.get('heat_version', 'unknown')}, this is {package_version()})"
            )
        config = cls(**data)
        return (config, {}) if return_unused_kwargs else config
