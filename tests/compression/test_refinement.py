"""Block-wise refinement: lower errors, the same bytes again, nothing else touched; every family, other formats."""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, small_model, token_ids
from torch import nn

from heat_hf import CompressionReport, HeatCompressor, HeatConfig
from heat_hf.compression import refined_rows, refinement
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.linears import factorized_layers, tensors_digest
from heat_hf.encoders.statistics import Statistics
from heat_hf.formats.decomposition import approximation_errors

LAYOUT = {"sequence_length": 16, "max_sweeps": 5, "refinement_steps": 3, "accelerator": None}
ROWS, LENGTH = 8, 9


def batches(count: int = 12) -> list[dict[str, torch.Tensor]]:
    """Random tokens, the last of every second row being padding."""
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, 60, (ROWS, LENGTH), generator=generator) for _ in range(count)]
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[::2, -3:] = 0
    return [{"input_ids": one, "attention_mask": mask} for one in ids]


def config(steps: int = 8, **options: object) -> HeatConfig:
    return HeatConfig(**{"target_params_ratio": 0.5, "refine_steps": steps, **LAYOUT, **options})


def compressed(
    family: str = "bert", steps: int = 8, data: list[dict[str, torch.Tensor]] | None = None, **options: object
) -> tuple[transformers.PreTrainedModel, CompressionReport]:
    model = small_model(family)
    return model, factorize(model, config(steps, **options), batches() if data is None else data)


def digest(model: nn.Module) -> str:
    return tensors_digest(model.state_dict().values())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "albert"])
def test_every_block_of_every_family_comes_closer(family: str) -> None:
    model, report = compressed(family, 20)
    assert report.refinement is not None
    assert report.refinement.steps == 20
    assert len(report.refinement.blocks) == 2
    assert all(0 < block.after < block.before for block in report.refinement.blocks)
    assert len(factorized_layers(model)) == FAMILIES[family][1]


def distance(model: nn.Module, dense: nn.Module, data: list[dict[str, torch.Tensor]]) -> float:
    """Relative error of the hidden states behind the last block; of the twelve batches the fifth is held out."""
    lost = whole = 0.0
    for batch in data:
        counted = batch["attention_mask"].bool()
        with torch.no_grad():
            ours, theirs = (m(**batch, output_hidden_states=True).hidden_states[-1][counted] for m in (model, dense))
        lost += float((ours - theirs).square().sum())
        whole += float(theirs.square().sum())
    return (lost / whole) ** 0.5


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_the_error_of_the_last_block_is_that_of_the_hidden_states(family: str) -> None:
    dense = small_model(family)
    model, report = compressed(family, 20)
    assert report.refinement is not None
    found = distance(model, dense, batches()[4:5])
    assert report.refinement.blocks[-1].after == pytest.approx(found, rel=1e-4)
    assert found < distance(compressed(family, 0)[0], dense, batches()[4:5])


def test_a_convolution_between_blocks_is_run() -> None:
    torch.manual_seed(0)
    settings = transformers.AutoConfig.for_model("deberta-v2", **FAMILIES["deberta-v2"][0], conv_kernel_size=3)
    model = transformers.AutoModel.from_config(settings).eval()
    dense = copy.deepcopy(model)
    report = factorize(model, config(), batches())
    assert report.refinement is not None
    assert report.refinement.blocks[-1].after == pytest.approx(distance(model, dense, batches()[4:5]), rel=1e-4)


@pytest.mark.parametrize("decomposition", ["low_rank", "tucker", "ttm"])
def test_the_same_bytes_again(decomposition: str) -> None:
    (first, one), (second, other) = (compressed(decomposition=decomposition) for _ in range(2))
    assert digest(first) == digest(second)
    assert one == other
    assert one.refinement is not None
    assert all(block.after < block.before for block in one.refinement.blocks)
    assert digest(first) != digest(compressed(decomposition=decomposition, seed=1)[0])


def test_no_steps_and_no_data_change_nothing() -> None:
    plain, report = compressed(steps=0)
    assert report.refinement is None
    dense = small_model("bert")
    statistics = Statistics.collect(dense, dict(dense.named_modules()) and _linears(dense), batches())
    factorize(dense, config(0), statistics=statistics)
    assert digest(dense) == digest(plain)
    without = [small_model("bert") for _ in range(2)]
    for steps, model in zip((0, 8), without, strict=True):
        assert factorize(model, config(steps)).refinement is None
    assert digest(without[0]) == digest(without[1])


def _linears(model: transformers.PreTrainedModel) -> dict[str, nn.Linear]:
    from heat_hf.encoders.linears import encoder_linears

    return encoder_linears(model)


def test_statistics_without_their_data_are_said(caplog: pytest.LogCaptureFixture) -> None:
    dense = small_model("bert")
    statistics = Statistics.collect(dense, _linears(dense), batches())
    report = factorize(dense, config(), statistics=statistics)
    assert report.refinement is None
    said = "nothing is refined: that needs at least 2 batches of calibration data, one of them held out"
    assert said in caplog.messages
    model, report = compressed(data=batches(1))
    assert report.refinement is None
    assert caplog.messages.count(said) == 2
    assert digest(model) == digest(compressed(steps=0, data=batches(1))[0])


def test_padding_does_not_count() -> None:
    """Other tokens, and more of them, in the place of padding give the same cores."""
    data, other = batches(), batches()
    for batch in other:
        batch["input_ids"] = torch.where(batch["attention_mask"] == 0, 59, batch["input_ids"])
        batch["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, 2), value=7)
        batch["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 2))
    (model, report), (twin, again) = compressed(data=data), compressed(data=other)
    assert report.refinement is not None
    assert again.refinement is not None
    for block, same in zip(report.refinement.blocks, again.refinement.blocks, strict=True):
        assert (block.before, block.after) == pytest.approx((same.before, same.after), rel=1e-4)
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-4)


def test_shared_blocks_are_left_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    model, report = compressed("albert")
    assert report.refinement is None
    assert digest(model) == digest(compressed("albert", 0)[0])
    said = "6 of 6 factorized matrices are not refined: they are in no block that runs just once in a forward pass"
    assert said in caplog.messages


def test_nothing_of_the_user_is_touched(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    model = small_model("bert").train()
    model.classifier.weight.requires_grad_(False)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    factorize(model, config(), batches())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["classifier.weight"]
    for name, value in model.state_dict().items():
        if name in kept and not name.endswith("bias"):
            assert torch.equal(value, kept[name]), name
    assert all("forward" not in module.__dict__ and not module._forward_pre_hooks for module in model.modules())
    assert not caplog.messages


def test_dropout_plays_no_part() -> None:
    training = small_model("bert").train()
    factorize(training, config(), batches())
    assert digest(training) == digest(compressed()[0])


def test_an_error_leaves_the_model_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("bert")
    before, names = digest(model), [name for name, _ in model.named_modules()]
    calls = iter(range(100))

    def fail(*_: object) -> float:
        if next(calls) == 10:  # in the second block, with the first one swapped
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(refinement, "_schedule", fail)
    with pytest.raises(KeyboardInterrupt):
        factorize(model, config(), batches())
    assert digest(model) == before
    assert [name for name, _ in model.named_modules()] == names
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_a_block_that_would_get_worse_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "RATE", 1e3)
    model, report = compressed()
    assert report.refinement is not None
    assert all(block.after == block.before for block in report.refinement.blocks)
    assert digest(model) == digest(compressed(steps=0)[0])


def test_only_what_the_search_factorized_is_trained() -> None:
    model, report = compressed(exclude=["key"])
    dense = small_model("bert").state_dict()
    kept = [name for name in model.state_dict() if "key" in name or "LayerNorm" in name]
    assert kept
    assert all(torch.equal(model.state_dict()[name], dense[name]) for name in kept)
    assert report.refinement is not None


@pytest.mark.parametrize("memory", ["model", "layer"])
def test_errors_are_those_of_the_refined_cores(memory: str) -> None:
    dense = small_model("bert")
    model, report = compressed(calibration_memory=memory)
    statistics = Statistics.collect(dense, _linears(dense), batches(), gradients=False)
    layers = factorized_layers(model)
    for tensor in report.tensors:
        layer = layers[tensor.name]
        cores = [core.detach() for core in layer.cores]
        weight, moment = dense.get_submodule(tensor.name).weight, statistics.moments(tensor.name, False)[0]
        errors = approximation_errors(layer.setting.codec, weight, cores, layer.setting.shape, moment)
        assert (tensor.relative_error, tensor.output_error) == pytest.approx(errors, rel=1e-5)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refined_rows, "MOST_TOKENS", 2 * ROWS * LENGTH)
    data = batches()
    few, out = refined_rows.few_batches(data)
    assert len(few) == 2
    assert [few[place] for place in out] == [data[refined_rows.held_out(len(data))[0]]]
    _, report = compressed()
    assert report.refinement is not None


def test_a_step_learns_from_some_rows_of_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refined_rows, "STEP_TOKENS", 3 * LENGTH + 1)
    seen = []

    def compared(answer: torch.Tensor, target: torch.Tensor, batch: dict[str, torch.Tensor]) -> object:
        if answer.requires_grad:
            seen.append((len(answer), len(target), {len(value) for value in batch.values()}))
        return own(answer, target, batch)

    own = refinement._compared
    monkeypatch.setattr(refinement, "_compared", compared)
    _, report = compressed(steps=20)
    assert set(map(str, seen)) == {str((3, 3, {3}))}
    assert report.refinement is not None
    assert all(block.after < block.before for block in report.refinement.blocks)


def test_bfloat16() -> None:
    model = small_model("bert").to(torch.bfloat16)
    report = factorize(model, config(20), batches())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert report.refinement is not None
    assert all(block.after < block.before for block in report.refinement.blocks)


def test_save_and_load(tmp_path: Path) -> None:
    compressor = HeatCompressor(small_model("bert"))
    report = compressor.compress(config(), batches(), tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert digest(loaded) == digest(compressor.model)
    assert CompressionReport.load(tmp_path) == report
    assert "Refined by 8 steps a block; relative error of a block's outputs" in str(report)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(token_ids()).logits, compressor.model(token_ids()).logits)


def test_an_interrupted_refinement_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with other data, nor another request; at the end nothing is left beside the model, and its bytes are the same."""
    train, target, trained = refinement._Refiner._train, tmp_path / "out", list[str]()

    def kept(refiner: refinement._Refiner, name: str, *more: Any) -> None:
        trained.append(name)
        train(refiner, name, *more)

    def interrupted(refiner: refinement._Refiner, name: str, *more: Any) -> None:
        if trained:
            raise KeyboardInterrupt
        kept(refiner, name, *more)

    def made(data: list[dict[str, torch.Tensor]], steps: int) -> tuple[list[str], bytes]:
        """The blocks that were trained, and the weights."""
        trained.clear()
        shutil.rmtree(target, ignore_errors=True)
        HeatCompressor(small_model("bert")).compress(config(steps), data, target)
        assert [path.name for path in tmp_path.iterdir() if path.name != "left"] == ["out"]
        return list(trained), (target / "heat_model.safetensors").read_bytes()

    monkeypatch.setattr(refinement._Refiner, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(batches(), 8)
    assert not target.exists()
    first = trained[0]
    assert (tmp_path / "out.partial" / f"{first}.safetensors").is_file()
    shutil.copytree(tmp_path / "out.partial", tmp_path / "left")
    monkeypatch.setattr(refinement._Refiner, "_train", kept)
    resumed, weights = made(batches(), 8)
    assert first not in resumed and len(resumed) == 1
    for data, steps in ((batches(11), 8), (batches(), 7)):
        shutil.copytree(tmp_path / "left", tmp_path / "out.partial")
        everything, other = made(data, steps)
        assert everything == [first, *resumed] and other != weights
    assert made(batches(), 8) == ([first, *resumed], weights)
