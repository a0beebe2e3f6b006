"""Losses of different layers are what the model's outputs really lose: G is scaled to whole sequences."""

from __future__ import annotations

import pytest
import torch
from conftest import small_model, token_ids

from heat_hf.encoders import coherence
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.statistics import Statistics
from heat_hf.formats.projection import OUTPUT_DAMPING, damped, weighted_square

FAMILIES = ("bert", "distilbert", "deberta-v2", "modernbert", "albert")


def loud(family: str) -> torch.nn.Module:
    """A model whose outputs mind its weights."""
    model = small_model(family)
    with torch.no_grad():
        for linear in encoder_linears(model).values():
            linear.weight.mul_(2)
        for name, parameter in model.named_parameters():
            if "classifier" in name or name.startswith("head"):
                parameter.mul_(4)
    return model


def measured(model: torch.nn.Module, linear: torch.nn.Linear, error: torch.Tensor, ids: torch.Tensor) -> float:
    """Divergence that a small part of an error causes, as if all of it did to second order; in float64, for it is tiny."""
    part = 1e-2
    with torch.no_grad():
        before = model(input_ids=ids).logits.log_softmax(-1)
        linear.weight -= part * error
        after = model(input_ids=ids).logits.log_softmax(-1)
        linear.weight += part * error
    return float((before.exp() * (before - after)).sum(-1).mean()) / part**2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_an_error_is_the_divergence_that_it_causes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every layer that counts within a factor of 2, and on average closer than token by token; 400 rows are noisy."""
    model = loud(family).eval().double()
    ids = token_ids(400, 9)
    batches = [{"input_ids": rows} for rows in ids.split(40)]
    linears = encoder_linears(model)
    scaled = Statistics.collect(model, linears, batches)
    monkeypatch.setattr("heat_hf.encoders.statistics.scaled_moments", lambda *given: given[4])
    plain = Statistics.collect(model, linears, batches)
    found = []
    for name, linear in linears.items():
        error, loss = coherence.typical_error(linear.weight, *plain.moments(name))
        scale = float(scaled.output_moments[name].trace() / plain.output_moments[name].trace())
        found.append((measured(model, linear, error, ids), scale * loss, loss))
    most = max(truth for truth, _, _ in found)
    counted = torch.tensor([row for row in found if row[0] > 1e-3 * most]).log2()  # the others drown in rounding
    off = (counted[:, 1:] - counted[:, :1]).abs()
    assert off[:, 0].max() < 1
    assert off[:, 0].mean() < 0.7 * off[:, 1].mean()


def test_a_typical_error_is_a_low_ranks_and_its_loss_is_known() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 20, dtype=torch.float64)
    c, g = (a @ a.T for a in (torch.randn(20, 30, dtype=torch.float64), torch.randn(12, 30, dtype=torch.float64)))
    error, loss = coherence.typical_error(weight, c, g)
    kept = torch.linalg.matrix_rank(weight - error, atol=1e-9)
    assert 0 < kept < 12
    assert torch.linalg.matrix_rank(error, atol=1e-9) == 12 - kept
    g = damped(g, OUTPUT_DAMPING)
    assert 0.02 * float(weighted_square(weight, c, g)) / 2 < loss <= coherence.LOST * float(weighted_square(weight, c, g)) / 2
    assert float(weighted_square(error, c, g)) / 2 == pytest.approx(loss, rel=1e-4)  # C is damped by a millionth


def test_a_matrix_of_zeros_has_nothing_to_lose() -> None:
    model = small_model("bert")
    name, linear = next(iter(encoder_linears(model).items()))
    linear.weight.data.zero_()
    moments = Statistics.collect(model, {name: linear}, [{"input_ids": token_ids()}])
    assert torch.isfinite(moments.output_moments[name]).all()
