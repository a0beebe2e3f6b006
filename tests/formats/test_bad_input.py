"""Formats refuse what cannot work, by name."""

from __future__ import annotations

import pytest
import torch

from heat_hf.formats import FORMATS, TensorShape, get_format
from heat_hf.formats.decomposition import decompose


def test_zero_matrix() -> None:
    for name, format in FORMATS.items():
        shape = format.default_shape(12, 24)
        result = decompose(format, torch.zeros(12, 24), shape, format.uniform_rank(shape, 2))
        assert result.relative_error == 0, name


@pytest.mark.parametrize(
    ("name", "shape", "rank", "message"),
    [
        ("low_rank", ((12,), (18,)), 0, "from 1 to 12"),
        ("low_rank", ((12,), (18,)), -3, "from 1 to 12"),
        ("low_rank", ((12,), (18,)), 13, "from 1 to 12"),
        ("low_rank", ((12,), (18,)), 2.5, "must be an integer"),
        ("low_rank", ((12,), (18,)), True, "got True"),
        ("low_rank", ((12,), (18,)), (2, 3), "has 1 ranks, got 2"),
        ("low_rank", ((3, 4), (18,)), 2, "order-2 shape 12:18"),
        ("cp", ((12,), (3, 6)), 19, "from 1 to 18"),
        ("tucker", ((12,), (3, 6)), (2, 4, 2), r"rank\[1\] .* from 1 to 3"),
        ("tucker", ((12,), (3, 6)), (2, 2), "has 3 ranks, got 2"),
        ("tucker", ((12,), (3, 6)), (12, 2, 3), r"largest usable rank within it is \[6, 2, 3\]"),
        ("ttm", ((2, 3, 2), (1, 3, 6)), (2, 12), None),
        ("ttm", ((2, 3, 2), (1, 3, 6)), (1, 12), r"largest usable rank within it is \[1, 9\]"),
        ("ttm", ((3, 4), (3, 6)), (10,), "from 1 to 9"),
        ("ttm", ((3, 4), (18,)), 2, "as many row modes as column modes"),
        ("cp", ((5, 2), (3, 6)), 2, "product of out_modes"),
        ("cp", ((12,), (3, 5)), 2, "product of in_modes"),
    ],
)
def test_bad_shape_or_rank(name: str, shape: tuple, rank: object, message: str | None) -> None:
    if message is None:  # the neighbour of a bad case, to show where the border is
        decompose(get_format(name), torch.randn(12, 18), TensorShape(*shape), rank)
        return
    with pytest.raises(ValueError, match=message):
        decompose(get_format(name), torch.ones(12, 18), TensorShape(*shape), rank)


def test_bad_values() -> None:
    with pytest.raises(ValueError, match=r"unknown decomposition 'svd'; known are low_rank, pivoted, cp, tucker, ttm"):
        get_format("svd")
    with pytest.raises(ValueError, match="weight holds NaN"):
        decompose(get_format("low_rank"), torch.full((4, 4), float("nan")), TensorShape.matrix(4, 4), 2)
    with pytest.raises(ValueError, match="second_moment holds NaN"):
        moment = torch.full((4, 4), float("inf"))
        decompose(get_format("low_rank"), torch.ones(4, 4), TensorShape.matrix(4, 4), 2, second_moment=moment)
    with pytest.raises(ValueError, match="cannot be as small as 10 parameters"):
        get_format("low_rank").largest_rank(TensorShape.matrix(12, 18), 10)


@pytest.mark.parametrize("text", ["", "12", "12:x", "12:18:2", "abc", 7, [], [[12]], [[12], [0]], [[12], [18.0]], "11x18"])
def test_bad_shape_text(text: object) -> None:
    with pytest.raises(ValueError, match="shape"):
        TensorShape.parse(text, 12, 18)
