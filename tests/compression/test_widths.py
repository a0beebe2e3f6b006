"""Narrower networks from search to disk: every family, every neighbour's habit, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, small_model, token_ids

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.encoders.linears import encoder_linears, factorized_layers
from heat_hf.encoders.together import inner_pairs
from heat_hf.formats import PAIRED
from heat_hf.formats.narrowed import Neurons

OPTIONS = {"accelerator": None, "rank_search": "sensitivity", "sequence_length": 16, "widths": True, "refine_steps": 3}
OTHERS = ("modernbert",)  # its feed-forward network multiplies neurons with each other


def batches(rows: int = 48) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(5, 60, (rows, 12), generator=torch.Generator().manual_seed(2))
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(8)]


def compressed(family: str = "bert", model: Any = None, **options: Any) -> tuple[Any, Any]:
    model = model or small_model(family)
    config = HeatConfig(**{"target_params_ratio": 0.3, **OPTIONS, **options})
    return model, HeatCompressor(model).compress(config, batches())


def narrow_layers(model: Any) -> dict[str, Any]:
    return {name: layer for name, layer in factorized_layers(model).items() if layer.setting.format in PAIRED}


def said(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids())[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    model, report = compressed(family)
    pairs = inner_pairs(model, {tensor.name for tensor in report.tensors})
    assert bool(pairs) == (family not in OTHERS)
    found = narrow_layers(model)
    assert bool(found) == bool(pairs), "at three tenths of the parameters, widths win in small random models"
    for first, second in pairs:
        assert (first in found) == (second in found)
        if first in found:
            assert found[first].setting.rank == found[second].setting.rank
            assert found[first].kept.out_features == found[second].kept.in_features == found[first].setting.rank[0]
    assert report.compressed_model_parameters == model.num_parameters()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(said(loaded), said(model))
    dense = copy.deepcopy(loaded).dequantize()
    torch.testing.assert_close(said(dense), said(model), rtol=1e-4, atol=1e-5)
    dense.save_pretrained(tmp_path / "dense")
    torch.testing.assert_close(said(type(model).from_pretrained(tmp_path / "dense")), said(dense))


def test_the_network_answers_more_like_the_dense_one_than_with_ranks_alone() -> None:
    dense = small_model("bert")
    expected = said(dense)
    budgets = {"target_params_ratio": 0.35, "refine_steps": 0}
    narrow, _ = compressed(model=copy.deepcopy(dense), **budgets)
    ranks, _ = compressed(model=copy.deepcopy(dense), widths=False, **budgets)
    assert narrow_layers(narrow) and not narrow_layers(ranks)
    record = HeatCompressor(copy.deepcopy(dense)).search_ranks(
        HeatConfig(**{**OPTIONS, "target_params_ratio": [0.2, 0.35, 0.6]}), batches()
    )
    alone = HeatCompressor(copy.deepcopy(dense)).search_ranks(
        HeatConfig(**{**OPTIONS, "widths": False, "target_params_ratio": [0.2, 0.35, 0.6]}), batches()
    )
    for ours, theirs in zip(record.variants, alone.variants, strict=True):
        assert ours.loss <= theirs.loss * (1 + 1e-9)
        assert ours.params_ratio <= ours.budget * (1 + 1e-9)
    assert torch.isfinite(said(narrow)).all() and said(narrow).shape == expected.shape


def test_a_search_record_says_widths(tmp_path: Path) -> None:
    model = small_model("bert")
    compressor = HeatCompressor(model)
    file, config = tmp_path / "record.json", HeatConfig(target_params_ratio=[0.3], **OPTIONS)
    record, again = (compressor.search_ranks(config, batches(), output=file) for _ in range(2))
    assert again.variants == record.variants
    with pytest.raises(ValueError, match="widths"):
        compressor.search_ranks(
            HeatConfig(**{**OPTIONS, "target_params_ratio": [0.3], "widths": False}), batches(), output=file
        )
    variant = record.variants[0]
    with pytest.raises(ValueError, match="needs a calibration_dataset: it tells which neurons or heads are missed"):
        HeatCompressor(copy.deepcopy(model)).compress(HeatConfig(target_params_ratio=0.3), variant=variant)
    report = compressor.compress(HeatConfig(target_params_ratio=0.3), batches(), variant=variant)
    assert {t.name: t.setting for t in report.tensors} == dict(variant.settings)


def test_one_of_a_pair_is_refused_before_work() -> None:
    from heat_hf.compression.factorize import factorize

    model, _ = compressed()
    found = narrow_layers(model)
    first = next(name for name, layer in found.items() if layer.setting.format == "fewer_outputs")
    dense = small_model("bert")
    settings: dict[str, Any] = dict.fromkeys(encoder_linears(dense))
    with pytest.raises(ValueError, match=rf"{first} cannot get fewer_outputs of width \d+: the other matrix"):
        factorize(dense, HeatConfig(target_params_ratio=0.3), batches(), {**settings, first: found[first].setting})
    assert not factorized_layers(dense)
    for fields in ({"rank_search": "uniform"}, {"rank_search": "supernet"}):
        with pytest.raises(ValueError, match="widths=True needs rank_search='sensitivity'"):
            HeatConfig(target_params_ratio=0.3, widths=True, **fields)
    with pytest.raises(ValueError, match="decomposition must be one of"):
        HeatConfig(decomposition="fewer_inputs", target_params_ratio=0.3)


def test_adapters_and_quantizers_find_the_smaller_linears() -> None:
    from peft import LoraConfig, get_peft_model

    model, _ = compressed()
    before = said(model)
    names = [f"{name}.kept" for name in narrow_layers(model)]
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False))
    assert set(names) < set(adapted.targeted_module_names)
    after = said(adapted)
    torch.testing.assert_close(said(adapted.merge_and_unload()), after, rtol=1e-4, atol=1e-5)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    assert all(not isinstance(quantized.get_submodule(name), torch.nn.Linear) for name in names)
    assert 0 < (said(quantized) - before).norm() < 0.1 * before.norm()


def test_the_same_bytes_again_and_half_precision(tmp_path: Path) -> None:
    one, other = (compressed()[0].state_dict() for _ in range(2))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    model, _ = compressed()
    model.bfloat16().save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(said(loaded), said(model))


def test_neurons_and_heads_are_ranked_once_for_all_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    ranked = Neurons.ranked.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(Neurons, "ranked", classmethod(lambda cls, *args, **kw: calls.append(1) or ranked(cls, *args, **kw)))
    config, compressor = HeatConfig(target_params_ratio=[0.3, 0.5], **OPTIONS), HeatCompressor(small_model("bert"))
    compressor.search_ranks(config, statistics=compressor.statistics_of(config, batches()))
    assert len(calls) == 4
