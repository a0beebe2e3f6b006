"""Shape and rank of every matrix of a model, as the configuration asks: given, by a rule, or from the cost table."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping

from torch import nn

from heat_hf.compression.config import HeatConfig
from heat_hf.encoders.linears import matrix_size
from heat_hf.formats import TensorShape, get_format
from heat_hf.formats.setting import TensorSetting
from heat_hf.search.ranks.allocation import Option, allocate
from heat_hf.search.ranks.baselines import manual_shape, random_rank, random_shares, tensorly_rank
from heat_hf.search.shapes.pareto import front, select
from heat_hf.search.shapes.table import CostTable


def plan_settings(
    linears: Mapping[str, nn.Linear], config: HeatConfig, table: CostTable | None = None
) -> dict[str, TensorSetting]:
    """Shape and rank of every matrix.

    The shape is the configuration's; else the manual one, if ranks are to be manual; else the cost table's choice for the size,
    if there is a table; else the format's own. For the ranks see `HeatConfig.rank_search`.

    Args:
        linears: layers by name.
        config: what to factorize and how.
        table: the cost table, with all sizes of the layers.

    Raises:
        ValueError: if a shape or rank is not valid, a mapping misses a size, or a matrix would not shrink.
    """
    sizes = set(map(matrix_size, linears.values()))
    for option in ("shape", "rank"):
        value = getattr(config, option)
        unknown = set(value) - sizes if isinstance(value, Mapping) else set()
        if unknown:
            raise ValueError(f"{option} names the matrix sizes {sorted(unknown)}; the model has {sorted(sizes)}")
    chosen = _within_edp(linears, config, table) if table is not None and config.target_edp_ratio is not None else {}
    share = config.single("target_params_ratio")
    shares: dict[str, float | None] = dict.fromkeys(linears, share)
    if config.rank_search == "random" and share is not None:
        elements = [linear.weight.numel() for linear in linears.values()]
        shares = dict(zip(linears, random_shares(elements, share, config.seed), strict=True))
    planner = _Planner(config, table, chosen)
    return {name: planner.setting(name, linear, shares[name]) for name, linear in linears.items()}


def _within_edp(linears: Mapping[str, nn.Linear], config: HeatConfig, table: CostTable) -> dict[str, TensorSetting]:
    """A setting for each size from its front: the least sum of squared errors within an EDP of all matrices together."""
    counts = Counter(map(matrix_size, linears.values()))
    fronts = {size: front(table.of(size, config.decomposition)) for size in counts}
    energy, seconds = (
        sum(count * getattr(table.sizes[size], name) for size, count in counts.items())
        for name in ("dense_energy_pJ", "dense_seconds")
    )
    options = [
        [Option(n * c.error**2, n * c.energy_pJ / energy, n * c.seconds / seconds, n * c.parameters) for c in fronts[size]]
        for size, n in counts.items()
    ]
    try:
        places = allocate(options, "edp", config.single("target_edp_ratio") or 1.0)
    except ValueError as error:
        raise ValueError(f"target_edp_ratio: {error}") from error
    return {size: fronts[size][place].setting for size, place in zip(counts, places, strict=True)}


def choose_shape(config: HeatConfig, format: str, size: str, table: CostTable | None = None) -> TensorShape:
    """The tensorization shape of a matrix size in a format.

    It is the configuration's; else the manual one, if ranks are to be manual; else the table's knee; else the format's own.

    Raises:
        ValueError: if the configuration's shape does not fit.
    """
    rows, columns = map(int, size.split("x"))
    wanted = config.for_matrix("shape", rows, columns)
    if wanted is not None:
        return TensorShape.parse(wanted, rows, columns)
    if config.rank_search == "manual":
        return manual_shape(format, rows, columns)
    if table is not None:
        return select(table.of(size, format), table.sizes[size]).setting.shape
    return get_format(format).default_shape(rows, columns)


class _Planner:
    def __init__(self, config: HeatConfig, table: CostTable | None, selected: dict[str, TensorSetting]) -> None:
        self.config = config
        self.table = table
        self.codec = get_format(config.decomposition)
        self.selected = selected

    def setting(self, name: str, linear: nn.Linear, share: float | None) -> TensorSetting:
        rows, columns = linear.out_features, linear.in_features
        try:
            shape = self._shape(rows, columns)
            rank = self.codec.parse_rank(shape, self._rank(name, shape, share))
            setting = TensorSetting(self.config.decomposition, shape, rank, self.config.execution)
            if setting.ratio >= 1:
                raise ValueError(
                    f"rank {setting.rank} of shape {shape} has {setting.parameters:,} parameters, the dense matrix only "
                    f"{setting.dense_parameters:,}: choose a smaller rank"
                )
        except ValueError as error:
            raise ValueError(f"{name} ({rows}×{columns}): {error}") from error
        return setting

    def _shape(self, rows: int, columns: int) -> TensorShape:
        size = f"{rows}x{columns}"
        if self.table is not None and self.config.shape is None and self.config.rank_search != "manual":
            return self._select(self.table, size).shape
        return choose_shape(self.config, self.config.decomposition, size)

    def _select(self, table: CostTable, size: str) -> TensorSetting:
        if size not in self.selected:
            found = table.of(size, self.config.decomposition)
            self.selected[size] = select(found, table.sizes[size], max_ratio=self.config.single("target_params_ratio")).setting
        return self.selected[size]

    def _rank(self, name: str, shape: TensorShape, share: float | None) -> object:
        method, size = self.config.rank_search, shape.rows * shape.columns
        if method == "pareto":
            if self.table is None:
                raise ValueError("rank_search='pareto' needs a cost table")
            return self._select(self.table, f"{shape.rows}x{shape.columns}").rank
        if share is None:
            rank = self.config.for_matrix("rank", shape.rows, shape.columns)
            if rank is None:
                raise ValueError(f"rank has no entry for the size {shape.rows}x{shape.columns}")
            return rank
        if method == "tensorly":
            return tensorly_rank(self.config.decomposition, shape, share)
        if method == "random":
            return random_rank(self.codec, shape, share * size, zlib.crc32(name.encode()) ^ self.config.seed)
        return self.codec.largest_rank(shape, share * size)
