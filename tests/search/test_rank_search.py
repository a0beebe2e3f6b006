"""Level 2 as a whole: budgets, variants, baselines, records, resuming, and what the command line says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import small_model, token_ids

from heat_hf import FORMATS, HeatCompressor, HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.compression.job import Job
from heat_hf.encoders.cost import model_cost
from heat_hf.encoders.linears import encoder_linears, factorized_layers
from heat_hf.encoders.statistics import Statistics
from heat_hf.evaluation.quality import Quality
from heat_hf.reports.ranks import RankRecord
from heat_hf.search.ranks.budgets import fit_share
from heat_hf.search.ranks.problem import Training
from heat_hf.search.ranks.space import Costs

BATCHES = [{"input_ids": token_ids(24, 6)}]
LABELLED = [{"input_ids": token_ids(60, 6), "labels": torch.arange(60) % 2}]


def config(method: str = "sensitivity", **options: object) -> HeatConfig:
    options = options or {"target_edp_ratio": [0.8, 0.6]}
    return HeatConfig(rank_search=method, sequence_length=16, max_sweeps=5, **options)


def search_ranks(
    model: torch.nn.Module, options: HeatConfig, batches: list | None = None, output: Path | None = None,
    overwrite: bool = False, **training: object,
) -> RankRecord:  # fmt: skip
    return Job(model, options, batches, training=Training(**training) if training else None).search(output, overwrite)


def network_costs(model: torch.nn.Module, options: HeatConfig) -> Costs:
    return Job(model, options).costs


@pytest.mark.parametrize("method", ["sensitivity", "uniform", "tensorly", "manual", "random"])
@pytest.mark.parametrize("target", [{"target_edp_ratio": [0.8, 0.6]}, {"target_params_ratio": [0.7, 0.5]}])
def test_variants_keep_their_budgets(method: str, target: dict) -> None:
    model = small_model("bert")
    record = search_ranks(model, config(method, **target), BATCHES)
    assert [v.name for v in record.variants] == ["HEAT-a1", "HEAT-a2"]
    costs = network_costs(model, config(method, **target))
    for variant, budget in zip(record.variants, sorted(next(iter(target.values()))), strict=True):
        assert (variant.edp_ratio if "target_edp_ratio" in target else variant.params_ratio) <= budget
        assert costs.total(variant.settings).of("edp") / costs.dense.of("edp") == pytest.approx(variant.edp_ratio)
        assert set(variant.settings) == set(encoder_linears(model))
    assert record.variants[0].edp_ratio < record.variants[1].edp_ratio
    assert not factorized_layers(model)


@pytest.mark.parametrize("decomposition", FORMATS)
def test_every_format_by_sensitivity(decomposition: str) -> None:
    record = search_ranks(small_model("bert"), config(decomposition=decomposition, target_params_ratio=0.6), BATCHES)
    found = {s.format for s in record.variants[0].settings.values() if s is not None}
    assert found and found <= ({"low_rank", "pivoted"} if decomposition == "low_rank" else {decomposition})


def test_a_low_rank_is_stored_in_the_cheaper_way() -> None:
    """Pivots take fewer parameters and less EDP at every rank, but a model may find them dear."""
    for asked in ({"target_params_ratio": 0.6}, {"target_edp_ratio": 0.6}):
        record = search_ranks(small_model("bert"), config(**asked), BATCHES)
        assert {s.format for s in record.variants[0].settings.values() if s is not None} == {"pivoted"}
    rebuilt = search_ranks(small_model("bert"), config(target_params_ratio=0.6, execution="reconstruct"), BATCHES)
    assert {s.format for s in rebuilt.variants[0].settings.values() if s is not None} == {"low_rank"}


def test_latency_budget() -> None:
    model = small_model("bert")
    dense = network_costs(model, config()).dense.seconds
    record = search_ranks(model, config(target_latency=0.8 * dense), BATCHES)
    assert record.variants[0].seconds <= 0.8 * dense
    assert (
        "latency ≤ " in str(record)
        and record.variants[0].configure(config(target_params_ratio=0.5)).target_latency == 0.8 * dense
    )


def test_a_share_of_the_dense_time() -> None:
    """The same networks as for that time in seconds, and the record says what was asked for."""
    model = small_model("bert")
    dense = network_costs(model, config()).dense.seconds
    shares = search_ranks(model, config(target_latency_ratio=[0.7, 0.8]), BATCHES)
    seconds = search_ranks(model, config(target_latency=[0.7 * dense, 0.8 * dense]), BATCHES)
    assert [v.settings for v in shares.variants] == [v.settings for v in seconds.variants]
    assert [v.budget for v in shares.variants] == [0.7, 0.8] and "latency ≤ 0.7 " in str(shares)
    again = shares.variants[0].configure(config(target_params_ratio=0.5))
    assert (again.target_latency_ratio, again.target_latency) == (0.7, None)


def test_the_report_has_the_edp_that_was_promised(tmp_path: Path) -> None:
    """Dense tensors are counted as dense, before and after reloading."""
    import heat_hf.integrations.transformers  # noqa: F401
    from heat_hf.hardware import cost_model

    compressor = HeatCompressor(small_model("bert"))
    record = compressor.search_ranks(config(), BATCHES)
    (variant,) = (v for v in record.variants if v.budget == 0.8)
    report = compressor.compress(config(), BATCHES, tmp_path / "out", variant=variant)
    assert report.hardware.now.edp / report.hardware.dense.edp == pytest.approx(variant.edp_ratio)
    assert report.params_ratio == pytest.approx(variant.params_ratio)
    dense = [t.name for t in report.tensors if t.setting is None]
    assert set(factorized_layers(compressor.model)) == set(encoder_linears(small_model("bert"))) - set(dense)
    assert ("dense" in str(report)) == bool(dense)
    saved = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert set(saved) == {"quant_method", "tensors", "tokens", "accelerator", "heat_version", "weights_file", "checksum"}
    asked = json.loads((tmp_path / "out" / "heat_report.json").read_text())["request"]
    assert (asked["rank_search"], asked["target_edp_ratio"]) == ("sensitivity", 0.8)
    cost = model_cost(str(tmp_path / "out"), cost_model("simba-l"), 16)
    assert cost.total.edp / cost.dense.edp == pytest.approx(variant.edp_ratio)


def test_one_call_searches_and_compresses() -> None:
    for method in ("sensitivity", "uniform", "random"):
        report = factorize(small_model("bert"), config(method, target_edp_ratio=0.7), BATCHES)
        assert report.hardware.now.edp <= 0.7 * report.hardware.dense.edp


def test_sensitivity_beats_uniform_in_what_it_minimizes() -> None:
    """Same budget, same projection: the model's outputs are nearer to the dense model's."""
    divergences = {}
    for method in ("sensitivity", "uniform"):
        model = small_model("bert")
        model.classifier.weight.data.mul_(20)
        quality = Quality(model, BATCHES)
        factorize(model, config(method, target_edp_ratio=0.4, refine_steps=0), BATCHES)
        divergences[method] = quality.both(model)[1]
    assert divergences["sensitivity"] < divergences["uniform"]


def test_a_record_belongs_to_its_data(tmp_path: Path) -> None:
    output, model = tmp_path / "ranks.json", small_model("bert")
    first = search_ranks(model, config(), BATCHES, output=output)
    assert search_ranks(model, config(), BATCHES, output=output).variants == first.variants
    with pytest.raises(ValueError, match="holds another search: its calibration"):
        search_ranks(model, config(), [{"input_ids": token_ids(25, 6)}], output=output)
    with pytest.raises(ValueError, match="holds another search: its weights"):
        search_ranks(small_model("bert", seed=1), config(), BATCHES, output=output)
    other = search_ranks(small_model("bert", seed=1), config(), BATCHES, output=output, overwrite=True)
    assert RankRecord.load(output).variants == other.variants


def test_a_finished_record_is_read_without_calibrating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, model = tmp_path / "ranks.json", small_model("bert")
    first = search_ranks(model, config(), BATCHES, output=output)

    def refuse(*args: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(Statistics, "collect", refuse)
    assert search_ranks(model, config(), BATCHES, output=output).variants == first.variants
    with pytest.raises(ValueError, match="holds another search: its calibration"):
        search_ranks(model, config(), [{"input_ids": token_ids(25, 6)}], output=output)


def test_quality_by_labels_and_by_agreement() -> None:
    dense, other = small_model("bert"), small_model("bert", seed=1)
    logits = dense(LABELLED[0]["input_ids"]).logits.argmax(-1)
    labelled, agreement = Quality(dense, LABELLED), Quality(dense, BATCHES)
    assert labelled(dense) == pytest.approx(float((logits == LABELLED[0]["labels"]).float().mean()))
    assert agreement.both(dense) == (1.0, pytest.approx(0, abs=1e-6))
    assert 0 <= agreement(other) <= 1
    headless = small_model("bert", head=False)
    vectors = Quality(headless, BATCHES)
    assert vectors(headless) == pytest.approx(1)
    assert 0 <= vectors(small_model("bert", head=False, seed=1)) < 1
    with pytest.raises(ValueError, match="no evaluation rows"):
        Quality(dense, [])


def test_fit_share_takes_the_largest_that_fits() -> None:
    costs = network_costs(small_model("bert"), config())

    def settings(share: float) -> dict:
        return Job(small_model("bert"), config("uniform", target_params_ratio=share)).chosen().settings

    found = fit_share(settings, costs, "parameters", 0.5 * costs.dense.parameters)
    assert 0.4 < costs.total(found).parameters / costs.dense.parameters <= 0.5
    with pytest.raises(ValueError, match="cannot be reached by this method: the least it comes to is"):
        fit_share(settings, costs, "edp", 1e-9 * costs.dense.of("edp"))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sensitivity", {"target_edp_ratio": 1e-6}, "must lie between"),
        ("uniform", {"target_edp_ratio": 1e-6}, "cannot be reached by this method"),
        ("sensitivity", {"target_latency": 10.0}, "must be below the dense model's"),
        ("supernet", {"target_edp_ratio": 0.5}, "needs a train_dataset"),
    ],
)
def test_impossible_searches(method: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_ranks(small_model("bert"), config(method, **options), BATCHES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_search": "sensitivity", "target_edp_ratio": 1.5}, "target_edp_ratio must be between 0 and 1"),
        ({"rank_search": "sensitivity", "target_edp_ratio": [0.5, 0.5]}, "one number, or a list of different ones"),
        ({"rank_search": "sensitivity", "target_edp_ratio": []}, "one number, or a list of different ones"),
        ({"rank_search": "sensitivity", "target_latency": 0}, "target_latency must be a positive number of seconds"),
        ({"rank_search": "sensitivity", "target_edp_ratio": 0.5, "accelerator": None}, "target_edp_ratio needs an accelerator"),
        ({"rank_search": "sensitivity", "target_edp_ratio": 0.5, "activation_aware": False}, "needs calibration data"),
        ({"rank_search": "supernet", "target_edp_ratio": 0.5, "rank": 3}, "exactly one of|leave out rank"),
        ({"decomposition": "mixed", "target_params_ratio": 0.5}, "needs rank_search='sensitivity'"),
        ({"loss_aware": True, "activation_aware": False, "rank": 3}, "loss_aware=True needs calibration data"),
    ],
)
def test_bad_configurations(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeatConfig(**options)


def test_several_budgets_are_not_compressed_at_once() -> None:
    with pytest.raises(ValueError, match=r"target_edp_ratio=\[0.8, 0.6\] asks for several variants"):
        factorize(small_model("bert"), config(), BATCHES)


def test_a_variant_of_another_model_is_refused() -> None:
    record = search_ranks(small_model("distilbert"), config(), BATCHES)
    with pytest.raises(ValueError, match="variant HEAT-a1 does not fit BertForSequenceClassification"):
        HeatCompressor(small_model("bert")).compress(config(), BATCHES, variant=record.variants[0])
    with pytest.raises(ValueError, match="no variant 'HEAT-a9'; there are HEAT-a1, HEAT-a2"):
        record.variant("HEAT-a9")


def test_sensitivity_needs_calibration() -> None:
    with pytest.raises(ValueError, match="needs a calibration_dataset"):
        factorize(small_model("bert"), config(target_edp_ratio=0.5))


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"version": 99}', "{"])
def test_damaged_records(tmp_path: Path, damage: str) -> None:
    (tmp_path / "ranks.json").write_text(damage)
    with pytest.raises(ValueError, match=r"damaged|must hold a JSON object|of version 99"):
        RankRecord.load(tmp_path / "ranks.json")
    with pytest.raises(FileNotFoundError, match="no rank record"):
        RankRecord.load(tmp_path / "missing.json")


def test_shared_layers_count_once_in_parameters_and_by_runs_in_cost() -> None:
    costs = network_costs(small_model("albert"), config())
    name = next(iter(costs.matrices))
    assert costs.matrices[name].runs == 2
    assert costs.dense.parameters == sum(m.size.elements for m in costs.matrices.values())


def test_settings_keep_the_configured_execution() -> None:
    for method in ("sensitivity", "uniform"):
        record = search_ranks(small_model("bert"), config(method, target_edp_ratio=0.8, execution="contract"), BATCHES)
        assert {s.execution for s in record.variants[0].settings.values() if s is not None} == {"contract"}
