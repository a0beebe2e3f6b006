"""Hand-tuned shapes with uniform ranks, what the paper calls SR-Manual."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heat_hf.search.ranks.methods.uniform import Uniform

if TYPE_CHECKING:
    from heat_hf.formats import TensorShape
    from heat_hf.formats.size import MatrixSize
    from heat_hf.search.ranks.problem import Problem


class Manual(Uniform):
    """As uniform, in the shapes that people choose by hand (paper, section 3.2)."""

    name = "manual"
    shapes_by_share = False

    def shape(self, problem: Problem, format: str, size: MatrixSize) -> TensorShape:
        """The user's shape, or the hand-tuned one."""
        from heat_hf.formats import get_format

        return problem.fixed_shape(size) or get_format(format).manual_shape(*size)
