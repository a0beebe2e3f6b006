"""The cost table 𝒯: shapes × ranks → error, parameters, MACs, energy, latency, EDP (paper, section 2.2), as a Parquet file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from heat_hf.encoders.checkpoints.storage import atomic_file
from heat_hf.formats import Rank, TensorShape
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.cost import Cost, Costed

METADATA = b"heat_hf"
TABLE_VERSION = 2  # changes when the same search would give another table


@dataclass(frozen=True)
class Candidate(Costed):
    """One shape and rank for one matrix size.

    Attributes:
        size: matrix size, as "384x1536".
        format: name of the format.
        shape: tensorization shape, as "384:32x48".
        rank: decomposition rank.
        error: ‖W − W′‖_F / ‖W‖_F, mean over the sampled matrices.
        parameters: stored core elements.
        macs: multiply-accumulates of one run.
        energy_pJ: of one run; None where the cost model knows only times.
        seconds: likewise.
    """

    size: str
    format: str
    shape: str
    rank: Rank
    error: float
    parameters: int
    macs: int
    energy_pJ: float | None  # noqa: N815 - the unit's own spelling
    seconds: float

    @property
    def ratio(self) -> float:
        """Compression ratio c: parameters as a fraction of the matrix's."""
        return self.parameters / MatrixSize.parse(self.size).elements

    @property
    def objectives(self) -> tuple[float, ...]:
        """Error, ratio, energy if it is known, latency."""
        return self.error, self.ratio, *self.cost.figures

    @property
    def tensor_shape(self) -> TensorShape:
        """The shape, read."""
        return TensorShape.parse(self.shape, *MatrixSize.parse(self.size))

    @property
    def setting(self) -> TensorSetting:
        """As what a matrix gets."""
        return TensorSetting(self.format, self.tensor_shape, self.rank)


@dataclass(frozen=True)
class SizeInfo:
    """What a table knows of one matrix size.

    Attributes:
        matrices: how many there are in the model.
        digest: of their weights.
        sampled: names of those whose errors were taken.
        dense_energy_pJ, dense_seconds: of one run of the dense layer.
        spaces: format → number of candidate shapes, size of the unpruned space, what was left out and why.
    """

    matrices: int
    digest: str
    sampled: tuple[str, ...]
    dense_energy_pJ: float | None  # noqa: N815
    dense_seconds: float
    spaces: Mapping[str, Mapping[str, Any]]

    @property
    def dense_cost(self) -> Cost:
        """Of one run of the dense layer."""
        return Cost(self.dense_seconds, self.dense_energy_pJ)

    @property
    def dense_edp(self) -> float:
        """EDP of one run of the dense layer, in J·s."""
        return self.dense_cost.edp


@dataclass(frozen=True)
class CostTable:
    """The candidates of all matrix sizes of a model, on one accelerator.

    Attributes:
        model: name of the model.
        accelerator, accelerator_digest: the hardware.
        tokens: tokens of a forward pass.
        options: of the search.
        sizes: by matrix size.
        candidates: all of them.
    """

    model: str
    accelerator: str
    accelerator_digest: str
    tokens: int
    options: Mapping[str, Any]
    sizes: Mapping[str, SizeInfo]
    candidates: tuple[Candidate, ...]

    @cached_property
    def _groups(self) -> dict[str, list[Candidate]]:
        groups: dict[str, list[Candidate]] = {size: [] for size in self.sizes}
        for candidate in self.candidates:
            groups[candidate.size].append(candidate)
        return groups

    def of(self, size: str, format: str | None = None) -> list[Candidate]:
        """Candidates of a matrix size, of one format or all.

        Raises:
            ValueError: if the table has none; the message says what it has.
        """
        if size not in self._groups:
            raise ValueError(f"the cost table has no matrix size {size!r}; it has {', '.join(self.sizes)}")
        candidates = [candidate for candidate in self._groups[size] if format in (None, candidate.format)]
        if not candidates:
            formats = dict.fromkeys(candidate.format for candidate in self._groups[size])
            raise ValueError(f"the cost table has no {format} candidates of size {size}; it has {', '.join(formats)}")
        return candidates

    @property
    def key(self) -> dict[str, Any]:
        """What the figures depend on: equal for two searches that give the same table."""
        return {
            "table_version": TABLE_VERSION,
            "accelerator": self.accelerator,
            "accelerator_digest": self.accelerator_digest,
            "tokens": self.tokens,
            "options": dict(self.options),
            "digests": {size: info.digest for size, info in self.sizes.items()},
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file; it appears whole or not at all. The same table gives the same bytes.

        Raises:
            OSError: if it cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            name: pa.array([getattr(candidate, name) for candidate in self.candidates], type=getattr(pa, kind)())
            for name, kind in _COLUMNS.items()
        }
        columns["rank"] = pa.array([list(candidate.rank) for candidate in self.candidates], type=pa.list_(pa.int32()))
        header = {**self.key, "model": self.model, "sizes": {size: asdict(info) for size, info in self.sizes.items()}}
        table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(header, sort_keys=True).encode()})
        with atomic_file(path) as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CostTable:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or not a cost table of this version.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not Path(path).is_file():
            raise FileNotFoundError(f"no cost table {path}: make one with heat-hf search shapes")
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
        header = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
        if header.get("table_version") != TABLE_VERSION or set(table.column_names) != {*_COLUMNS, "rank"}:
            raise ValueError(
                f"{path} is not a cost table of version {TABLE_VERSION}: its columns are {', '.join(table.column_names)}"
            )
        rows = (Candidate(**{**row, "rank": tuple(row["rank"])}) for row in table.to_pylist())
        sizes = {size: SizeInfo(**{**info, "sampled": tuple(info["sampled"])}) for size, info in header["sizes"].items()}
        names = ("model", "accelerator", "accelerator_digest", "tokens", "options")
        return cls(**{name: header[name] for name in names}, sizes=sizes, candidates=tuple(rows))


_COLUMNS = {
    "size": "string",
    "format": "string",
    "shape": "string",
    "error": "float64",
    "parameters": "int64",
    "macs": "int64",
    "energy_pJ": "float64",
    "seconds": "float64",
}
