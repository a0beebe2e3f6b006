"""A Transformer block as a flow of operations, and what a model costs when whole blocks are fused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from heat_hf.encoders.cost import Source, outline
from heat_hf.encoders.linears import block_of, runs
from heat_hf.encoders.together import head_groups, inner_pairs
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.analytic import AnalyticModel
from heat_hf.hardware.cascade import Cascade, join
from heat_hf.hardware.cost import MisfitError
from heat_hf.hardware.flow import Flow, Operation, Schedule
from heat_hf.hardware.gemm import Gemm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATE, NEXT = "x", "y"  # the hidden states before and behind a block
ATTENTION, FEED_FORWARD = "attention", "feed-forward"  # what is cut into tiles together
Matrix = tuple[MatrixSize, TensorSetting | None]


@dataclass(frozen=True)
class Block:
    """The six matrices of a block that normalizes behind its residuals, as BERT's do.

    Attributes:
        query, key, value, output: of the attention.
        widening, reading: of the feed-forward network.
        head: features of a head.
    """

    query: Matrix
    key: Matrix
    value: Matrix
    output: Matrix
    widening: Matrix
    reading: Matrix
    head: int

    def operations(self, costs: AnalyticModel, length: int, batch: int) -> list[Operation]:
        """All that the block does with its hidden state, in order."""
        tokens, (hidden, _) = length * batch, self.output[0]
        elements, heads = tokens * hidden, _outputs(self.query) // self.head
        neurons = tokens * _outputs(self.widening)
        scores = Gemm(length, length, self.head, heads * batch)

        def linear(name: str, matrix: Matrix, source: str, target: str, run: str = "") -> list[Operation]:
            return list(_linear(name, matrix, source, target, costs, tokens, run))

        def each(name: str, count: int, sources: tuple[str, ...], target: str, run: str = "") -> Operation:
            return Operation(name, Gemm(count, 1, len(sources)), sources, "", target, run)

        softmax = Gemm(length * length, 1, 1, heads * batch)  # by heads, so that it is cut as the products are
        return [
            *linear("query", self.query, STATE, "q"),
            *linear("key", self.key, STATE, "k"),
            *linear("value", self.value, STATE, "v"),
            Operation("scores Q·Kᵀ", scores, ("q",), "k", "scores", ATTENTION),
            Operation("softmax", softmax, ("scores",), "", "shares", ATTENTION),
            Operation("values A·V", Gemm(length, self.head, length, heads * batch), ("shares",), "v", "context", ATTENTION),
            *linear("output", self.output, "context", "answer"),
            each("residual", elements, (STATE, "answer"), "sum"),
            each("layer norm", elements, ("sum",), "middle"),
            *linear("widening", self.widening, "middle", "inner", FEED_FORWARD),
            each("activation", neurons, ("inner",), "active", FEED_FORWARD),
            *linear("reading", self.reading, "active", "outer", FEED_FORWARD),
            each("second residual", elements, ("middle", "outer"), "second sum"),
            each("second layer norm", elements, ("second sum",), NEXT),
        ]


def _outputs(matrix: Matrix) -> int:
    size, setting = matrix
    return setting.rank[0] if setting is not None and setting.format == "fewer_outputs" else size.rows


def _linear(
    name: str, matrix: Matrix, source: str, target: str, costs: AnalyticModel, tokens: int, run: str
) -> Iterator[Operation]:
    """A matrix's products, by the cheapest way to execute it."""
    size, setting = matrix
    if setting is None:
        yield Operation(f"{name}, dense {size}", Gemm(tokens, *size), (source,), "", target, run)
        return
    steps = costs.execution(setting, tokens)[0].steps
    read = {0: source}  # operand of the plan → value; all others are parameters
    for step in steps:
        read[step.result] = target if step is steps[-1] else f"{name} {step.result}"
        left, right = read.get(step.left, ""), read.get(step.right, "")
        made = tokens * _outputs(matrix) if step is steps[-1] else 0  # a pivoted matrix passes some of what it read on
        yield Operation(f"{name}, {step.equation}", step, (left,) if left else (), right, read[step.result], run, made)


def blocks_of(model: PreTrainedModel, matrices: Mapping[str, Matrix]) -> list[Block]:
    """The blocks of a model, those that are shared as often as they run.

    Raises:
        ValueError: if its family's blocks are not like BERT's.
    """
    attentions, pairs = head_groups(model, matrices), inner_pairs(model, matrices)
    if len(attentions) != len(pairs) or not pairs:
        raise ValueError(f"the blocks of {model.config.model_type} are not laid out like BERT's: they cannot be fused whole")
    networks, found = {block_of(pair[0]): pair for pair in pairs}, []
    for names, head in attentions.items():
        query, key, value, output = (matrices[name] for name in names)
        widening, reading = (matrices[name] for name in networks[block_of(names[0])])
        found += [Block(query, key, value, output, widening, reading, head)] * runs(model.config, names[0])
    return found


@dataclass(frozen=True)
class Kind:
    """Blocks that are alike.

    Attributes:
        count: how many there are.
        schedule: what stays on chip, and what is cut.
        cascade: of one of them.
    """

    count: int
    schedule: Schedule
    cascade: Cascade


@dataclass(frozen=True)
class FusedModel:
    """A model's blocks, each one cascade, one after the other.

    Attributes:
        kinds: of blocks, those that begin and end on chip apart from those that do not.
        carried: whether the hidden state stays on chip from block to block.
    """

    kinds: tuple[Kind, ...]
    carried: bool

    @cached_property
    def total(self) -> Cascade:
        """All blocks one after the other."""
        return join(kind.cascade for kind in self.kinds for _ in range(kind.count))


def fused_model(model: Source, costs: AnalyticModel, length: int, batch: int = 1) -> tuple[FusedModel, FusedModel]:
    """What a model's blocks cost, fused, and what those of its dense model do. Embeddings, poolers and heads are not in it.

    Args:
        model: as for `model_cost`.
        costs: of the accelerator.
        length: tokens of a sequence.
        batch: sequences of a forward pass.

    Raises:
        ValueError: if the family's blocks are not like BERT's, and as `model_cost`.
        OSError: if there is no such checkpoint.
    """
    loaded, matrices = outline(model)
    dense = {name: (size, None) for name, (size, _) in matrices.items()}
    now = fused_cost(blocks_of(loaded, matrices), costs, length, batch)
    return now, now if dense == matrices else fused_cost(blocks_of(loaded, dense), costs, length, batch)


def fused_cost(blocks: list[Block], costs: AnalyticModel, length: int, batch: int) -> FusedModel:
    """What blocks cost, fused; the hidden state is carried from one to the next if that pays.

    Args:
        blocks: in their order; equal ones are mapped once.
        costs: of the accelerator.
        length: tokens of a sequence.
        batch: sequences of a forward pass.
    """
    apart = _fused(blocks, costs, length, batch, carried=False)
    try:
        return min(apart, _fused(blocks, costs, length, batch, carried=True), key=lambda own: own.total.edp)
    except MisfitError:
        return apart


def _fused(blocks: list[Block], costs: AnalyticModel, length: int, batch: int, carried: bool) -> FusedModel:
    words = length * batch * blocks[0].output[0].rows
    kinds: Counter[tuple[Block, bool, bool]] = Counter(
        (block, carried and place > 0, carried and place < len(blocks) - 1) for place, block in enumerate(blocks)
    )
    found = []
    for (block, given, left), count in kinds.items():
        values = {value: words for value, there in ((STATE, given), (NEXT, left)) if there}
        flow = Flow(block.operations(costs, length, batch), costs.mapper, values)
        found.append(Kind(count, *flow.best()))
    return FusedModel(tuple(found), carried)
