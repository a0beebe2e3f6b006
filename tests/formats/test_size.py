"""The size of a matrix, as text and back."""

from __future__ import annotations

import pytest
import torch

from heat_hf import MatrixSize


def test_text_and_back() -> None:
    size = MatrixSize.of(torch.nn.Linear(1536, 384))
    assert size == (384, 1536)
    assert str(size) == "384x1536"
    assert MatrixSize.parse("384x1536") == size
    assert size.elements == 384 * 1536


@pytest.mark.parametrize("text", ["", "384", "384x", "0x4", "4x4x4", " 4x4", "4X4", "٤x4", 7, None])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="must be written OUTxIN, as 384x1536"):
        MatrixSize.parse(text)
