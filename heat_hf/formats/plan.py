"""Contraction plans: in which order the operands of an einsum are multiplied, and what each product costs.

One `ContractionPlan` is both what torch executes and what an accelerator model costs (paper, section 2.2.1, "Tensor
Contraction Path Optimization", Fig. 6). It is computed once, when it is built; running it searches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

Path = Literal["optimal", "left-to-right", "reconstruct"]
PATHS = get_args(Path)


@dataclass(frozen=True)
class Step:
    """One pairwise contraction: operand `left` times operand `right` gives operand `result`.

    Operands are numbered as in single assignment: the equation's inputs first, then each result.

    Attributes:
        left, right, result: operand numbers.
        left_indices, right_indices, result_indices: einsum indices, in memory order.
        extents: extent of each index of the step.
        static: no operand depends on the input x.
        precomputed: can be done once before inference, as accelerators and ONNX Runtime do; costs count it so. A layer in
            torch does it in every forward pass, so that weights may change in any way.
        kernel: "linear" where the memory order of all three makes the step one matrix product of the flattened left operand
            with the transposed right one, "matmul" for the right one as it is; "einsum" otherwise.
    """

    left: int
    right: int
    result: int
    left_indices: str
    right_indices: str
    result_indices: str
    extents: Mapping[str, int]
    static: bool
    precomputed: bool = False
    kernel: Literal["einsum", "linear", "matmul"] = "einsum"

    @property
    def equation(self) -> str:
        """The step as a two-operand einsum."""
        return f"{self.left_indices},{self.right_indices}->{self.result_indices}"

    def size(self, indices: str) -> int:
        """Number of elements of a tensor with these indices."""
        return math.prod(self.extents[i] for i in indices)

    @property
    def gemm(self) -> tuple[int, int, int, int]:
        """The step as a batched matrix product: extents (batch, M, N, K).

        batch: indices of both operands and the result; M: of left and result; N: of right and result; K: summed. An
        element-wise product has M = N = K = 1, an outer product batch = K = 1.
        """
        batch, m, n, k = map(self.size, self.groups)
        return batch, m, n, k

    @cached_property
    def groups(self) -> tuple[str, str, str, str]:
        """Indices of the batched matrix product (batch, M, N, K), each in the order of the result, K in that of left."""
        left, right, result = self.left_indices, self.right_indices, self.result_indices
        return (
            "".join(i for i in result if i in left and i in right),
            "".join(i for i in result if i in left and i not in right),
            "".join(i for i in result if i not in left),
            "".join(i for i in left if i not in result),
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates: the product of the extents of all indices."""
        return math.prod(self.extents.values())

    @property
    def elements(self) -> int:
        """Number of elements of the result."""
        return self.size(self.result_indices)

    @property
    def shrinks(self) -> bool:
        """Contracting node in the paper's sense: the result is smaller than its operands together."""
        return self.elements < self.size(self.left_indices) + self.size(self.right_indices)


@dataclass(frozen=True)
class ContractionPlan:
    """A frozen order of pairwise contractions for one einsum equation. Build it with `plan_contraction`.

    Attributes:
        equation: the einsum, for example `"bc,a,da,ea,ca->bde"`.
        extents: extent of each index; those of a token index are nominal, any number of tokens can be run.
        static: positions of the operands known before inference.
        path: "optimal" (fewest MACs), "reconstruct" (static operands first, with the fewest MACs) or "left-to-right" (the
            naive order of the paper's Fig. 6).
        all_steps: every step, the precomputed ones first.
    """

    equation: str
    extents: Mapping[str, int]
    static: tuple[int, ...]
    path: Path
    all_steps: tuple[Step, ...]

    @cached_property
    def precomputed(self) -> tuple[Step, ...]:
        """Static contracting steps, done once."""
        return tuple(step for step in self.all_steps if step.precomputed)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps of a forward pass."""
        return tuple(step for step in self.all_steps if not step.precomputed)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass; precomputed steps are free."""
        return sum(step.macs for step in self.steps)

    @property
    def precomputed_macs(self) -> int:
        """Multiply-accumulates done once, before inference."""
        return sum(step.macs for step in self.precomputed)

    @property
    def intermediate_elements(self) -> tuple[int, ...]:
        """Elements of every intermediate of a forward pass, in order; the last result, the output, is not one."""
        return tuple(step.elements for step in self.steps[:-1])

    @property
    def traffic(self) -> int:
        """Elements read and written by the steps of a forward pass."""
        return sum(step.size(step.left_indices) + step.size(step.right_indices) + step.elements for step in self.steps)

    def precompute(self, operands: Sequence[Tensor]) -> dict[int, Tensor]:
        """Run the precomputed steps.

        Args:
            operands: the static operands, in the order of `static`.

        Returns:
            The operands that the steps of a forward pass still read, by number.
        """
        static = dict(zip(self.static, operands, strict=True))
        return _run(self.precomputed, static)

    def contract(self, dynamic: Mapping[int, Tensor], static: Mapping[int, Tensor], bias: Tensor | None = None) -> Tensor:
        """Run the steps of a forward pass.

        Args:
            dynamic: the operands that are not static, by position in the equation.
            static: what `precompute` returned.
            bias: added to the result; it has as many elements as all axes of the result but the first, the tokens.
        """
        (result,) = _run(self.steps, {**static, **dynamic}, bias).values()
        return result

    def __call__(self, *operands: Tensor) -> Tensor:
        """Contract all operands of the equation, in its order."""
        static = self.precompute([operands[i] for i in self.static])
        return self.contract({i: x for i, x in enumerate(operands) if i not in self.static}, static)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("step", "einsum", "batch", "M", "N", "K", "MACs", "result", "when")]
        for step in self.all_steps:
            name = f"{step.left}·{step.right}→{step.result}"
            when = "once" if step.precomputed else ("static" if step.static else "")
            rows.append((name, step.equation, *map(str, step.gemm), f"{step.macs:,}", f"{step.elements:,}", when))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = [[row[i].ljust(w) if i < 2 else row[i].rjust(w) for i, w in enumerate(widths)] for row in rows]
        lines = ["  ".join(row).rstrip() for row in aligned]
        largest = max(self.intermediate_elements, default=0)
        once = f" (+ {self.precomputed_macs:,} once)" if self.precomputed else ""
        head = f"ContractionPlan {self.equation}  {self.path}"
        foot = f"total {self.macs:,} MACs{once}, largest intermediate {largest:,} elements"
        return "\n".join([head, *lines, foot])

    __repr__ = __str__


def _run(steps: Sequence[Step], operands: dict[int, Tensor], bias: Tensor | None = None) -> dict[int, Tensor]:
    for step in steps:
        left, right = operands.pop(step.left), operands.pop(step.right)
        operands[step.result] = _run_step(step, left, right, bias if step is steps[-1] else None)
    return operands


def _run_step(step: Step, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    import torch  # to plan and cost a contraction takes no torch

    if step.kernel == "einsum":
        batch, m, n, _ = step.groups
        if step.result_indices == batch + n + m != batch + m + n:  # so it comes in this order, and need not be copied
            result = torch.einsum(f"{step.right_indices},{step.left_indices}->{step.result_indices}", right, left)
        else:
            result = torch.einsum(step.equation, left, right)
        return result if bias is None else result + bias.reshape(result.shape[1:])
    _, m, n, k = step.groups
    transposed = step.kernel == "matmul"
    columns = right.shape[len(k) :] if transposed else right.shape[: len(n)]
    weight = _matrix(right, len(k)).T if transposed else _matrix(right, len(n))
    extents = (*left.shape[: len(m)], *columns)
    left = left if len(k) == 1 else left.flatten(len(m))
    fused = bias if len(m) == 1 else None
    result = torch.nn.functional.linear(left, weight, fused)
    result = result if len(n) == 1 else result.reshape(extents)
    return result if bias is None or fused is not None else result + bias.reshape(extents[1:])


def _matrix(tensor: Tensor, split: int) -> Tensor:
    """The tensor as a matrix whose rows are its first `split` axes."""
    return tensor if tensor.dim() == 2 else tensor.flatten(split).flatten(0, split - 1)
