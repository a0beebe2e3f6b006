"""Within a budget of parameters, uniform takes the rank that the hardware likes, and never a larger one than asked."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from heat_hf.formats import get_format
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.analytic import cost_model
from heat_hf.search.ranks.methods.uniform import LEAST_KEPT, favoured
from heat_hf.search.ranks.problem import Problem
from heat_hf.search.ranks.space import Costs, Matrix

SIMBA = cost_model("simba-l")


def problem(size: MatrixSize, accelerator: bool = True) -> Problem:
    with torch.device("meta"):
        linear = nn.Linear(size.columns, size.rows)
    costs = Costs({"x": Matrix(size)}, 128, SIMBA if accelerator else None)
    return Problem(nn.Module(), {"x": linear}, costs, ("low_rank",))  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "largest"), itertools.product([(384, 384), (384, 1536), (768, 768)], [65, 97, 129, 131, 193]))
def test_never_more_and_never_dearer(size: tuple[int, int], largest: int) -> None:
    matrix = MatrixSize(*size)
    own, codec = problem(matrix), get_format("low_rank")
    shape = codec.default_shape(*matrix)
    (taken,) = favoured(own, "x", codec, shape, (largest,))
    assert LEAST_KEPT * largest <= taken <= largest
    edp = {rank: SIMBA.setting(TensorSetting("low_rank", shape, (rank,)), 128).edp for rank in (taken, largest)}
    assert edp[taken] <= edp[largest]


@pytest.mark.parametrize(("largest", "liked"), [(129, 128), (65, 64), (97, 96)])
def test_a_rank_just_above_the_widths(largest: int, liked: int) -> None:
    matrix = MatrixSize(384, 384)
    codec = get_format("low_rank")
    shape = codec.default_shape(*matrix)
    assert favoured(problem(matrix), "x", codec, shape, (largest,)) == (liked,)
    assert favoured(problem(matrix, accelerator=False), "x", codec, shape, (largest,)) == (largest,)
