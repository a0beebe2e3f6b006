"""Symmetric matrices held as strips: what they hold, where, and what is left of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heat_hf.encoders.triangles import STRIP, Moments, Triangle, room


@settings(deadline=None, max_examples=20)
@given(width=st.integers(1, 3 * STRIP + 1), seed=st.integers(0, 99), disk=st.booleans())
def test_sums_of_products(width: int, seed: int, disk: bool) -> None:
    rows = [torch.randn(5, width, generator=torch.Generator().manual_seed(seed + part)) for part in (0, 1)]
    triangle = Triangle.zeros(width, disk=disk)
    for part in rows:
        triangle.add(part)
    whole, stacked = triangle.whole(), torch.cat(rows).double()
    torch.testing.assert_close(whole, stacked.T @ stacked, rtol=1e-5, atol=1e-5)
    assert torch.equal(whole, whole.T)
    assert torch.equal(Triangle.of(whole).whole(), whole)


def test_wide_ones_take_little_more_than_half() -> None:
    assert Triangle.count(3072) < 0.57 * 3072**2
    assert Triangle.count(STRIP) == STRIP**2


def test_elements_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width 3 cannot have elements of extents"):
        Triangle(3, torch.zeros(8))


def test_layers_share_a_moment_and_one_is_whole_at_a_time() -> None:
    moments = Moments({"a": Triangle.of(torch.eye(3)), "c": Triangle.of(torch.eye(4))}, {"a": "a", "b": "a", "c": "c"})
    assert moments["a"] is moments["b"]
    assert [moments.width(name) for name in moments] == [3, 3, 4]
    assert torch.equal(moments["c"], torch.eye(4))
    with pytest.raises(ValueError, match="the moment of 'd' is missing"):
        Moments({}, {"a": "d"})


def test_room_on_a_disk_has_no_name_and_is_refused_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    there = room(2, 3, dtype=torch.float32, disk=True)
    assert there.shape == (2, 3)
    assert not list(tmp_path.iterdir())
    there[1, 2] = 4.0
    assert float(there.sum()) == 4.0
    assert room(0, 3, dtype=torch.float32, disk=True).shape == (0, 3)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device for a file of 8 bytes in .*; set TMPDIR to a folder"):
        room(2, dtype=torch.float32, disk=True)
    assert not list(tmp_path.iterdir())
