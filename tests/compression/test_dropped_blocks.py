"""Networks that lose whole Transformer blocks, from search to disk: every family, what is exact, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, small_model, token_ids
from deep import deep_model, dropped, settings_of
from grouped import OPTIONS, batches, said

from heat_hf import HeatCompressor, HeatConfig, Statistics
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.blocks import Blocks
from heat_hf.encoders.config import FactorizedConfig
from heat_hf.encoders.dropping import droppable, renumbered
from heat_hf.encoders.linears import encoder_linears, factorized_layers

OTHERS = ("albert", "modernbert")
WHOLE = tuple(family for family in FAMILIES if family not in OTHERS)


@pytest.mark.parametrize("family", WHOLE)
@pytest.mark.parametrize("number", [0, 1])
def test_families(family: str, number: int, tmp_path: Path) -> None:
    model = small_model(family)
    linears, inputs = encoder_linears(model), {"input_ids": token_ids()}
    blocks = Blocks.of(model, linears, inputs)
    with blocks.skipped([list(blocks.modules)[number]]):
        expected = said(model)
    assert not torch.equal(expected, said(model))
    report = dropped(model, [number])
    assert model.config.num_hidden_layers == 1 and torch.equal(said(model), expected)
    assert report.compressed_model_parameters == model.num_parameters()
    assert report.params_ratio == pytest.approx(0.5) and f"1 of 2 blocks dropped: {list(blocks.modules)[number]}" in str(report)
    model.save_pretrained(tmp_path)
    loaded, about = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert torch.equal(said(loaded), expected) and not any(about["missing_keys"]) and not any(about["unexpected_keys"])
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text()), "an ordinary model of fewer blocks"


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_refused_before_work(family: str) -> None:
    model = small_model(family)
    before = said(model)
    with pytest.raises(ValueError, match=f"^{family} cannot lose blocks, .*: leave out blocks=True$"):
        HeatCompressor(model).compress(HeatConfig(**OPTIONS, target_params_ratio=0.5, blocks=True), batches())
    assert torch.equal(said(model), before)


def test_decoders_and_convolutions_are_refused() -> None:
    for family, fields in (("bert", {"is_decoder": True}), ("deberta-v2", {"conv_kernel_size": 3})):
        model = small_model(family)
        for name, value in fields.items():
            setattr(model.config, name, value)
        with pytest.raises(ValueError, match="cannot lose blocks"):
            droppable(model, encoder_linears(model))


@pytest.mark.parametrize("gone", [(0,), (1, 2), (3,), (0, 2)])
def test_the_rest_is_factorized_and_renumbered(gone: tuple[int, ...], tmp_path: Path) -> None:
    model = deep_model()
    report = dropped(model, gone, rank=5)
    layers = factorized_layers(model)
    assert len(layers) == 6 * (4 - len(gone)) and model.config.num_hidden_layers == 4 - len(gone)
    assert set(layers) == set(model.config.quantization_config.tensors)
    assert report.compressed_model_parameters == model.num_parameters()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(said(loaded), said(model))
    headless = transformers.AutoModel.from_pretrained(tmp_path)
    assert len(factorized_layers(headless)) == len(layers)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(said(other), said(model))
    plain = copy.deepcopy(loaded).dequantize()
    torch.testing.assert_close(said(plain), said(model), rtol=1e-4, atol=1e-5)
    plain.save_pretrained(tmp_path / "dense")
    torch.testing.assert_close(said(type(model).from_pretrained(tmp_path / "dense")), said(plain))
    model.bfloat16().save_pretrained(tmp_path / "short")
    short = type(model).from_pretrained(tmp_path / "short", dtype=torch.bfloat16)
    assert torch.equal(said(short), said(model))


def test_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    model = deep_model()
    dropped(model, [1], rank=5)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["query"], r=2, init_lora_weights=False))
    assert len(adapted.targeted_module_names) == 2 * 3
    after = said(adapted)
    assert not torch.equal(after, said(model))
    torch.testing.assert_close(said(adapted.merge_and_unload()), after, rtol=1e-4, atol=1e-5)


def test_each_block_that_is_left_learns_from_what_it_stands_for(tmp_path: Path) -> None:
    from students import ROWS, arguments, collate, train

    from heat_hf.distillation import DistillationTrainer

    teacher = deep_model()
    student = copy.deepcopy(teacher)
    dropped(student, [1], rank=5)
    student.save_pretrained(tmp_path / "student")
    loaded = type(student).from_pretrained(tmp_path / "student")
    for one in (student, loaded):
        trainer = DistillationTrainer(one, teacher, arguments(tmp_path / "run", recipe="layers"), ROWS, collate)
        assert list(trainer.taught) == [1, 2, 3], "four blocks are no multiple of three, and the first stands for the second"
    before = said(loaded)
    train(tmp_path / "run", loaded, teacher, recipe="two-stage", max_steps=4)
    assert not torch.equal(said(loaded), before) and torch.isfinite(said(loaded)).all()
    for gone, places in (((0,), [1, 2, 3]), ((3,), [0, 1, 3]), ((1, 2), [2, 3])):
        other = copy.deepcopy(teacher)
        dropped(other, gone, rank=5)
        assert other.config.quantization_config.blocks == places
    plain = copy.deepcopy(teacher)
    dropped(plain, [1])
    with pytest.raises(ValueError, match="must divide the teacher's"):
        DistillationTrainer(plain, teacher, arguments(tmp_path / "run", recipe="layers"), ROWS, collate)


@pytest.mark.parametrize("blocks", [[], [1, 1], [2, 1], [-1], ["1"], 3])
def test_odd_numbers_of_blocks_are_refused(blocks: Any) -> None:
    setting = {"format": "low_rank", "shape": [[4], [4]], "rank": [1]}
    with pytest.raises(ValueError, match="blocks of the quantization_config must"):
        FactorizedConfig(tensors={"a": setting}, blocks=blocks)  # type: ignore[dict-item]


def test_export(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch_export = pytest.importorskip("onnxscript")
    assert torch_export
    model, inputs = deep_model(), (token_ids(), torch.ones_like(token_ids()))
    dropped(model, [0, 2], rank=5)
    with torch.no_grad():
        torch.onnx.export(model, inputs, str(tmp_path / "model.onnx"), dynamo=True, input_names=["ids", "mask"])
        expected = model(*inputs).logits
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (found,) = session.run(None, {"ids": inputs[0].numpy(), "mask": inputs[1].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_names_move_up() -> None:
    gone = ["bert.encoder.layer.1", "bert.encoder.layer.3"]
    for before, after in ((0, 0), (2, 1), (10, 8)):
        name = "bert.encoder.layer.{}.output.dense"
        assert renumbered(name.format(before), gone) == name.format(after)
    assert renumbered("bert.pooler.dense", gone) == "bert.pooler.dense"


@pytest.mark.parametrize("gone", [(1,), (0,), (0, 1), (3,), (1, 3)])
def test_the_block_before_is_refined_towards_what_the_dropped_one_answers(gone: tuple[int, ...]) -> None:
    dense, data = deep_model(), batches()
    plain, refined = copy.deepcopy(dense), copy.deepcopy(dense)
    settings = settings_of(dense, gone, 8)
    reports = [factorize(m, HeatConfig(**{**OPTIONS, "target_params_ratio": 0.5, "refine_steps": n}), data, settings)
               for m, n in ((plain, 0), (refined, 60))]  # fmt: skip
    kept = [number for number in range(4) if number not in gone]
    found = reports[1].refinement
    assert found is not None and [int(block.name[-1]) for block in found.blocks] == kept
    assert reports[1].fidelity.measured < reports[0].fidelity.measured
    # The figures are those of hidden states: of the dense model behind the last block that a kept one stands for.
    with torch.no_grad():
        states = dense.bert(data[4]["input_ids"], output_hidden_states=True).hidden_states
        ours = refined.bert(data[4]["input_ids"], output_hidden_states=True).hidden_states
    for place, number in enumerate(kept):
        last = max(n for n in range(4) if all(m in gone for m in range(number + 1, n + 1)) and n >= number)
        apart = float((ours[place + 1] - states[last + 1]).norm() / states[last + 1].norm())
        assert found.blocks[place].after == pytest.approx(apart, rel=1e-3)


def test_blocks_that_stay_dense_between_dropped_ones() -> None:
    dense = deep_model()
    settings = settings_of(dense, [1], 8)
    settings |= {name: None for name in settings if ".2." in name}
    model = copy.deepcopy(dense)
    report = factorize(model, HeatConfig(**OPTIONS, target_params_ratio=0.5, refine_steps=40), batches(), settings)
    assert report.refinement is not None
    assert [(block.name[-1], block.after < block.before) for block in report.refinement.blocks] == [("0", True), ("3", True)]
    with torch.no_grad():
        states, ours = (m.bert(batches()[4]["input_ids"], output_hidden_states=True).hidden_states for m in (dense, model))
    apart = float((ours[-1] - states[-1]).norm() / states[-1].norm())
    assert report.refinement.blocks[-1].after == pytest.approx(apart, rel=1e-3)


def test_an_error_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep_model()
    before, blocks = said(model), list(model.bert.encoder.layer)

    def fail(*args: Any) -> None:
        assert model.config.num_hidden_layers == 3
        raise RuntimeError("no more")

    monkeypatch.setattr("heat_hf.compression.job.attach", fail)
    with pytest.raises(RuntimeError, match="no more"):
        dropped(model, [1], rank=5)
    assert torch.equal(said(model), before) and list(model.bert.encoder.layer) == blocks
    assert model.config.num_hidden_layers == 4 and not factorized_layers(model)


def test_what_cannot_be_is_refused() -> None:
    model = deep_model()
    settings = settings_of(model, [1])
    name = next(name for name in settings if ".1." in name)
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.1 cannot be dropped without all of its matrices"):
        factorize(model, HeatConfig(**OPTIONS, target_params_ratio=0.5), batches(), {**settings, name: None})
    with pytest.raises(ValueError, match="one has to stay"):
        factorize(model, HeatConfig(**OPTIONS, target_params_ratio=0.5), batches(), settings_of(model, range(4)))
    excluded = encoder_linears(model, exclude=[r"\.1\.output"])
    assert [block[-1] for block in droppable(model, excluded)] == ["0", "2", "3"]
    statistics = Statistics.collect(model, encoder_linears(model), batches(), gradients=True)
    config = HeatConfig(**OPTIONS, target_params_ratio=0.5, blocks=True)
    with pytest.raises(ValueError, match="blocks=True needs the rows of a calibration_dataset"):
        HeatCompressor(model).search_ranks(config, statistics=statistics)
    with pytest.raises(ValueError, match="blocks=True needs rank_search='sensitivity'"):
        HeatConfig(target_params_ratio=0.5, blocks=True)
    with pytest.raises(ValueError, match="decomposition must be one of"):
        HeatConfig(target_params_ratio=0.5, decomposition="dropped")


def test_no_saved_model_has_a_dropped_matrix(tmp_path: Path) -> None:
    model = deep_model()
    dropped(model, [1], rank=5)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    tensors = config["quantization_config"]["tensors"]
    name = next(iter(tensors))
    tensors[name] = {**tensors[name], "format": "dropped", "rank": []}
    path.write_text(json.dumps(config))
    with pytest.raises((OSError, ValueError), match="dropped"):
        type(model).from_pretrained(tmp_path)
