"""HeatCompressor: what it plans and reports, and that bad input is refused before any work, with nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from conftest import small_model, token_ids
from torch import nn
from tqdm.auto import tqdm

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.config import FactorizedConfig
from heat_hf.encoders.linears import factorized_layers
from heat_hf.encoders.statistics import Statistics
from heat_hf.formats import FORMATS
from heat_hf.formats.decomposition import decompose
from heat_hf.hardware import mapper


def calibration(rows: int = 6) -> list[dict[str, torch.Tensor]]:
    ids = token_ids(rows, 9)
    mask = torch.ones_like(ids)
    mask[::2, 5:] = 0
    return [{"input_ids": ids, "attention_mask": mask}]


@pytest.mark.parametrize("decomposition", FORMATS)
@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.9])
def test_report_counts_what_is_there(decomposition: str, ratio: float) -> None:
    model = small_model("bert")
    before = model.num_parameters()
    config = HeatConfig(decomposition=decomposition, target_params_ratio=ratio, max_sweeps=5, loss_aware=False)
    report = factorize(model, config, calibration(10))
    layers = factorized_layers(model)
    biases = sum(layer.out_features for layer in layers.values())
    assert report.parameters == sum(core.numel() for layer in layers.values() for core in layer.parameters()) - biases
    assert report.params_ratio <= ratio
    assert report.model_parameters == before
    assert report.compressed_model_parameters == model.num_parameters()
    assert [t.name for t in report.tensors] == list(layers)
    assert report.calibration_rows == 10
    assert all(t.output_error is not None and 0 <= t.output_error < 1 for t in report.tensors)
    assert all(f"{t.name} " in str(report) for t in report.tensors)


def test_report_warns_of_layers_slower_than_dense() -> None:
    compressor = HeatCompressor(small_model("bert"))
    slow = str(compressor.plan(HeatConfig(decomposition="ttm", target_params_ratio=0.8)))
    assert "12 of 12 matrices need more MACs than the dense layer" in slow
    assert "need more MACs" not in str(compressor.plan(HeatConfig(target_params_ratio=0.8)))


def test_plan_is_what_compress_does() -> None:
    compressor = HeatCompressor(small_model("bert"))
    config = HeatConfig(decomposition="tucker", target_params_ratio=0.5)
    planned = compressor.plan(config)
    assert not factorized_layers(compressor.model)
    done = compressor.compress(config)
    assert [(t.name, t.setting, t.macs) for t in planned.tensors] == [(t.name, t.setting, t.macs) for t in done.tensors]
    assert planned.parameters == done.parameters


def test_explicit_shapes_and_ranks() -> None:
    model = small_model("bert")
    config = HeatConfig(
        decomposition="tucker",
        shape={"24x24": "24:4x6", "48x24": "48:24", "24x48": [[4, 6], [48]]},
        rank={"24x24": [8, 4, 6], "48x24": 7, "24x48": [4, 6, 9]},
        execution="reconstruct",
    )
    report = factorize(model, config)
    by_size = {f"{t.setting.shape.rows}x{t.setting.shape.columns}": t.setting for t in report.tensors}
    assert {size: (str(s.shape), s.rank) for size, s in by_size.items()} == {
        "24x24": ("24:4x6", (8, 4, 6)),
        "48x24": ("48:24", (7, 7)),
        "24x48": ("4x6:48", (4, 6, 9)),
    }
    assert all(layer.plan.path == "reconstruct" for layer in factorized_layers(model).values())


def test_activation_aware_layers_fit_outputs_better() -> None:
    batches = calibration(40)
    plain, aware = small_model("bert"), small_model("bert")
    factorize(plain, HeatConfig(target_params_ratio=0.4))
    report = factorize(aware, HeatConfig(target_params_ratio=0.4), batches)
    reference = small_model("bert")
    with torch.no_grad():
        errors = [(m(**batches[0]).logits - reference(**batches[0]).logits).norm() for m in (aware, plain)]
    assert errors[0] < errors[1]
    assert report.output_error is not None


def test_calibration_data_can_be_left_unused() -> None:
    config = HeatConfig(target_params_ratio=0.4, activation_aware=False)
    report = HeatCompressor(small_model("bert")).compress(config, ["text that would need a tokenizer"])
    assert report.calibration_rows == 0
    assert report.output_error is None


def test_wherever_moments_are_kept_they_give_the_same() -> None:
    reports = [
        factorize(small_model("bert"), HeatConfig(target_params_ratio=0.4, calibration_memory=memory), calibration())
        for memory in ("model", "layer", "disk")
    ]
    assert reports[0].tensors == reports[1].tensors == reports[2].tensors


@pytest.mark.parametrize("memory", ["model", "layer"])
def test_one_progress_bar_at_a_time(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_bars, seen = [], []

    class Bar(tqdm):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            if not self.disable:
                open_bars.append(self.desc)
                seen.append(list(open_bars))

        def close(self) -> None:
            if not self.disable:
                open_bars.remove(self.desc)
            super().close()

    for module in ("compression.job", "encoders.statistics"):
        monkeypatch.setattr(f"heat_hf.{module}.tqdm", Bar)
    factorize(small_model("bert"), HeatConfig(target_params_ratio=0.4, calibration_memory=memory), calibration())
    assert seen == ([["Calibrating"], ["Factorizing"]] if memory == "model" else [["Factorizing"]])


def test_a_configuration_serves_several_models() -> None:
    config = HeatConfig(target_params_ratio=0.5)
    models = [small_model("bert"), small_model("distilbert")]
    for model in models:
        factorize(model, config)
    assert config == HeatConfig(target_params_ratio=0.5)
    assert [len(model.config.quantization_config.tensors) for model in models] == [12, 12]
    assert models[0].config.quantization_config.tensors.keys() != models[1].config.quantization_config.tensors.keys()


def test_match_variance_reaches_the_model() -> None:
    model, dense = small_model("bert"), small_model("bert")
    factorize(model, HeatConfig(target_params_ratio=0.3, match_variance=True))
    for name, layer in factorized_layers(model).items():
        weight = dense.get_submodule(name).weight
        assert float(layer.reconstruct().detach().var()) == pytest.approx(float(weight.detach().var()), rel=1e-3)


Change = Callable[[transformers.PreTrainedModel], None]


def _nan(model: transformers.PreTrainedModel) -> None:
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[3, 4] = float("nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decomposition": "svd", "target_params_ratio": 0.5}, "unknown decomposition 'svd'"),
        ({"target_params_ratio": 1.0}, "target_params_ratio must be between 0 and 1"),
        ({"target_params_ratio": 1.5}, "would not shrink"),
        ({"target_params_ratio": 0}, "target_params_ratio must be between 0 and 1"),
        ({"target_params_ratio": -0.1}, "target_params_ratio must be between 0 and 1"),
        ({"target_params_ratio": float("nan")}, "target_params_ratio must be between 0 and 1"),
        ({"target_params_ratio": "0.5"}, "target_params_ratio must be between 0 and 1"),
        ({"target_params_ratio": 0.001}, "cannot be as small as"),
        ({}, "exactly one of target_params_ratio, target_edp_ratio, target_latency_ratio, target_latency and rank"),
        (
            {"target_params_ratio": 0.5, "rank": 3},
            "exactly one of target_params_ratio, target_edp_ratio, target_latency_ratio, target_latency and rank",
        ),
        ({"rank": 0}, r"rank must be a whole number from 1 to .*, got 0"),
        ({"rank": -1}, r"rank must be a whole number from 1 to .*, got -1"),
        ({"rank": 25}, r"from 1 to 24, got 25"),
        ({"rank": 24}, r"choose a smaller rank"),
        ({"rank": {"24x24": 3}}, r"rank has no entry for the size 48x24"),
        ({"rank": {"24x24": 3, "48x24": 3, "24x48": 3, "9x9": 3}}, r"rank names the matrix sizes \['9x9'\]"),
        ({"target_params_ratio": 0.5, "shape": "24:24"}, r"shape 24:24 does not fit a 48×24 matrix"),
        ({"target_params_ratio": 0.5, "shape": {"24x24": "5x5:24"}}, r"product of out_modes \[5, 5\] is 25, expected 24"),
        ({"target_params_ratio": 0.5, "modules": ["nothing"]}, r"modules pattern 'nothing' matches no linear layer"),
        ({"target_params_ratio": 0.5, "modules": ["("]}, "invalid regular expression"),
        ({"target_params_ratio": 0.5, "modules": "query"}, "modules must be a list"),
        ({"target_params_ratio": 0.5, "exclude": ["nothing"]}, r"exclude pattern 'nothing' matches no linear layer"),
        ({"target_params_ratio": 0.5, "exclude": ["."]}, "no linear layer is left"),
        ({"target_params_ratio": 0.5, "execution": "fast"}, "execution must be one of"),
        (
            {"target_params_ratio": 0.5, "sequence_length": 0},
            "sequence_length must be a whole number from 1 to 262,144, got 0",
        ),
        ({"target_params_ratio": 0.5, "calibration_memory": "tape"}, "calibration_memory must be one of"),
        ({"target_params_ratio": 0.5, "activation_aware": True}, "needs a calibration_dataset"),
    ],
)
def test_bad_options_change_and_write_nothing(
    options: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("work started")

    monkeypatch.setattr("heat_hf.compression.projecting.decompose", refuse)
    model = small_model("bert")
    with pytest.raises(ValueError, match=message):
        HeatCompressor(model).compress(HeatConfig(**options), save_directory=tmp_path / "out")
    assert not list(tmp_path.iterdir())
    assert not factorized_layers(model)
    assert not hasattr(model.config, "quantization_config")


def test_nan_weights(tmp_path: Path) -> None:
    model = small_model("bert")
    _nan(model)
    with pytest.raises(ValueError, match=r"weight of bert.encoder.layer.1.output.dense holds NaN"):
        HeatCompressor(model).compress(HeatConfig(target_params_ratio=0.5), save_directory=tmp_path / "out")
    assert not factorized_layers(model)
    assert not list(tmp_path.iterdir())


def test_a_model_without_linears() -> None:
    config = transformers.AutoConfig.for_model("resnet", embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    with pytest.raises(ValueError, match="ResNetModel has no linear layers"):
        factorize(transformers.AutoModel.from_config(config), HeatConfig(target_params_ratio=0.5))


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError), match=r"config.json|model_type"):
        HeatCompressor.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        HeatCompressor.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(OSError, match=r"safetensors"):
        HeatCompressor.from_pretrained(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = small_model("bert")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        HeatCompressor.from_pretrained(tmp_path)


def test_recompression_is_refused(tmp_path: Path) -> None:
    compressor = HeatCompressor(small_model("bert"))
    compressor.compress(HeatConfig(target_params_ratio=0.5), save_directory=tmp_path / "out")
    for attempt in (
        lambda: compressor.compress(HeatConfig(target_params_ratio=0.3)),
        lambda: HeatCompressor(compressor.model),
        lambda: HeatCompressor.from_pretrained(tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match="compressed by heat_hf already"):
            attempt()


def test_on_the_fly_recompression_is_refused(tmp_path: Path) -> None:
    HeatCompressor(small_model("bert")).compress(HeatConfig(target_params_ratio=0.5), save_directory=tmp_path / "out")
    with pytest.raises(ValueError, match="quantized with FactorizedConfig but you are passing a HeatConfig"):
        transformers.AutoModel.from_pretrained(tmp_path / "out", quantization_config=HeatConfig(target_params_ratio=0.2))


def test_a_failed_decomposition_leaves_the_model_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails_late(*args: object) -> object:
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("out of memory")
        return decompose(*args)

    monkeypatch.setattr("heat_hf.compression.projecting.decompose", fails_late)
    model = small_model("bert")
    with pytest.raises(RuntimeError, match="out of memory"):
        factorize(model, HeatConfig(target_params_ratio=0.5))
    assert not factorized_layers(model)
    assert all(type(m) is not nn.Linear or m.weight.isfinite().all() for m in model.modules())


def test_config_round_trip() -> None:
    """What a saved model carries; the request is no part of it."""
    setting = {"format": "low_rank", "shape": [[24], [48]], "rank": [3], "execution": "auto"}
    config = FactorizedConfig({"a": setting}, tokens=64, accelerator="simba-l", heat_version="1.0")
    assert FactorizedConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for damage, message in (
        ({"quant_method": "gptq"}, "quant_method must be 'heat'"),
        ({"tensors": {}}, "has method 'heat' but no tensors"),
        ({"tokens": 0}, "tokens of the quantization_config must be a whole number from 1"),
        ({"decomposition": "cp"}, r"unknown options \['decomposition'\].*written by heat_hf 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            FactorizedConfig.from_dict({**config.to_dict(), **damage})


def test_statistics_are_collected_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One pass for C and G together, for search and projection; none where they are given, also at another budget."""
    passes = []
    collect = Statistics.collect.__func__

    def counting(cls: type, *args: object, **options: object) -> Statistics:
        passes.append(1)
        return collect(cls, *args, **options)

    monkeypatch.setattr(Statistics, "collect", classmethod(counting))
    config = HeatConfig(rank_search="sensitivity", target_edp_ratio=0.7, sequence_length=16, refine_steps=0)
    compressor = HeatCompressor(small_model("bert"))
    first = compressor.compress(config, calibration())
    assert len(passes) == 1
    HeatCompressor(small_model("bert")).statistics_of(config, calibration()).save(tmp_path / "statistics.safetensors")
    loaded = Statistics.load(tmp_path / "statistics.safetensors")
    assert len(passes) == 2
    again = HeatCompressor(small_model("bert")).compress(config, statistics=loaded)
    other = HeatCompressor(small_model("bert")).compress(replace(config, target_edp_ratio=0.5), statistics=loaded)
    assert len(passes) == 2
    assert replace(again, fidelity=first.fidelity) == first  # without the data, nothing is measured on it
    assert again.fidelity is None and first.fidelity.measured > 0
    assert again.calibration_rows == first.calibration_rows > 0
    assert other.hardware.ratio < again.hardware.ratio
    with pytest.raises(ValueError, match="are of other calibration data"):
        HeatCompressor(small_model("bert")).compress(config, [{"input_ids": token_ids()}], statistics=loaded)
    with pytest.raises(ValueError, match="are of another model"):
        HeatCompressor(small_model("bert", seed=1)).compress(config, statistics=loaded)


def test_every_product_is_mapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = []
    search = mapper.search_padded
    monkeypatch.setattr(mapper, "search_padded", lambda gemm, *rest: mapped.append(gemm) or search(gemm, *rest))
    config = HeatConfig(rank_search="sensitivity", target_edp_ratio=0.7, sequence_length=16)
    HeatCompressor(small_model("bert")).compress(config, calibration())
    assert len(mapped) == len(set(mapped)) > 10
