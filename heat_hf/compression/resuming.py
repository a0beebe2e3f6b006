"""Blocks that a refinement has done, on disk until the compressed model is saved: an interrupted one goes on with the next."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from heat_hf.encoders.batches import data_digest
from heat_hf.encoders.checkpoints.storage import atomic_file, writing
from heat_hf.encoders.linears import tensors_digest
from heat_hf.formats.setting import settings_to_dict
from heat_hf.search.journal import Journal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from heat_hf.compression.config import HeatConfig
    from heat_hf.encoders.batches import Batch
    from heat_hf.formats.setting import Settings


@dataclass(frozen=True)
class RefinedBlocks:
    """What blocks have become, a file each.

    Attributes:
        folder: of the files; None to keep nothing.
    """

    folder: Path | None = None

    def read(self, block: str) -> dict[str, Tensor] | None:
        """What was kept of a block; None if it is not done."""
        from safetensors.torch import load_file

        file = self._file(block)
        return load_file(file) if file is not None and file.is_file() else None

    def write(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep what a block has become.

        Raises:
            OSError: if it cannot be written.
        """
        from safetensors.torch import save_file

        file = self._file(block)
        if file is not None:
            with writing(file), atomic_file(file) as temporary:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)

    def _file(self, block: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{block}.safetensors"


@contextmanager
def refined_blocks(
    output: str | os.PathLike[str] | None,
    model: PreTrainedModel,
    config: HeatConfig,
    batches: Sequence[Batch] | None,
    settings: Settings,
) -> Iterator[RefinedBlocks]:
    """Blocks done so far in OUTPUT.partial, where a model is refined and saved; removed when the block ends without an error.

    What an interrupted compression of another model, data or request left there is thrown away.

    Args:
        output: where the model will be.
        model: dense.
        config: the request.
        batches: of calibration data.
        settings: of every tensor.
    """
    if output is None or batches is None or not (config.uses_calibration and config.refine_steps):
        yield RefinedBlocks()
        return
    key = {
        "model": tensors_digest(model.state_dict().values()),
        "calibration": data_digest(batches),
        "request": config.to_dict(),
        "settings": settings_to_dict(settings),
    }
    with Journal(Path(output).absolute(), key, overwrite=True) as journal:
        yield RefinedBlocks(journal.folder)
