"""Models that use a linear for more than its output, whole models that are damaged, and records that move between models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import small_model, token_ids
from torch import nn

from heat_hf import HeatCompressor, HeatConfig, RankRecord
from heat_hf.compression.trial import require_runs
from heat_hf.encoders.linears import encoder_linears, factorized_layers
from heat_hf.encoders.statistics import Statistics

HALF = HeatConfig(target_params_ratio=0.5)


def t5(kind: str = "T5EncoderModel") -> transformers.PreTrainedModel:
    config = transformers.T5Config(vocab_size=60, d_model=24, d_kv=12, d_ff=48, num_layers=2, num_heads=2)
    return getattr(transformers, kind)(config).eval()


@pytest.mark.parametrize("kind", ["T5EncoderModel", "T5Model", "T5ForConditionalGeneration"])
def test_a_model_that_reads_weights_is_refused_before_work(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = t5(kind)
    dense = copy.deepcopy(model.state_dict())
    everything = HeatConfig(target_params_ratio=0.5, modules=["block"], accelerator=None)
    with monkeypatch.context() as context:
        context.setattr("heat_hf.compression.projecting.decompose", lambda *_: pytest.fail("work started"))
        with pytest.raises(ValueError, match=r"cannot run with .*\.wo factorized, .* weight itself: .* exclude=\['wo\$'\]"):
            HeatCompressor(model).compress(everything, save_directory=tmp_path / "out")
    assert not factorized_layers(model)
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())
    assert not list(tmp_path.iterdir())
    without = HeatConfig(target_params_ratio=0.5, modules=["block"], exclude=["wo$"], accelerator=None)
    HeatCompressor(model).compress(without, save_directory=tmp_path / "out")
    with torch.no_grad():
        model(**model.dummy_inputs)


class Reader(nn.Module):
    """Puts a linear's parameters to a use of its own."""

    def __init__(self, linear: nn.Linear, use: Any) -> None:
        super().__init__()
        self.linear, self.use = linear, use

    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return self.use(self.linear, x)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda linear, x: torch.nn.functional.linear(x, linear.weight, linear.bias), "weight itself"),
        (lambda linear, x: linear(x.to(linear.weight.dtype)), "weight itself"),
        (lambda linear, x: x @ linear._parameters["weight"].T, "does not run with factorized layers"),
    ],
)
def test_ways_of_reading_weights(use: Any, message: str) -> None:
    model = small_model("bert")
    intermediate = model.bert.encoder.layer[1].intermediate
    intermediate.dense = Reader(intermediate.dense, use)
    linears = encoder_linears(model)
    with pytest.raises(ValueError, match=message):
        require_runs(model.train(), linears)
    assert model.training
    assert encoder_linears(model) == linears
    require_runs(model, {name: linear for name, linear in linears.items() if "layer.1.intermediate" not in name})


def test_inputs_that_say_nothing() -> None:
    """Where not even the dense model runs, nothing is refused."""
    model = small_model("bert")
    require_runs(model, encoder_linears(model), {"pixel_values": torch.zeros(1, 3, 8, 8)})


@pytest.mark.parametrize(
    "kind",
    [
        "bert.embeddings.word_embeddings.weight",
        "classifier.bias",
        "bert.encoder.layer.0.output.LayerNorm.weight",
        "bert.encoder.layer.1.output.dense.bias",
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite(kind: str, value: float, tmp_path: Path) -> None:
    model = small_model("bert")
    with torch.no_grad():
        model.get_parameter(kind).view(-1)[3 % model.get_parameter(kind).numel()] = value
    module, _, parameter = kind.rpartition(".")
    for attempt in (
        lambda compressor: compressor.compress(HALF, save_directory=tmp_path / "out"),
        lambda compressor: compressor.plan(HALF),
        lambda compressor: compressor.search_ranks(HALF),
    ):
        with pytest.raises(ValueError, match=f"the {parameter} of {module} holds NaN or infinite values"):
            attempt(HeatCompressor(model))
    assert not list(tmp_path.iterdir())


def test_weights_that_are_elsewhere() -> None:
    model = small_model("bert")
    model.bert.pooler.dense.to("meta")
    with pytest.raises(ValueError, match=r"weight of bert.pooler.dense is not in memory: load the model without offloading"):
        HeatCompressor(model).compress(HALF)


def test_an_error_while_layers_are_put_in_leaves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heat_hf.compression.job.attach", lambda *_: 1 / 0)
    model = small_model("bert")
    dense = dict(model.named_modules())
    with pytest.raises(ZeroDivisionError):
        HeatCompressor(model).compress(HALF)
    assert dict(model.named_modules()) == dense


class InPlace(nn.Module):
    """A linear whose output the model then changes in place."""

    def __init__(self, linear: nn.Linear, change: Any) -> None:
        super().__init__()
        self.inner, self.change = linear, change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(self.inner(x))


@pytest.mark.parametrize(
    ("in_place", "plain"),
    [
        (lambda y: y.mul_(0.25), lambda y: y * 0.25),
        (lambda y: torch.nn.functional.relu(y, inplace=True), torch.nn.functional.relu),
        (lambda y: y.add_(1).div_(3), lambda y: (y + 1) / 3),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_outputs_changed_in_place(in_place: Any, plain: Any, frozen: bool) -> None:
    """The moments are those of the linear's own output, as if the model had made a copy."""
    found = []
    for change in (in_place, plain):
        model = small_model("bert").requires_grad_(not frozen)
        for layer in model.bert.encoder.layer:
            layer.attention.self.query = InPlace(layer.attention.self.query, change)
        found.append(Statistics.collect(model, encoder_linears(model), [{"input_ids": token_ids(12, 9)}]))
    for name, moment in found[1].output_moments.items():
        assert (found[0].output_moments[name] - moment).norm() <= 1e-4 * moment.norm()
        torch.testing.assert_close(found[0].second_moments[name], found[1].second_moments[name])


def test_inputs_changed_in_place() -> None:
    """Two layers that are fed one tensor object share a moment only if it holds the same values."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(24, 24), nn.Linear(24, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            return self.one(x) + self.other(x.mul_(2))

    model = small_model("bert")
    model.bert.pooler.dense = Block()
    block = model.bert.pooler.dense
    moments = Statistics.collect(model, {"one": block.one, "other": block.other}, [{"input_ids": token_ids()}], False)
    torch.testing.assert_close(4 * moments.second_moments["one"], moments.second_moments["other"])


def test_deberta(tmp_path: Path) -> None:
    config = transformers.DebertaConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        relative_attention=True, pos_att_type="c2p|p2c", max_relative_positions=16,
    )  # fmt: skip
    model = transformers.DebertaForSequenceClassification(config).eval()
    asked = HeatConfig(target_params_ratio=0.5, modules=[r"encoder\.layer\.\d+\."], loss_aware=True)
    report = HeatCompressor(model).compress(asked, [{"input_ids": token_ids(12, 9)}], tmp_path / "out")
    assert report.output_error is not None
    assert report.output_error < 1


def test_too_few_tokens_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """Fewer tokens than a layer has inputs: an error on these is no evidence, and none is given."""
    for rows, blind in ((1, 12), (4, 2), (12, 0)):  # 9, 36 and 108 tokens; inputs are 24, and 48 of the two output layers
        report = HeatCompressor(small_model("bert")).compress(HALF, [{"input_ids": token_ids(rows, 9)}])
        assert sum(tensor.output_error is None for tensor in report.tensors) == blind
        assert (f"fewer tokens than {blind} of 12 matrices have inputs" in str(report)) == bool(blind)
        assert (report.few_tokens in caplog.messages) == bool(blind)
        caplog.clear()
    assert report.output_error is not None


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("head", [True, False])
def test_a_record_moves_between_models_with_a_head_and_without(family: str, head: bool, tmp_path: Path) -> None:
    asked = HeatConfig(rank_search="sensitivity", target_params_ratio=0.5, sequence_length=16)
    batches = [{"input_ids": token_ids(12, 9)}]
    HeatCompressor(small_model(family, head)).search_ranks(asked, batches, tmp_path / "ranks.json")
    (variant,) = RankRecord.load(tmp_path / "ranks.json").variants
    compressor = HeatCompressor(small_model(family, not head))
    compressor.compress(asked, batches, variant=variant)
    kept = [setting for setting in variant.settings.values() if setting is not None]
    assert [layer.setting for layer in factorized_layers(compressor.model).values()] == kept


def test_a_record_that_lacks_a_layer_does_not_move() -> None:
    asked = HeatConfig(rank_search="sensitivity", target_params_ratio=0.5, sequence_length=16)
    (variant,) = HeatCompressor(small_model("bert", head=False)).search_ranks(asked, [{"input_ids": token_ids(12, 9)}]).variants
    whole = HeatConfig(target_params_ratio=0.5, modules=["layer", "classifier"])
    with pytest.raises(ValueError, match="variant HEAT-a1 does not fit the model: only one of both has 'classifier'"):
        HeatCompressor(small_model("bert")).compress(whole, variant=variant)
