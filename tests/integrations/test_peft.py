"""PEFT on factorized layers, in its own ways alone: any method, any target, added, saved, loaded, merged, unmerged."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from conftest import small_model, token_ids
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from students import apart, pair, train

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.encoders.linears import factorized_layers

BOTH = ["query", "value"]
OTHERS = ["cp", "tucker", "ttm", "monarch"]
METHODS = {
    "all-linear": LoraConfig(target_modules="all-linear", r=2),
    "names": LoraConfig(target_modules=BOTH, r=2),
    "regex": LoraConfig(target_modules=r".*layer\.1\..*(query|dense)", r=2),
    "by default": LoraConfig(r=2),
    "one inside": LoraConfig(target_modules=["query.left"], r=2),
    "rslora": LoraConfig(target_modules=BOTH, r=2, use_rslora=True),
    "ranks": LoraConfig(target_modules=BOTH, r=2, rank_pattern={"query": 3}, alpha_pattern={r"0\.attention\.self\.value": 5}),
    "DoRA": LoraConfig(target_modules=BOTH, r=2, use_dora=True),
    "PiSSA": LoraConfig(target_modules=BOTH, r=2, init_lora_weights="pissa"),
    "OLoRA": LoraConfig(target_modules=BOTH, r=2, init_lora_weights="olora"),
    "IA3": peft.IA3Config(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]),
    "IA3 by default": peft.IA3Config(),
    "LoHa": peft.LoHaConfig(target_modules=BOTH, r=2),
    "LoKr": peft.LoKrConfig(target_modules=BOTH, r=2),
    "VeRA": peft.VeraConfig(target_modules=BOTH, r=2),
    "OFT": peft.OFTConfig(target_modules=BOTH, oft_block_size=1),
    "BOFT": peft.BOFTConfig(target_modules=BOTH, boft_block_size=1),
    "AdaLoRA": peft.AdaLoraConfig(target_modules=BOTH, init_r=2, target_r=2, total_step=10),
    "HRA": peft.HRAConfig(target_modules=BOTH, r=2),
    "FourierFT": peft.FourierFTConfig(target_modules=BOTH, n_frequency=10),
}


def dense_model() -> Any:
    """With weights large enough that it says something."""
    model = small_model("bert")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(8)
    return model


def compressed(decomposition: str = "low_rank") -> Any:
    model = dense_model()
    HeatCompressor(model).compress(HeatConfig(decomposition=decomposition, target_params_ratio=0.6, accelerator=None))
    return model


def said(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids())[0]


def trained(model: Any) -> Any:
    """Stands for training: what may be trained is somewhere else."""
    torch.manual_seed(1)
    moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in moved:
        parameter.data += 0.1 * torch.randn_like(parameter)
    assert moved
    return model


def adapted(model: Any, config: Any) -> Any:
    return trained(get_peft_model(model, copy.deepcopy(config)))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("decomposition", ["low_rank", "pivoted"])
@pytest.mark.parametrize("method", METHODS)
def test_methods(method: str, decomposition: str, tmp_path: Path) -> None:
    config = copy.deepcopy(METHODS[method])
    config.task_type = "SEQ_CLS"
    plain = compressed(decomposition)
    plain.save_pretrained(tmp_path / "plain")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    before = said(plain)
    model = adapted(load(tmp_path / "plain"), config)
    targets = model.targeted_module_names
    assert targets and all(type(plain.get_submodule(name)) is torch.nn.Linear for name in targets)
    after = said(model)
    assert not torch.allclose(after, before, atol=1e-3)
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(said(PeftModel.from_pretrained(load(tmp_path / "plain"), tmp_path / "adapter")), after)
    torch.testing.assert_close(said(AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")), after)
    model.merge_adapter()
    close(said(model), after)
    model.unmerge_adapter()
    close(said(model), after)
    merged = model.merge_and_unload()
    close(said(merged), after)
    ranks = {name: layer.setting for name, layer in factorized_layers(plain).items()}
    assert {name: layer.setting for name, layer in factorized_layers(merged).items()} == ranks, "merging keeps ranks and costs"
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(said(load(tmp_path / "merged")), said(merged))


def test_what_targets_mean() -> None:
    model = compressed()
    query = [name for name in factorized_layers(model) if name.endswith("query")]
    names = lambda **options: set(adapted(copy.deepcopy(model), LoraConfig(r=2, **options)).targeted_module_names)  # noqa: E731
    assert names(target_modules=["query"]) == {f"{name}.{child}" for name in query for child in ("left", "right")}
    assert names(target_modules=["query"], layers_to_transform=[1]) == {f"{query[1]}.left", f"{query[1]}.right"}
    linears = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    everything = names(target_modules="all-linear")
    assert everything == linears and len(everything) == 2 * 12 + 2
    assert names(target_modules="all-linear", exclude_modules=["query"]) == {name for name in linears if ".query." not in name}
    assert names(target_modules=["classifier"]) == {"classifier"}
    ranked = adapted(copy.deepcopy(model), METHODS["ranks"])
    shapes = {name: p.shape[0] for name, p in ranked.named_parameters() if "lora_A" in name}
    assert all(rank == (3 if ".query." in name else 2) for name, rank in shapes.items())


def test_a_second_adapter(tmp_path: Path) -> None:
    model = adapted(compressed(), METHODS["names"])
    first = said(model)
    model.add_adapter("second", LoraConfig(target_modules=["query", "dense"], r=3))
    assert torch.equal(said(model), first)
    model.set_adapter("second")
    second = said(trained(model))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(compressed(), tmp_path)
    loaded.load_adapter(tmp_path / "second", "second")
    assert torch.equal(said(loaded), first)
    loaded.set_adapter("second")
    assert torch.equal(said(loaded), second) and not torch.equal(first, second)
    loaded.delete_adapter("default")
    assert torch.equal(said(loaded), second)
    close(said(loaded.merge_and_unload()), second)


@pytest.mark.parametrize("decomposition", ["low_rank", "pivoted", *OTHERS])
def test_adapters_of_transformers(decomposition: str, tmp_path: Path) -> None:
    model = compressed(decomposition)
    plain = said(model)
    model.add_adapter(LoraConfig(target_modules=BOTH, r=2))
    after = said(trained(model))
    assert not torch.allclose(after, plain, atol=1e-3)
    model.save_pretrained(tmp_path)
    other = compressed(decomposition)
    other.load_adapter(tmp_path)
    torch.testing.assert_close(said(other), after)


def test_adapters_of_sentence_transformers(minilm: str, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    compressor = HeatCompressor.from_pretrained(minilm)
    compressor.compress(HeatConfig(target_params_ratio=0.3), save_directory=tmp_path / "model")
    texts = ["A man is playing a guitar.", "Nobody sings."]
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    plain = model.encode(texts)
    model.add_adapter(LoraConfig("FEATURE_EXTRACTION", target_modules=BOTH, r=2, init_lora_weights=False))
    after = model.encode(texts)
    assert abs(after - plain).max() > 1e-3
    model[0].model.save_pretrained(tmp_path / "adapter")
    other = sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    other.load_adapter(str(tmp_path / "adapter"))
    assert abs(other.encode(texts) - after).max() < 1e-6


@pytest.mark.parametrize("decomposition", OTHERS)
def test_formats_without_linears_have_lora_beside(decomposition: str, tmp_path: Path) -> None:
    model = adapted(compressed(decomposition), LoraConfig(target_modules="all-linear", r=2))
    assert set(factorized_layers(compressed(decomposition))) < set(model.targeted_module_names)
    after = said(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(said(PeftModel.from_pretrained(compressed(decomposition), tmp_path)), after)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=f"a {decomposition} layer cannot take in an adapter exactly"):
            merge()
    assert torch.equal(said(model.unload()), said(compressed(decomposition)))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=BOTH, use_dora=True),
        LoraConfig(target_modules="all-linear", init_lora_weights="pissa"),
        LoraConfig(target_modules=BOTH, init_lora_weights="olora"),
        peft.IA3Config(),
        peft.LoHaConfig(target_modules=BOTH),
        peft.VeraConfig(target_modules=BOTH),
        peft.LoKrConfig(target_modules="all-linear"),
    ],
)
def test_methods_that_need_a_dense_weight_are_refused(config: Any) -> None:
    with pytest.raises(ValueError, match=r"needs .* is a cp layer: compress with decomposition='low_rank'.* use"):
        get_peft_model(compressed("cp"), copy.deepcopy(config))


@pytest.mark.parametrize("load", ["PeftModel", "load_adapter"])
def test_adapters_of_the_dense_model(load: str, tmp_path: Path) -> None:
    """Beside a layer they work; the linears of a low-rank one have other sizes."""
    dense = adapted(dense_model(), METHODS["names"])
    dense.save_pretrained(tmp_path)

    def loaded(model: Any) -> Any:
        if load == "PeftModel":
            return PeftModel.from_pretrained(model, tmp_path)
        model.load_adapter(tmp_path)
        return model

    with pytest.raises(ValueError, match=r"was made for a dense .*query, which is a low-rank layer here.*merge it"):
        loaded(compressed())
    for model in (dense_model(), compressed("cp")):
        before = said(model)
        assert not torch.allclose(said(loaded(model)), before, atol=1e-3)


def test_adapters_alone_are_distilled(tmp_path: Path) -> None:
    student, teacher = pair()
    plain = copy.deepcopy(student)
    model = get_peft_model(student, LoraConfig(target_modules=BOTH, r=2, lora_alpha=4))
    train(tmp_path / "run", model, teacher, max_steps=40, learning_rate=3e-3)
    assert apart(model.get_base_model(), teacher)[2] < 0.9 * apart(plain, teacher)[2]
    trained = dict(model.get_base_model().named_parameters())
    for name, value in plain.named_parameters():
        layer, _, kind = name.rpartition(".")
        own = trained.get(name, trained.get(f"{layer}.base_layer.{kind}"))
        assert own is not None and torch.equal(own, value)


def test_a_trainer_of_adapters_does_not_save_them_as_a_model(tmp_path: Path) -> None:
    student, teacher = pair()
    model = get_peft_model(student, LoraConfig(target_modules=BOTH, r=2))
    trainer = train(tmp_path / "run", model, teacher, max_steps=2)
    with pytest.raises(ValueError, match="save_model saves those alone"):
        trainer.save(tmp_path / "saved")


def test_unmerging_gives_back_the_weights() -> None:
    model = adapted(compressed(), METHODS["all-linear"])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.merge_adapter()
    model.unmerge_adapter()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ["import peft, heat_hf", "import heat_hf, peft", "import peft.tuners.tuners_utils, heat_hf"])
def test_either_is_imported_first(order: str, tmp_path: Path) -> None:
    compressed().save_pretrained(tmp_path)
    program = (
        f"{order}\nfrom transformers import AutoModel\nfrom peft import LoraConfig, get_peft_model\n"
        f"model = get_peft_model(AutoModel.from_pretrained({str(tmp_path)!r}), LoraConfig(target_modules=['query']))\n"
        "print(len(model.targeted_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "4"


def test_corda_by_the_names_of_linears() -> None:
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    model = compressed()
    before = said(model)
    names = ["query.left", "query.right"]
    options = {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="kpm"), "r": 2}
    config = LoraConfig(target_modules=names, **options)
    rows = token_ids(4, 40)
    preprocess_corda(model, config, run_model=lambda: [model(input_ids=row[None]) for row in rows])  # it wants row by row
    torch.testing.assert_close(said(get_peft_model(model, config)), before, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="preprocess_corda"):
        get_peft_model(compressed(), LoraConfig(target_modules=["query"], **options))


def test_dequantizing_with_adapters_is_refused() -> None:
    model = compressed()
    model.add_adapter(LoraConfig(target_modules=BOTH, r=2))
    with pytest.raises(ValueError, match="merge or remove adapters first"):
        model.dequantize()
