"""Models whose attention projects its input onto a basis, and what other libraries do with them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import small_model, token_ids
from grouped import grouped, hooks, said

from heat_hf.encoders.linears import factorized_layers


def test_with_a_head_and_without(tmp_path: Path) -> None:
    model, _ = grouped()
    model.save_pretrained(tmp_path / "head")
    headless = transformers.AutoModel.from_pretrained(tmp_path / "head")
    assert hooks(headless) == 2
    torch.testing.assert_close(said(headless), said(model.bert))
    headless.save_pretrained(tmp_path / "headless")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "headless", num_labels=2)
    assert hooks(again) == 2 and torch.equal(said(again.bert), said(headless))


class Wrapper(transformers.PreTrainedModel):
    """A user's own model around a compressed one."""

    config_class = transformers.BertConfig
    _supports_sdpa = True

    def __init__(self, config: Any, inner: Any = None) -> None:
        super().__init__(config)
        self.inner = inner or transformers.AutoModelForSequenceClassification.from_config(config)
        self.post_init()

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.inner(input_ids)


def test_models_around_it(tmp_path: Path) -> None:
    inner, _ = grouped()
    Wrapper(inner.config, inner).save_pretrained(tmp_path / "wrapper")
    assert torch.equal(said(Wrapper.from_pretrained(tmp_path / "wrapper")), said(inner))
    encoder, decoder = grouped(head=False)[0], small_model("bert").config
    decoder.is_decoder = decoder.add_cross_attention = True
    model = transformers.EncoderDecoderModel(encoder=encoder, decoder=transformers.BertLMHeadModel(decoder)).eval()
    model.save_pretrained(tmp_path / "both")
    loaded = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "both").eval()
    inputs = {"input_ids": token_ids(), "decoder_input_ids": token_ids()}
    assert hooks(loaded) == 2 and torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_copies_pickles_and_half_precision(tmp_path: Path) -> None:
    model, _ = grouped()
    expected = said(model)
    assert torch.equal(said(copy.deepcopy(model)), expected)
    assert torch.equal(said(pickle.loads(pickle.dumps(model))), expected)
    torch.save(model, tmp_path / "whole.pt")
    assert torch.equal(said(torch.load(tmp_path / "whole.pt", weights_only=False)), expected)
    fresh = grouped()[0]
    fresh.load_state_dict({name: value * 0 for name, value in fresh.state_dict().items()})
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(said(fresh), expected)
    model.bfloat16().save_pretrained(tmp_path / "half")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert torch.equal(said(loaded), said(model)) and said(loaded).dtype == torch.bfloat16


def test_adapters_and_quantizers_find_the_linears() -> None:
    from peft import LoraConfig, get_peft_model

    model, _ = grouped()
    before, owner = said(model), "bert.encoder.layer.0.attention.self"
    parts = [f"{owner}.{name}" for name in ("query.right", "query.left", "key.left", "value.left")]
    for targets in ("all-linear", ["query", "key", "value"]):
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=targets, r=2, init_lora_weights=False))
        assert set(parts) <= set(adapted.targeted_module_names)
        after = said(adapted)
        assert not torch.allclose(after, before)
        adapted(input_ids=token_ids())[0].square().sum().backward()
        found = {name: p.grad for name, p in adapted.named_parameters() if "lora_" in name and owner in name}
        assert all(f"{part}.lora_A" in "".join(found) for part in parts) and all(g.abs().sum() > 0 for g in found.values())
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(said(merged), after, rtol=1e-4, atol=1e-5)
        assert hooks(merged) == 2
    quantization = pytest.importorskip("torchao.quantization")
    short = copy.deepcopy(model)
    quantization.quantize_(short, quantization.Int8WeightOnlyConfig())
    assert all(type(short.get_submodule(name).weight.data) is not torch.Tensor for name in parts)
    assert 0 < (said(short) - before).norm() < 0.1 * before.norm()
    torch.testing.assert_close(said(copy.deepcopy(short).dequantize()), said(short), rtol=1e-4, atol=1e-4)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    assert all(not isinstance(quantized.get_submodule(name), torch.nn.Linear) for name in parts)
    assert 0 < (said(quantized) - before).norm() < 0.1 * before.norm()


def test_offloading_and_compiling(tmp_path: Path) -> None:
    from accelerate import cpu_offload

    model, _ = grouped()
    expected = said(model)
    away = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in away.parameters())
    torch.testing.assert_close(said(away), expected, rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path / "model")
    parts = {"bert.embeddings": "cpu", "bert.encoder.layer.0": "cpu", "bert.pooler": "disk", "classifier": "cpu"}
    parts["bert.encoder.layer.1"] = "disk"
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    loaded = load(tmp_path / "model", device_map=parts, offload_folder=str(tmp_path / "folder"))
    assert any(parameter.is_meta for layer in factorized_layers(loaded).values() for parameter in layer.parameters())
    assert torch.equal(said(loaded), expected)
    explained = torch._dynamo.explain(model)(input_ids=token_ids())
    assert explained.graph_break_count == 0
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(input_ids=token_ids()).logits, expected, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.parametrize("wrapped", ["layer", "linear", "model"])
def test_sharding(wrapped: str, tmp_path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    model, _ = grouped()
    expected = said(model)
    model(input_ids=token_ids())[0].square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for layer in factorized_layers(model).values():
            for module in {"layer": [layer], "linear": list(layer.children()), "model": []}[wrapped]:
                fully_shard(module)
        fully_shard(model)
        torch.testing.assert_close(said(model), expected, rtol=1e-5, atol=1e-6)
        model(input_ids=token_ids())[0].square().sum().backward()
        for name, parameter in model.named_parameters():
            if name in gradients:
                torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name], rtol=1e-4, atol=1e-6)
    finally:
        torch.distributed.destroy_process_group()


def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from transformers import BertTokenizer

    from heat_hf.integrations.onnx import OnnxModel, export_onnx

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(55))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    model, _ = grouped()
    export_onnx(model, tokenizer, tmp_path / "onnx")
    torch.testing.assert_close(OnnxModel(tmp_path / "onnx")(token_ids()).logits, said(model), rtol=1e-4, atol=1e-5)
