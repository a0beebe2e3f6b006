"""Saving and loading: bit-identical for every family and format, with and without a head, sharded, bf16, shared layers."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import FAMILIES, small_model, token_ids
from safetensors import safe_open
from torch import nn

from heat_hf import FactorizedLinear, HeatCompressor, HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.linears import dense_linears, encoder_linears, factorized_layers
from heat_hf.formats import FORMATS


def outputs(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids)[0]


def compressed(
    family: str, decomposition: str = "low_rank", head: bool = True, **options: object
) -> transformers.PreTrainedModel:
    model = small_model(family, head)
    factorize(model, HeatConfig(decomposition=decomposition, target_params_ratio=0.7, max_sweeps=5, **options))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_linears_of_every_family(family: str) -> None:
    for head in (True, False):
        model = small_model(family, head)
        names = encoder_linears(model)
        assert len(names) == FAMILIES[family][1]
        assert not any(word in name for name in names for word in ("embeddings", "pooler", "classifier", "head", "mapping"))
        blocks = [m for name, m in model.named_modules() if type(m) is nn.Linear and re.search(r"layers?\.\d+\.", name)]
        assert {id(m) for m in names.values()} == {id(m) for m in blocks}


@pytest.mark.parametrize("head", [True, False], ids=["full", "headless"])
@pytest.mark.parametrize("decomposition", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_reload_is_bit_identical(family: str, decomposition: str, head: bool, tmp_path: Path) -> None:
    model = compressed(family, decomposition, head)
    model.save_pretrained(tmp_path)
    loader = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
    loaded = loader.from_pretrained(tmp_path)
    assert len(factorized_layers(loaded)) == FAMILIES[family][1]
    for (name, a), (_, b) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(outputs(model, token_ids()), outputs(loaded, token_ids()))
    assert loaded.config.quantization_config.tensors == model.config.quantization_config.tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_headless_exchange(family: str, tmp_path: Path) -> None:
    model = compressed(family)
    model.save_pretrained(tmp_path / "full")
    headless = transformers.AutoModel.from_pretrained(tmp_path / "full")
    inside = getattr(model, model.base_model_prefix)
    assert torch.equal(outputs(headless, token_ids()), outputs(inside, token_ids()))
    headless.save_pretrained(tmp_path / "headless")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "headless")
    assert torch.equal(outputs(getattr(again, again.base_model_prefix), token_ids()), outputs(inside, token_ids()))


def test_albert_layers_stay_shared(tmp_path: Path) -> None:
    model = compressed("albert")
    assert len(factorized_layers(model)) == 6  # two layers, one set of weights
    model.save_pretrained(tmp_path)
    assert len(factorized_layers(transformers.AutoModel.from_pretrained(tmp_path))) == 6


def test_sharded(tmp_path: Path) -> None:
    model = compressed("bert", "cp")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert all(name.startswith("heat_model-") for name in shards)
    assert not (tmp_path / "model.safetensors.index.json").exists()
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(outputs(model, token_ids()), outputs(loaded, token_ids()))


def test_variants_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="variant='fp16' is not supported"):
        compressed("bert").save_pretrained(tmp_path / "out", variant="fp16")
    assert not (tmp_path / "out").exists()


def test_bfloat16(tmp_path: Path) -> None:
    model = compressed("bert").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in loaded.parameters())
    assert torch.equal(outputs(model, token_ids()), outputs(loaded, token_ids()))
    dense = small_model("bert").to(torch.bfloat16)
    factorize(dense, HeatConfig(decomposition="tucker", target_params_ratio=0.6))
    assert {p.dtype for p in dense.parameters()} == {torch.bfloat16}


def test_file_shrinks_by_what_the_parameter_count_says(tmp_path: Path) -> None:
    dense = small_model("bert")
    dense.save_pretrained(tmp_path / "dense")
    for decomposition in FORMATS:
        model = copy.deepcopy(dense)
        report = factorize(model, HeatConfig(decomposition=decomposition, target_params_ratio=0.6))
        model.save_pretrained(tmp_path / decomposition)
        stored = {}
        for kind, name in (("dense", "model"), (decomposition, "heat_model")):
            with safe_open(tmp_path / kind / f"{name}.safetensors", "pt") as file:
                tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
                stored[kind] = sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())  # an order is none
        assert stored["dense"] - stored[decomposition] == report.dense_parameters - report.parameters
        assert stored[decomposition] == report.compressed_model_parameters == model.num_parameters()
        assert report.params_ratio <= 0.6
        assert not list((tmp_path / decomposition).glob("*.bin"))


def test_loading_without_the_import_fails_loudly(tmp_path: Path) -> None:
    compressed("bert").save_pretrained(tmp_path)
    program = f"import transformers; transformers.AutoModel.from_pretrained({str(tmp_path)!r})"
    plain = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert plain.returncode != 0
    assert "import_heat_hf_before_loading_this_model" in plain.stderr
    late = subprocess.run([sys.executable, "-c", f"import transformers, heat_hf; {program}"], capture_output=True, check=False)
    assert late.returncode == 0


def test_trainer_checkpoints_resume_and_load(tmp_path: Path) -> None:
    model = compressed("bert")
    rows = [{"input_ids": row, "labels": label % 2} for label, row in enumerate(token_ids(8).tolist())]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True
    )
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").exists()
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert torch.equal(outputs(model, token_ids()), outputs(loaded, token_ids()))
    resumed = transformers.Trainer(compressed("bert"), arguments, train_dataset=rows)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    torch.testing.assert_close(outputs(resumed.model, token_ids()), outputs(model, token_ids()))
    resumed.save_model(str(tmp_path / "final"))
    assert (tmp_path / "final" / "heat_model.safetensors").exists()


def test_dequantize(tmp_path: Path) -> None:
    model = compressed("bert", "tucker")
    before = outputs(model, token_ids())
    model.save_pretrained(tmp_path / "compressed")
    dense = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "compressed").dequantize()
    assert not factorized_layers(dense)
    torch.testing.assert_close(outputs(dense, token_ids()), before)
    dense.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    assert torch.equal(outputs(plain, token_ids()), outputs(dense, token_ids()))


def test_on_the_fly(tmp_path: Path) -> None:
    dense = small_model("bert")
    dense.save_pretrained(tmp_path / "dense")
    config = HeatConfig(target_params_ratio=0.5)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense", quantization_config=config)
    factorize(dense, HeatConfig(target_params_ratio=0.5))
    assert torch.equal(outputs(dense, token_ids()), outputs(loaded, token_ids()))
    loaded.save_pretrained(tmp_path / "compressed")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "compressed")
    assert torch.equal(outputs(again, token_ids()), outputs(loaded, token_ids()))


def test_any_encoder_by_patterns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "vit", hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=8, patch_size=4
    )
    model = transformers.AutoModel.from_config(config)
    with pytest.raises(ValueError, match="unknown model family 'vit': name its linears with modules"):
        factorize(model, HeatConfig(target_params_ratio=0.5))
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear and ".0." in name]
    factorize(model, HeatConfig(target_params_ratio=0.5, modules=[r"\.0\."]))
    assert list(factorized_layers(model)) == linears
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.eval()(pixels)[0], loaded.eval()(pixels)[0])


def test_patterns_choose_and_exclude(bert: transformers.PreTrainedModel) -> None:
    everything = set(encoder_linears(bert))
    assert set(encoder_linears(bert, exclude=[r"attention\."])) == {n for n in everything if ".attention." not in n}
    assert list(encoder_linears(bert, modules=["classifier"])) == ["classifier"]


def test_linears_inside_a_low_rank_layer_are_none_of_the_model() -> None:
    model = small_model("bert")
    HeatCompressor(model).compress(HeatConfig(target_params_ratio=0.5, exclude=["key"], accelerator=None))
    assert set(dense_linears(model)) == {n for n in dense_linears(small_model("bert")) if "key" in n or "layer." not in n}
    assert all(name.endswith("key") for name in encoder_linears(model)) and encoder_linears(model)
    with pytest.raises(ValueError, match="matches no linear layer"):
        encoder_linears(model, modules=["right"])


def test_damaged_checkpoints(tmp_path: Path) -> None:
    from safetensors.torch import load, save_file

    compressed("bert").save_pretrained(tmp_path)
    weights = load((tmp_path / "heat_model.safetensors").read_bytes())  # no views into the file that is overwritten
    lost = next(name for name in weights if name.endswith("query.right.weight"))
    save_file({k: v for k, v in weights.items() if k != lost}, tmp_path / "heat_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"has no tensor .*damaged"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    save_file(weights, tmp_path / "heat_model.safetensors", {"format": "pt"})

    def rewrite(change: object) -> None:
        config = json.loads((tmp_path / "config.json").read_text())
        change(config["quantization_config"])
        (tmp_path / "config.json").write_text(json.dumps(config))

    rewrite(lambda q: q["tensors"].update({"bert.encoder.layer.7.output.dense": next(iter(q["tensors"].values()))}))
    with pytest.raises(ValueError, match=r"no linear layer 'bert.encoder.layer.7.output.dense'"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    rewrite(lambda q: q.update(tensors={}))
    with pytest.raises(ValueError, match="no tensors"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    rewrite(lambda q: q.update(new_option=1))
    with pytest.raises(ValueError, match=r"unknown options \['new_option'\]"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_deepcopy_saves_itself(tmp_path: Path) -> None:
    model = compressed("bert")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(factorized_layers(twin).values())).cores[0].zero_()
    twin.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded, token_ids()), outputs(twin, token_ids()))
    assert not torch.equal(outputs(loaded, token_ids()), outputs(model, token_ids()))


def test_compressor_saves_all_a_user_needs(tmp_path: Path) -> None:
    compressor = HeatCompressor.from_pretrained(small_model("bert"))
    report = compressor.compress(HeatConfig(target_params_ratio=0.5), save_directory=tmp_path / "new" / "folder")
    files = {file.name for file in (tmp_path / "new" / "folder").iterdir()}
    assert files == {"README.md", "config.json", "heat_model.safetensors", "heat_report.json"}
    assert type(report).load(tmp_path / "new" / "folder") == report
    assert all(isinstance(m, FactorizedLinear) for m in factorized_layers(compressor.model).values())
