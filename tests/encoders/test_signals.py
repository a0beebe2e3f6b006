"""The divergence of model outputs, and the Fisher information that is its second derivative."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import small_model, token_ids

from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.signals import (
    Signal,
    attention_distance,
    divergence,
    hidden_distance,
    output_signals,
    random_probe,
)
from heat_hf.encoders.statistics import Statistics

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
INPUTS = {"input_ids": torch.zeros(2, 4, dtype=torch.long), "attention_mask": MASK}


def outputs_of(kind: str, seed: int = 0) -> object:
    torch.manual_seed(seed)
    if kind == "question answering":
        return SimpleNamespace(start_logits=torch.randn(2, 4), end_logits=torch.randn(2, 4))
    if kind == "tokens":
        return SimpleNamespace(start_logits=None, logits=torch.randn(2, 4, 5))
    if kind == "classes":
        return SimpleNamespace(start_logits=None, logits=torch.randn(2, 5))
    if kind == "number":
        return SimpleNamespace(start_logits=None, logits=torch.randn(2, 1))

    class Hidden(tuple):
        start_logits = logits = None

    return Hidden([torch.randn(2, 4, 6)])


MODEL = SimpleNamespace(config=SimpleNamespace())
KINDS = ("question answering", "tokens", "classes", "number", "embedding")


@pytest.mark.parametrize("kind", KINDS)
def test_zero_for_the_same_and_positive_for_another(kind: str) -> None:
    first, second = (output_signals(outputs_of(kind, seed), INPUTS, MODEL) for seed in (0, 1))
    assert float(divergence(first, first)) == pytest.approx(0, abs=1e-6)
    assert float(divergence(first, second)) > 0.01


@pytest.mark.parametrize("kind", ["question answering", "tokens", "embedding"])
def test_padding_does_not_matter(kind: str) -> None:
    first, second = outputs_of(kind), outputs_of(kind)
    values = second[0] if kind == "embedding" else getattr(second, "logits", None)
    (second.start_logits if values is None else values)[0, 3] += 5.0
    signals = [output_signals(outputs, INPUTS, MODEL) for outputs in (first, second)]
    assert float(divergence(*signals)) == pytest.approx(0, abs=1e-6)


def test_known_values() -> None:
    kl = [
        Signal(torch.tensor([[0.0, 0.0]]), True, torch.ones(1)),
        Signal(torch.log(torch.tensor([[0.9, 0.1]])), True, torch.ones(1)),
    ]
    assert float(divergence([kl[0]], [kl[1]])) == pytest.approx(0.9 * 0.587787 + 0.1 * -1.609438, abs=1e-4)
    a, b = (torch.nn.functional.normalize(torch.tensor([v]), dim=-1) for v in ([1.0, 0.0], [1.0, 1.0]))
    cosine = divergence([Signal(a, False, torch.ones(1))], [Signal(b, False, torch.ones(1))])
    assert float(cosine) == pytest.approx(1 - 0.5**0.5, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_probes_have_the_curvature_of_the_divergence(kind: str) -> None:
    """The mean of J Jᵀ over probes is the Hessian of the summed divergence at its minimum."""
    signals = output_signals(outputs_of(kind), INPUTS, MODEL)
    values = signals[0].values
    signal = Signal(values, signals[0].categorical, signals[0].weights)

    def lost(x: torch.Tensor) -> torch.Tensor:
        moved = Signal(x.reshape(values.shape), signal.categorical, signal.weights)
        return divergence([moved], [signal]) * signal.weights.sum()

    hessian = torch.autograd.functional.hessian(lost, values.flatten())
    generator, total = torch.Generator().manual_seed(0), torch.zeros_like(hessian)
    for _ in range(3000):
        leaf = values.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(random_probe([Signal(leaf, signal.categorical, signal.weights)], generator), leaf)
        total += torch.outer(gradient.flatten(), gradient.flatten()) / 3000
    assert float((total - hessian).norm()) < 0.2 * float(hessian.norm())


def test_output_moments_predict_the_divergence_of_a_small_error() -> None:
    """½ tr(G Δ C Δᵀ) beside the measured divergence, for a rank-1 Δ; inputs and gradients are not quite independent."""
    model = small_model("bert")
    model.classifier.weight.data.mul_(20)
    batches = [{"input_ids": token_ids(40, 6)}]
    name = "bert.encoder.layer.1.output.dense"
    linear = encoder_linears(model)[name]
    c, g = Statistics.collect(model, {name: linear}, batches * 40).moments(name)
    torch.manual_seed(3)
    delta = 0.02 * torch.randn_like(linear.weight)
    expected = float(0.5 * torch.trace(g @ delta.double() @ c @ delta.double().T))
    with torch.no_grad():
        before = output_signals(model(**batches[0]), batches[0], model)
        linear.weight += delta
        measured = float(divergence(output_signals(model(**batches[0]), batches[0], model), before))
    assert measured / 3 < expected < measured * 3


def test_output_moments_of_frozen_models_and_unreached_layers() -> None:
    model = small_model("bert")
    batches = [{"input_ids": token_ids()}]
    linears = encoder_linears(model)
    moments = Statistics.collect(model, linears, batches).output_moments
    model.requires_grad_(False)
    frozen = Statistics.collect(model, linears, batches).output_moments
    assert all(torch.allclose(moments[name], frozen[name]) for name in linears)
    assert all(moments[name].shape == (linear.out_features,) * 2 for name, linear in linears.items())
    assert all(p.grad is None for p in model.parameters())
    pooled = small_model("bert", head=False)  # the embedding does not read the pooler
    with pytest.raises(ValueError, match=r"no finite gradient at 'pooler\.dense'"):
        Statistics.collect(pooled, {"pooler.dense": pooled.pooler.dense}, batches)


def test_hidden_distance_leaves_out_padding() -> None:
    torch.manual_seed(0)
    student = [torch.randn(2, 4, 6) for _ in range(3)]
    teacher = [x.clone() for x in student]
    for x in student:
        x[0, 3] = 7.0
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert float(hidden_distance(student, teacher, mask)) == pytest.approx(0, abs=1e-6)
    assert float(hidden_distance(student, teacher, None)) > 0.01


def test_attention_distance_leaves_out_padding() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    student = [torch.rand(2, 3, 4, 4) for _ in range(2)]
    teacher = [x.clone() for x in student]
    for x in student:
        x[0, :, 3] = torch.rand(3, 4)  # where a padded token looks
        x[0, :, :, 3] = torch.rand(3, 4)  # who looks at a padded token
    assert float(attention_distance(student, teacher, mask)) == pytest.approx(0, abs=1e-6)
    assert float(attention_distance(student, teacher, None)) > 0.001
    parts = [attention_distance([x[i : i + 1] for x in student], [torch.ones(1, 3, 4, 4)] * 2, mask[i : i + 1]) for i in (0, 1)]
    whole = attention_distance(student, [torch.ones(2, 3, 4, 4)] * 2, mask)
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_heads_that_are_left_are_compared_with_those_they_are_most_like() -> None:
    torch.manual_seed(0)
    whole, teacher = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    for mask in (None, MASK):
        for left in ([0], [2], [0, 2], [2, 1]):
            assert float(attention_distance([whole, teacher[:, left]], [whole, teacher], mask)) == pytest.approx(0, abs=1e-6)
        student = torch.rand(2, 2, 4, 4, requires_grad=True)
        distance = attention_distance([student, whole], [teacher, teacher], mask)
        nearest = [
            min(attention_distance([student[row, head][None, None]], [other[None, None]], None if mask is None else mask[[row]])
                for other in teacher[row])
            for row in range(2) for head in range(2)
        ]  # fmt: skip
        expected = (torch.stack(nearest).mean() + attention_distance([whole], [teacher], mask)) / 2
        torch.testing.assert_close(distance, expected)
        (gradient,) = torch.autograd.grad(distance, student)
        assert gradient.flatten(2).norm(dim=2).gt(0).all()


def test_temperature_softens_both_distributions() -> None:
    student, teacher = ([Signal(values, True, torch.ones(2))] for values in (torch.randn(2, 5), torch.randn(2, 5)))
    halves = [[Signal(signal[0].values / 2, True, torch.ones(2))] for signal in (student, teacher)]
    torch.testing.assert_close(divergence(student, teacher, 2.0), divergence(*halves))
