"""Attentions that lose whole heads, from search to disk: every family, what is exact, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, small_model, token_ids
from grouped import OPTIONS, batches, said
from heads import fewer_heads, half_silent, masked, settings_of

from heat_hf import HeatCompressor, HeatConfig, Statistics
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.linears import encoder_linears, factorized_layers
from heat_hf.encoders.together import head_groups
from heat_hf.formats import PAIRED
from heat_hf.formats.projection import weighted_square
from heat_hf.search.ranks.curves import sensitivity_curves

OTHERS = ("mpnet", "deberta-v2", "modernbert")  # whose attention does not read the number of heads from what it is given
HEADED = tuple(family for family in FAMILIES if family not in OTHERS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_families(family: str, attention: str, tmp_path: Path) -> None:
    dense = small_model(family)
    groups = head_groups(dense, encoder_linears(dense))
    assert len(groups) == (0 if family in OTHERS else 1 if family == "albert" else 2) and set(groups.values()) <= {6}
    if family in OTHERS:
        return
    model, report = fewer_heads(family, 1 if attention == "eager" else 3)
    kept = 6 if attention == "eager" else 18
    assert {tuple(layer.kept.weight.shape) for layer in factorized_layers(model).values()} == {(kept, 24), (24, kept)}
    assert report.compressed_model_parameters == model.num_parameters()
    assert sum(tensor.bias_lost for tensor in report.tensors) == 3 * (24 - kept) * len(groups)
    model.set_attn_implementation(attention)
    torch.testing.assert_close(said(model), said(masked(dense, kept // 6)), rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation=attention)
    assert torch.equal(said(loaded), said(model))
    plain = copy.deepcopy(loaded).dequantize()
    assert not factorized_layers(plain)
    torch.testing.assert_close(said(plain), said(model), rtol=0, atol=1e-5)
    plain.save_pretrained(tmp_path / "dense")
    torch.testing.assert_close(said(type(model).from_pretrained(tmp_path / "dense")), said(plain))


def test_padding_and_attention_maps() -> None:
    model, _ = fewer_heads(heads=2)
    expected = masked(small_model("bert"), 2)
    mask = torch.ones_like(token_ids())
    mask[0, 4:] = 0
    for one in (model, expected):
        one.set_attn_implementation("eager")
    with torch.no_grad():
        ours, theirs = (one(token_ids(), mask, output_attentions=True) for one in (model, expected))
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-5)
    assert [maps.shape[1] for maps in ours.attentions] == [2, 2]
    for own, whole in zip(ours.attentions, theirs.attentions, strict=True):
        for head in own.unbind(1):  # each is one of the dense model's
            assert min(float((head - other).abs().max()) for other in whole.unbind(1)) < 0.05


def test_losses_are_measured_errors_and_the_gradient_weighs_them() -> None:
    """What the search predicts for heads is half the weighted error of the output matrix that the projection makes."""
    from heat_hf.compression.job import Job

    dense = small_model("bert")
    statistics = Statistics.collect(dense, encoder_linears(dense), batches(), gradients=True)
    config = HeatConfig(**OPTIONS, target_params_ratio=0.5, widths=True, refine_steps=0)
    problem = Job(dense, config, batches(), statistics).problem
    shapes = {("low_rank", size): config.method.shape(problem, "low_rank", size) for size in problem.sizes}
    curves = sensitivity_curves(problem, shapes)
    for names in head_groups(dense, problem.linears):
        losses = {settings[-1].rank[0]: loss for settings, loss in curves.joint[names].items() if settings[-1] is not None}
        assert sorted(losses) == [6, 12, 18] and losses[6] > losses[12] > losses[18] > 0
        for width, predicted in losses.items():
            plain = fewer_heads(heads=width // 6)[0]
            layer = plain.get_submodule(names[-1])
            query = plain.get_submodule(names[0])
            rows = dense.get_submodule(names[0]).weight
            kept = [int((rows == row).all(1).nonzero()) for row in query.kept.weight]
            assert [place // 6 for place in kept] == sorted([place // 6 for place in kept])
            restored = torch.zeros(24, 24, dtype=torch.float64)
            restored[:, kept] = layer.kept.weight.detach().double()
            lost = dense.get_submodule(names[-1]).weight.detach().double() - restored
            moments = statistics.second_moments[names[-1]].double(), statistics.output_moments[names[-1]].double()
            assert predicted == pytest.approx(float(weighted_square(lost, *moments)) / 2, rel=0.1)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("accelerator", [None, "simba-l"])
def test_no_choice_is_worse_with_heads(accelerator: str | None, groups: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    target = {"target_params_ratio": [0.3, 0.5, 0.7]} if accelerator is None else {"target_edp_ratio": [0.4, 0.6, 0.8]}
    options = {**OPTIONS, "accelerator": accelerator, **target, "widths": True, "groups": groups}
    found = []
    for there in (True, False):
        if not there:
            monkeypatch.setattr("heat_hf.encoders.together.head_groups", lambda *args: {})
        model = half_silent()
        found.append(HeatCompressor(model).search_ranks(HeatConfig(**options), batches()).variants)
    for ours, theirs in zip(*found, strict=True):
        assert ours.loss <= theirs.loss * (1 + 1e-9)
    used = {s.format for v in found[0] for n, s in v.settings.items() if s is not None and "attention.output" in n}
    assert "fewer_inputs" in used and found[0][1].loss < 0.9 * found[1][1].loss


def test_compress_and_refine() -> None:
    options = {"accelerator": None, "rank_search": "sensitivity", "sequence_length": 16, "widths": True}
    model = half_silent()
    report = HeatCompressor(model).compress(HeatConfig(**options, target_params_ratio=0.5, refine_steps=20), batches())
    layers = {n: layer for n, layer in factorized_layers(model).items() if "attention" in n and layer.setting.format in PAIRED}
    assert layers and all(layer.setting.rank[0] % 6 == 0 for layer in layers.values())
    assert report.refinement is not None and all(block.after <= block.before for block in report.refinement.blocks)
    assert report.compressed_model_parameters == model.num_parameters() and "fewer_inputs" in str(report)
    (_, before), (other, after) = (fewer_heads(refine_steps=steps) for steps in (0, 30))
    assert after.refinement is not None and any(block.after < block.before for block in after.refinement.blocks)
    for tensor in before.tensors:
        if tensor.setting is not None:
            outputs = tensor.setting.format == "fewer_outputs"
            assert (tensor.relative_error == tensor.output_error == 0) if outputs else 0 < tensor.output_error < 1
    again, _ = fewer_heads(refine_steps=30)
    assert all(torch.equal(one, two) for one, two in zip(again.parameters(), other.parameters(), strict=True))


def test_what_is_incomplete_is_refused_before_work() -> None:
    dense = small_model("bert")
    settings = settings_of(dense)
    query, key, value, output = next(iter(head_groups(dense, settings)))
    config = HeatConfig(**OPTIONS, target_params_ratio=0.5)
    other = settings_of(dense, 3)
    quarter = {name: s and type(s)(s.format, s.shape, (9,)) for name, s in settings.items()}
    for wrong in (
        {key: None}, {output: None}, {query: None, key: None, value: None}, {value: other[value]}, {output: other[output]},
        {name: quarter[name] for name in (query, key, value, output)},
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"layer\.0\.attention\S+ cannot get fewer_\w+ of width \d+: query, .* together, a multiple of 6$"
        ):
            factorize(dense, config, batches(), {**settings, **wrong})
    with pytest.raises(ValueError, match="fewer_outputs needs a calibration_dataset: it tells which neurons or heads"):
        factorize(dense, HeatConfig(target_params_ratio=0.5, accelerator=None), None, settings)
    mpnet = small_model("mpnet")
    name = next(name for name in encoder_linears(mpnet) if name.endswith("attn.q"))
    with pytest.raises(ValueError, match=f"{name} cannot get fewer_outputs of width 12"):
        factorize(mpnet, config, batches(), {**dict.fromkeys(encoder_linears(mpnet)), name: settings[query]})
    assert not factorized_layers(dense)


DAMAGES: dict[str, dict[str, Any]] = {  # what a folder says in place of what was saved: a width, or None for a dense matrix
    "a query of one head, which every other head would be compared with": {"self.query": 6},
    "a query of its own": {"self.query": 18},
    "a dense output": {"output.dense": None},
    "an output of its own": {"output.dense": 6},
    "dense in front": {"self.query": None, "self.key": None, "self.value": None},
    "the query alone": {"self.key": None, "self.value": None, "output.dense": None},
    "half a head": {"self.query": 9, "self.key": 9, "self.value": 9, "output.dense": 9},
}


@pytest.mark.parametrize("around", ["head", "encoder and decoder"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_says_otherwise_is_refused(damage: str, around: str, tmp_path: Path) -> None:
    """Before weights are read: with the query of one head, extents fit, and something else would be computed."""
    model, prefix = around_heads(around)
    model.save_pretrained(tmp_path)
    assert torch.equal(answered(type(model).from_pretrained(tmp_path)), answered(model))
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = config["quantization_config"]["tensors"]
    for name, width in DAMAGES[damage].items():
        if width is None:
            del tensors[prefix + name]
        else:
            tensors[prefix + name]["rank"] = [width]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"layer\.0\.attention\S+ cannot get fewer_\w+ of width \d+: query, key, value and out"
    ):
        type(model).from_pretrained(tmp_path)


def around_heads(kind: str) -> tuple[Any, str]:
    """A model in which attentions have fewer heads, and what the names in its first block start with."""
    if kind == "head":
        return fewer_heads()[0], "bert.encoder.layer.0.attention."
    decoder = small_model("bert").config
    decoder.is_decoder = decoder.add_cross_attention = True
    encoder = fewer_heads(head=False)[0]
    both = transformers.EncoderDecoderModel(encoder=encoder, decoder=transformers.BertLMHeadModel(decoder)).eval()
    return both, "encoder.encoder.layer.0.attention."


def answered(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": token_ids()} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=token_ids(), **more)[0]


def test_costs_and_reports_are_those_of_smaller_products(tmp_path: Path) -> None:
    from heat_hf.cli import main
    from heat_hf.encoders.cost import model_cost
    from heat_hf.hardware import Gemm, cost_model

    model, report = fewer_heads(accelerator="simba-l")
    costs = cost_model("simba-l")
    smaller = 3 * costs.gemm(Gemm(16, 12, 24)).seconds + costs.gemm(Gemm(16, 24, 12)).seconds
    found = [t.hardware.now.seconds for t in report.tensors if ".layer.0.attention" in t.name and t.hardware is not None]
    assert sum(found) == pytest.approx(smaller)
    model.save_pretrained(tmp_path)
    held, saved = (model_cost(one, costs, 16) for one in (model, tmp_path))
    assert held.total.seconds == saved.total.seconds == pytest.approx(report.hardware.now.seconds)
    assert main(["cost", str(tmp_path), "--sequence-length", "16"]) == 0
    assert main(["report", str(tmp_path)]) == 0


def test_heads_stay_where_the_output_is_left_out() -> None:
    model = small_model("bert")
    config = HeatConfig(**OPTIONS, target_params_ratio=0.3, widths=True, exclude=[r"attention\.output"], refine_steps=0)
    HeatCompressor(model).compress(config, batches())
    assert not any("attention" in n and layer.setting.format in PAIRED for n, layer in factorized_layers(model).items())


def test_adapters_find_the_smaller_linears() -> None:
    from peft import LoraConfig, get_peft_model

    model: Any
    model, _ = fewer_heads()
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False))
    assert {f"{name}.kept" for name in factorized_layers(model)} < set(adapted.targeted_module_names)
    after = said(adapted)
    torch.testing.assert_close(said(adapted.merge_and_unload()), after, rtol=1e-4, atol=1e-5)
