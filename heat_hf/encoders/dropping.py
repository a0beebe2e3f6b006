"""Whole Transformer blocks that go: the block before answers to the one behind, and those behind move up.

What is left is a model of its architecture with fewer blocks, as its configuration can say: nothing else has to be saved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from torch import nn

from heat_hf.encoders.linears import block_of, by_block, dense_linears
from heat_hf.encoders.together import encoders
from heat_hf.formats import GONE
from heat_hf.formats.setting import Settings, TensorSetting
from heat_hf.formats.shape import TensorShape
from heat_hf.formats.size import MatrixSize

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SHARED_BLOCKS, PLACED_BLOCKS = "albert", "modernbert"  # one block for all; attention by the block's number


def dropped_setting(size: MatrixSize) -> TensorSetting:
    """Of a matrix that goes with its block."""
    (name,) = GONE
    return TensorSetting(name, TensorShape.matrix(*size), ())


def dropped_blocks(settings: Settings) -> list[str]:
    """Names of the blocks that go, in their order."""
    gone = (name for name, setting in settings.items() if setting is not None and setting.format in GONE)
    return list(dict.fromkeys(map(block_of, gone)))


def droppable(model: PreTrainedModel, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Blocks that may go → their linears, of those all of whose linears are named.

    Args:
        model: dense.
        names: of its linears to choose for.

    Raises:
        ValueError: if the model's architecture does not work with some of its blocks.
    """
    known, found = set(names), dict[str, tuple[str, ...]]()
    every = by_block(dense_linears(model))
    for pattern, config in encoders(model):
        _require_alike(config)
        inside = {block: tuple(inner) for block, inner in every.items() if re.match(pattern, f"{block}.")}
        found |= {block: inner for block, inner in inside.items() if known.issuperset(inner)}
    return found


def _require_alike(config: PreTrainedConfig) -> None:
    family = config.model_type
    why = {SHARED_BLOCKS: "they share their weights", PLACED_BLOCKS: "each has its attention by its number"}.get(family)
    if getattr(config, "conv_kernel_size", 0):
        why = "a convolution follows the first of them"
    if getattr(config, "is_decoder", False):
        why = "a decoder's have their places in its cache"
    if why:
        raise ValueError(f"{family} cannot lose blocks, {why}: leave out blocks=True")


def require_blocks(model: PreTrainedModel, settings: Settings) -> None:
    """Make sure that matrices only go with their whole block, and that a block stays.

    Args:
        model: dense.
        settings: by name.

    Raises:
        ValueError: if a matrix goes without another of its block, or all blocks of an encoder go; and as `droppable`.
    """
    gone = dropped_blocks(settings)
    if not gone:
        return
    whole = droppable(model, [name for name, setting in settings.items() if setting is not None and setting.format in GONE])
    for block in gone:
        if block not in whole:
            raise ValueError(f"{block} cannot be dropped without all of its matrices")
    for pattern, _ in encoders(model):
        if all(block in gone for block in by_block(dense_linears(model)) if re.match(pattern, f"{block}.")):
            raise ValueError("all blocks cannot be dropped: one has to stay")


def renumbered(name: str, gone: Collection[str]) -> str:
    """What a module in a block that stays is called where other blocks have gone."""
    block = block_of(name)
    if block == name or not gone:
        return name
    place, _, number = block.rpartition(".")
    before = sum(other.rpartition(".")[0] == place and int(other.rpartition(".")[2]) < int(number) for other in gone)
    return f"{place}.{int(number) - before}{name.removeprefix(block)}"


def stood_for(gone: Collection[str], left: int) -> list[int]:
    """Of the blocks before, the last that each that is left stands for: itself, or a gone one behind it.

    Args:
        gone: names of the blocks that went.
        left: number of the blocks that are left.
    """
    numbers = {int(name.rpartition(".")[2]) for name in gone}
    total = left + len(numbers)
    kept = [number for number in range(total) if number not in numbers]
    return [after - 1 for after in (*kept[1:], total)]


def drop_blocks(model: PreTrainedModel, gone: Collection[str]) -> Callable[[], None]:
    """Take blocks out of a model, in place, and say so in its configuration.

    Args:
        model: as `droppable`.
        gone: names of blocks; one stays.

    Returns:
        What puts them back.
    """
    undo: list[Callable[[], None]] = []
    for name in dict.fromkeys(block.rpartition(".")[0] for block in gone):
        owner, _, child = name.rpartition(".")
        parent, blocks = model.get_submodule(owner), model.get_submodule(name)
        assert isinstance(blocks, nn.ModuleList)
        kept = [block for number, block in enumerate(blocks) if f"{name}.{number}" not in gone]
        config = next(config for pattern, config in encoders(model) if re.match(pattern, f"{name}.0."))
        before = config.num_hidden_layers
        setattr(parent, child, nn.ModuleList(kept).train(blocks.training))
        config.num_hidden_layers = len(kept)
        undo.append(lambda parent=parent, child=child, blocks=blocks: setattr(parent, child, blocks))  # type: ignore[misc]
        undo.append(lambda config=config, before=before: setattr(config, "num_hidden_layers", before))  # type: ignore[misc]

    def restore() -> None:
        for put in undo:
            put()

    return restore
