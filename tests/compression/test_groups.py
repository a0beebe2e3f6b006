"""Query, key and value on one basis, from search to disk: every family, what it costs, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, small_model
from grouped import OPTIONS, batches, grouped, hooks, said, settings_of

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.linears import encoder_linears, factorized_layers
from heat_hf.encoders.together import attention_groups
from heat_hf.formats import SHARED

OTHERS = ("albert", "deberta-v2", "modernbert")  # whose attention does more with its input
GROUPED = tuple(family for family in FAMILIES if family not in OTHERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    model = small_model(family)
    if family in OTHERS:
        assert not attention_groups(model, encoder_linears(model))
        report = HeatCompressor(model).compress(
            HeatConfig(**OPTIONS, target_params_ratio=0.3, groups=True, refine_steps=0), batches()
        )
        assert not any(layer.setting.format in SHARED for layer in factorized_layers(model).values())
        assert report.params_ratio <= 0.3
        return
    dense = copy.deepcopy(model)
    model, report = grouped(family)
    layers = factorized_layers(model)
    assert len(layers) == 6 and hooks(model) == 2
    assert report.compressed_model_parameters == model.num_parameters()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert hooks(loaded) == 2 and torch.equal(said(loaded), said(model))
    plain = copy.deepcopy(loaded).dequantize()
    assert not hooks(plain) and not factorized_layers(plain)
    # The block with a basis is the dense block whose weights are L·R.
    torch.testing.assert_close(said(plain), said(model), rtol=1e-5, atol=1e-6)
    for name, parameter in dense.state_dict().items():
        if not name.rpartition(".")[0].endswith(("query", "key", "value", "q_lin", "k_lin", "v_lin", ".q", ".k", ".v")):
            assert torch.equal(plain.state_dict()[name], parameter)
    plain.save_pretrained(tmp_path / "dense")
    assert torch.equal(said(type(model).from_pretrained(tmp_path / "dense")), said(plain))


@pytest.mark.parametrize("family", GROUPED)
def test_an_attention_module_by_itself(family: str) -> None:
    """However it is handed its input; its query alone takes both inputs and their products with the basis."""
    model, _ = grouped(family, head=False)
    names = attention_groups(model.dequantize(), encoder_linears(model))[0]
    owner = names[0].rpartition(".")[0]
    model, _ = grouped(family, head=False)
    attention, dense = model.get_submodule(owner), copy.deepcopy(model).dequantize().get_submodule(owner)
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        for answer in (attention(x), attention(hidden_states=x)):
            torch.testing.assert_close(answer[0], dense(x)[0], rtol=1e-5, atol=1e-6)
        query, key, value = (model.get_submodule(name) for name in names)
        torch.testing.assert_close(query(x), dense.get_submodule(names[0].rpartition(".")[2])(x), rtol=1e-5, atol=1e-6)
        for layer in (key, value):
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                layer(x)


@pytest.mark.parametrize("accelerator", [None, "simba-l"])
def test_no_choice_is_worse_with_groups(accelerator: str | None) -> None:
    target = {"target_params_ratio": [0.25, 0.4, 0.6]} if accelerator is None else {"target_edp_ratio": [0.45, 0.6, 0.8]}
    found = {}
    for widths in (False, True):
        for groups in (False, True):
            model = small_model("bert")
            with torch.no_grad():  # query, key and value that nearly span one space
                for block in model.bert.encoder.layer:
                    basis = torch.randn(8, 24)
                    for linear in (block.attention.self.query, block.attention.self.key, block.attention.self.value):
                        linear.weight.copy_(torch.randn(24, 8) @ basis / 8)
            options = {**OPTIONS, "accelerator": accelerator, **target, "widths": widths, "groups": groups}
            found[widths, groups] = HeatCompressor(model).search_ranks(HeatConfig(**options), batches()).variants
    for widths in (False, True):
        for ours, theirs in zip(found[widths, True], found[widths, False], strict=True):
            assert ours.loss <= theirs.loss * (1 + 1e-9)
    used = {s.format for v in found[True, True] for s in v.settings.values() if s is not None}
    if accelerator is None:
        assert used >= set(SHARED), "what spans one space gets one basis"
        assert found[False, True][0].loss < found[False, False][0].loss


def test_compress_refines_a_basis_and_reports_it() -> None:
    torch.manual_seed(0)
    model, before = grouped(refine_steps=0)
    other, after = grouped(refine_steps=30)
    assert after.refinement is not None and all(block.after <= block.before for block in after.refinement.blocks)
    assert any(block.after < block.before for block in after.refinement.blocks) and hooks(other) == 2
    name = "bert.encoder.layer.0.attention.self.query"
    assert not torch.equal(other.get_submodule(name).right.weight, model.get_submodule(name).right.weight)
    dense, plain = small_model("bert"), copy.deepcopy(model).dequantize()
    for tensor in before.tensors:
        if tensor.setting is not None:
            weight, restored = (one.get_submodule(tensor.name).weight.detach() for one in (dense, plain))
            assert tensor.relative_error == pytest.approx(float((weight - restored).norm() / weight.norm()), rel=1e-4)
            assert tensor.output_error is not None and 0 < tensor.output_error < 1
    assert "shared_basis" in str(after) and "on_basis" in str(after)
    again, _ = grouped(refine_steps=30)
    assert all(torch.equal(one, two) for one, two in zip(again.parameters(), other.parameters(), strict=True))


def test_costs_are_those_of_four_products(tmp_path: Path) -> None:
    from heat_hf.cli import main
    from heat_hf.encoders.cost import model_cost
    from heat_hf.hardware import Gemm, cost_model

    model, report = grouped(accelerator="simba-l")
    costs = cost_model("simba-l")
    group = [t for t in report.tensors if ".layer.0.attention.self" in t.name]
    assert sum(t.parameters for t in group) == 6 * (24 + 3 * 24) and sum(t.macs for t in group) == 6 * (24 + 3 * 24)
    others = [t.hardware.now.seconds for t in group[1:] if t.hardware is not None]
    assert others == [pytest.approx(costs.gemm(Gemm(16, 24, 6)).seconds)] * 2
    assert group[0].hardware is not None and group[0].hardware.now.seconds < costs.gemm(Gemm(16, 6, 24)).seconds + 2 * others[0]
    model.save_pretrained(tmp_path)
    held, saved = (model_cost(one, costs, 16) for one in (model, tmp_path))
    assert held.total.seconds == saved.total.seconds and held.total.seconds == pytest.approx(report.hardware.now.seconds)
    assert main(["cost", str(tmp_path), "--sequence-length", "16"]) == 0
    assert main(["report", str(tmp_path)]) == 0


def test_what_is_incomplete_is_refused_before_work(tmp_path: Path) -> None:
    dense = small_model("bert")
    settings = settings_of(dense)
    query, key, value = attention_groups(dense, settings)[0]
    config = HeatConfig(**OPTIONS, target_params_ratio=0.5)
    other = settings_of(dense, 5)
    for wrong in (
        {key: None}, {query: None}, {query: None, key: None}, {value: other[value]}, {query: settings[key]},
        {key: settings[query]},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"query, key and value of an attention block must get a basis together"):
            factorize(dense, config, batches(), {**settings, **wrong})
    with pytest.raises(ValueError, match="shared_basis needs a calibration_dataset: it tells which directions"):
        factorize(dense, HeatConfig(target_params_ratio=0.5, accelerator=None), None, settings)
    albert = small_model("albert")
    name = next(name for name in encoder_linears(albert) if name.endswith("query"))
    with pytest.raises(ValueError, match=f"{name} cannot get shared_basis of rank 6"):
        factorize(albert, config, batches(), {**dict.fromkeys(encoder_linears(albert)), name: settings[query]})
    assert not factorized_layers(dense) and not hooks(dense)
    for method in ("uniform", "supernet"):
        with pytest.raises(ValueError, match="groups=True needs rank_search='sensitivity'"):
            HeatConfig(target_params_ratio=0.3, groups=True, rank_search=method)
    for format in SHARED:
        with pytest.raises(ValueError, match="decomposition must be one of"):
            HeatConfig(decomposition=format, target_params_ratio=0.3)
    model, _ = grouped()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    sound = json.loads(file.read_text())
    for change in ({"rank": [5]}, None):
        damaged = copy.deepcopy(sound)
        tensors = damaged["quantization_config"]["tensors"]
        if change is None:
            del tensors[value]
        else:
            tensors[value] |= change
        file.write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=r"attention\.self\.\w+ cannot get \w+_basis of rank \d: query, key and value"):
            transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_an_error_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:

    model = small_model("bert")
    expected = said(model)

    def fail(*args: Any) -> None:
        assert hooks(model) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr("heat_hf.compression.job.attach", fail)
    with pytest.raises(KeyboardInterrupt):
        factorize(model, HeatConfig(**OPTIONS, target_params_ratio=0.5, refine_steps=2), batches(), settings_of(model))
    assert not hooks(model) and torch.equal(said(model), expected)


def test_a_search_record_says_groups(tmp_path: Path) -> None:
    model = small_model("bert")
    compressor, file = HeatCompressor(model), tmp_path / "record.json"
    compressor.search_ranks(HeatConfig(**OPTIONS, target_params_ratio=[0.3], groups=True), batches(), output=file)
    with pytest.raises(ValueError, match="groups"):
        compressor.search_ranks(HeatConfig(**OPTIONS, target_params_ratio=[0.3]), batches(), output=file)


@pytest.mark.parametrize(
    "verb", [["compress", "--rank-search", "sensitivity", "--target-edp-ratio", "0.3"], ["search", "ranks"]]
)
def test_the_option(verb: list[str]) -> None:
    from heat_hf.cli import build_parser
    from heat_hf.cli.values import heat_config

    line = [*verb, "some/model", "--output", "there"] + ([] if "--target-edp-ratio" in verb else ["--target-edp-ratio", "0.3"])
    for flags in ([], ["--groups"], ["--groups", "--widths"]):
        config = heat_config(build_parser().parse_args([*line, *flags]))
        assert (config.groups, config.widths) == ("--groups" in flags, "--widths" in flags)
