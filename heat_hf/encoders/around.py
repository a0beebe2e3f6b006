"""What a model computes around its matrices, and what it costs: attention's products, normalization, activation, embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from heat_hf.encoders.dropping import dropped_blocks
from heat_hf.encoders.linears import BLOCKS, block_of, dense_linears, runs
from heat_hf.encoders.together import head_groups, inner_pairs
from heat_hf.formats.embedding import FactorizedEmbedding
from heat_hf.formats.setting import Settings, TensorSetting
from heat_hf.hardware.analytic import AnalyticModel
from heat_hf.hardware.cascade import Cascade, cost_gemm
from heat_hf.hardware.cost import Cost
from heat_hf.hardware.gemm import Gemm

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# What the paper's ΣE·ΣT over linear layers leaves out.
EXTRAS = ("attention", "embeddings", "elementwise")
IN_BLOCKS = ("attention", "elementwise")  # of these, what Transformer blocks do


@dataclass(frozen=True)
class Extra:
    """Something that is no matrix of the model, as a product.

    Attributes:
        name: what it is.
        what: one of `EXTRAS`.
        repeats: how often a forward pass runs it.
        gemm: what is left of it; None if nothing is.
        dense: of the dense model; None if it does no such thing.
    """

    name: str
    what: str
    repeats: int
    gemm: Gemm | None
    dense: Gemm | None

    def cascade(self, gemm: Gemm | None, costs: AnalyticModel) -> Cascade:
        """The cost of `gemm` or of `dense`."""
        if gemm is None:
            return Cascade((), costs.accelerator.clock_hz)
        # Element by element, either operand may be the one that takes the weights' way.
        ways = (gemm, replace(gemm, M=gemm.N, N=gemm.M)) if gemm.N == 1 else (gemm,)
        return min((cost_gemm(way, costs.mapper, self.name) for way in ways), key=lambda cost: cost.edp)


def extras(
    model: PreTrainedModel, names: Iterable[str], settings: Settings, length: int, batch: int, embedding_rank: int = 0
) -> list[Extra]:
    """Of a model of a known family; element-wise ones have a multiply-accumulate for each operand of an element.

    Args:
        model: dense or factorized; of an unknown family nothing is found.
        names: of its linears.
        settings: by name.
        length: tokens of a sequence.
        batch: sequences of a forward pass.
        embedding_rank: that the word embeddings get; 0 where they are as in the model.
    """
    config = model.config
    if config.model_type not in BLOCKS:
        return []
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or config.hidden_dim
    elements = batch * length * config.hidden_size

    def attention(left: int, rows: int, columns: int, depth: int) -> Gemm | None:
        return Gemm(rows, columns, depth, batch * left) if left else None

    def each(count: int, operands: int = 1) -> Gemm | None:
        return Gemm(count, 1, operands) if count else None

    found = []
    for (own, neurons), blocks in _blocks(model, names, settings, (heads, inner)).items():
        there = bool(own)
        found += [
            ("scores Q·Kᵀ", "attention", blocks, attention(own, length, length, size), attention(heads, length, length, size)),
            ("values A·V", "attention", blocks, attention(own, length, size, length), attention(heads, length, size, length)),
            ("softmax", "elementwise", blocks, each(batch * own * length**2), each(batch * heads * length**2)),
            ("activation", "elementwise", blocks, each(batch * length * neurons), each(batch * length * inner)),
            ("residual", "elementwise", 2 * blocks, each(there * elements, 2), each(elements, 2)),
            ("layer norm", "elementwise", 2 * blocks, each(there * elements), each(elements)),
        ]
    found += [
        ("layer norm of embeddings", "elementwise", 1, each(elements), each(elements)),
        ("word + position + type", "embeddings", 1, each(elements, 3), each(elements, 3)),
    ]
    words: Any = model.get_input_embeddings()
    rank = words.rank if isinstance(words, FactorizedEmbedding) else embedding_rank
    if rank:
        found.append(("words from their rank", "embeddings", 1, Gemm(batch * length, words.embedding_dim, rank), None))
    return [Extra(*one) for one in found]


def _blocks(
    model: PreTrainedModel, names: Iterable[str], settings: Settings, whole: tuple[int, int]
) -> dict[tuple[int, int], int]:
    """(heads, inner neurons) that blocks have left → runs of such blocks in a forward pass."""
    config: PreTrainedConfig = model.config
    known = list(names)
    left: dict[str, tuple[int, int]] = {}
    for (first, *_), size in head_groups(model, known).items():
        left[block_of(first)] = (_kept(settings.get(first), whole[0] * size) // size, whole[1])
    for first, _ in inner_pairs(model, known):
        heads, _ = left.get(block_of(first), whole)
        left[block_of(first)] = (heads, _kept(settings.get(first), whole[1]))
    left |= dict.fromkeys(dropped_blocks(settings), (0, 0))
    count: Counter[tuple[int, int]] = Counter()
    for block, own in left.items():
        count[own] += runs(config, f"{block}.")
    count[whole] += config.num_hidden_layers - count.total()
    return {own: number for own, number in sorted(count.items(), reverse=True) if number > 0}


def _kept(setting: TensorSetting | None, whole: int) -> int:
    """Outputs that a matrix has left."""
    return setting.rank[0] if setting is not None and setting.format == "fewer_outputs" else whole


def cost_around(
    model: PreTrainedModel, settings: Settings, costs: AnalyticModel, length: int, batch: int, embedding_rank: int = 0
) -> tuple[Cost, Cost] | None:
    """Of all extras together as settings leave them, and of the dense model, which is given; None for an unknown family."""
    found = extras(model, dense_linears(model), settings, length, batch, embedding_rank)
    now, dense = Cost(0.0, 0.0), Cost(0.0, 0.0)
    for extra in found:
        now += extra.cascade(extra.gemm, costs).cost * extra.repeats
        dense += extra.cascade(extra.dense, costs).cost * extra.repeats
    return (now, dense) if found else None
