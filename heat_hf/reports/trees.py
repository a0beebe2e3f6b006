"""A layer's contraction as a tree: which operands meet, in which order, and what each product costs (paper, Fig. 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from heat_hf.formats.plan import ContractionPlan, Path
from heat_hf.formats.planning import plan_contraction
from heat_hf.formats.setting import TensorSetting

NAIVE: Path = "left-to-right"
_DIGITS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass(frozen=True)
class Node:
    """An operand, or the result of a product of two.

    Attributes:
        name: "x", "A₁" and so on for the cores; of a result "".
        indices: einsum indices.
        extents: one for each.
        macs: multiply-accumulates of the product; 0 of what is none.
        once: whether it is done once, before inference.
        operands: the two that are multiplied; none of what is no product.
    """

    name: str
    indices: str
    extents: tuple[int, ...]
    macs: int = 0
    once: bool = False
    operands: tuple[Node, ...] = ()

    @property
    def elements(self) -> int:
        """Numbers that it holds."""
        product = 1
        for extent in self.extents:
            product *= extent
        return product

    @property
    def size(self) -> str:
        """Its extents, as "128×280"."""
        return "×".join(map(str, self.extents))

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """Depth and node of all that goes into it; what is left of it, it, what is right of it."""
        left, right = self.operands[:1], self.operands[1:]
        for node in left:
            yield from node.walk(depth + 1)
        yield depth, self
        for node in right:
            yield from node.walk(depth + 1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        data = {"name": self.name, "indices": self.indices, "extents": list(self.extents), "elements": self.elements}
        if not self.operands:
            return data
        return {**data, "macs": self.macs, "once": self.once, "of": [node.to_dict() for node in self.operands]}


def contraction_tree(plan: ContractionPlan) -> Node:
    """The result of a plan, with all that goes into it."""
    names = plan.equation.partition("->")[0].split(",")
    static = {number: f"A{place}".translate(_DIGITS) for place, number in enumerate(plan.static, start=1)}
    nodes = {
        number: Node(static.get(number, "x"), indices, tuple(plan.extents[i] for i in indices))
        for number, indices in enumerate(names)
    }
    for step in plan.all_steps:
        extents = tuple(step.extents[i] for i in step.result_indices)
        operands = (nodes[step.left], nodes[step.right])
        nodes[step.result] = Node("", step.result_indices, extents, step.macs, step.precomputed, operands)
    return nodes[max(nodes)]


def orders(setting: TensorSetting, tokens: int) -> list[ContractionPlan]:
    """A layer's contraction from left to right, as it is written, and as it is run; once, where that is the same.

    Args:
        setting: of the layer's matrix.
        tokens: rows of x.
    """
    plan = setting.plan(tokens)
    return [plan] if plan.path == NAIVE else [plan_contraction(plan.equation, plan.extents, plan.static, NAIVE), plan]


def fewer(plan: ContractionPlan, naive: ContractionPlan) -> str:
    """How many times fewer multiply-accumulates one order has; nothing of the naive order itself."""
    ratio = naive.macs / plan.macs
    return "" if plan is naive else f", {ratio:,.0f} times fewer" if ratio >= 100 else f", {ratio:.3g} times fewer"


def heading(setting: TensorSetting, tokens: int) -> str:
    """A setting in words, and the einsum of its layer."""
    rank = ", ".join(map(str, setting.rank))
    return f"{setting.format} {setting.shape}, rank {rank}, {tokens} tokens: {setting.plan(tokens).equation}"


def trees_data(setting: TensorSetting, tokens: int) -> dict[str, Any]:
    """The orders as JSON."""
    return {
        "setting": setting.to_dict(),
        "tokens": tokens,
        "orders": {
            plan.path: {"equation": plan.equation, "macs": plan.macs, "once": plan.precomputed_macs,
                        "tree": contraction_tree(plan).to_dict()}
            for plan in orders(setting, tokens)
        },
    }  # fmt: skip


def trees_text(setting: TensorSetting, tokens: int) -> str:
    """The orders as text: every product above what it is made of, with its elements and multiply-accumulates."""
    plans = orders(setting, tokens)
    return "\n\n".join([heading(setting, tokens), *(_tree_text(plan, plans[0]) for plan in plans)])


def _tree_text(plan: ContractionPlan, naive: ContractionPlan) -> str:
    rows = list(_rows(contraction_tree(plan)))
    once = f", and {plan.precomputed_macs:,} once" if plan.precomputed else ""
    head = f"{plan.path}: {plan.macs:,} MACs{once}{fewer(plan, naive)}"
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    aligned = [
        f"{label:<{widths[0]}}  {size:<{widths[1]}}  {elements:>{widths[2]}} elements  {macs:>{widths[3]}}{note}".rstrip()
        for label, size, elements, macs, note in rows
    ]
    return "\n".join([head, *aligned])


def _rows(node: Node, first: str = "", rest: str = "") -> Iterator[tuple[str, str, str, str, str]]:
    macs = f"{node.macs:,} MACs" if node.operands else ""
    yield f"{first}{node.name or '·'} {node.indices}", node.size, f"{node.elements:,}", macs, " once" if node.once else ""
    for place, operand in enumerate(node.operands):
        last = place == len(node.operands) - 1
        yield from _rows(operand, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))
