"""Modules put in the place of others."""

from __future__ import annotations

import torch
from torch import nn

from heat_hf.encoders.linears import swap_modules


class Twice(nn.Module):
    """One linear under two names, beside another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)


def test_a_module_is_swapped_wherever_it_is() -> None:
    inner = Twice()
    model = nn.Sequential(inner, inner.first, inner.other)
    before, new, absent = inner.first, nn.Linear(4, 4), nn.Linear(4, 4)
    swap_modules(model, {before: new, absent: nn.Identity()})
    assert inner.first is inner.second is model[1] is new and model[2] is inner.other
    assert all(module is not before for module in model.modules())
    swap_modules(model, {new: before})
    assert inner.first is inner.second is model[1] is before


def test_two_modules_change_places() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first, second = model
    expected = first(second(torch.ones(2)))
    swap_modules(model, {first: second, second: first})
    assert model[0] is second and torch.equal(model(torch.ones(2)), expected)
