"""Word embeddings of low rank: what is lost least, families, saving, loading, neighbours, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from conftest import FAMILIES, SENTENCES, small_model, token_ids
from students import train
from torch import nn

from heat_hf import CompressionReport, HeatCompressor, HeatConfig
from heat_hf.cli import main
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.cost import model_cost
from heat_hf.encoders.embedding import embed, token_counts, word_embeddings
from heat_hf.formats.embedding import FactorizedEmbedding, project_embeddings
from heat_hf.hardware.analytic import cost_accelerator
from heat_hf.reports.cost import layer_table

BATCHES = [{"input_ids": token_ids(6, 9), "attention_mask": torch.ones(6, 9, dtype=torch.long)}, {"input_ids": token_ids(6, 8)}]
ASKED = HeatConfig(target_params_ratio=0.5, embedding_rank=5, refine_steps=3, sequence_length=8)


def compressed(family: str = "bert", head: bool = True, config: HeatConfig = ASKED) -> transformers.PreTrainedModel:
    model = small_model(family, head)
    factorize(model, config, BATCHES)
    return model.eval()


def lost(weight: torch.Tensor, other: torch.Tensor, counts: torch.Tensor, moment: torch.Tensor) -> float:
    apart = (weight - other).double()
    return float((counts[:, None] * apart * (apart @ moment)).sum())


def test_no_other_embeddings_of_that_rank_lose_less() -> None:
    """Not those that gradient descent finds from there, nor plain SVD; and ranks nest."""
    generator = torch.Generator().manual_seed(0)
    weight, root = (torch.randn(rows, 12, generator=generator, dtype=torch.double) for rows in (40, 12))
    counts, moment = torch.rand(40, generator=generator, dtype=torch.double) + 0.01, root.T @ root
    damped = moment + 3e-2 * torch.eye(12, dtype=torch.double) * torch.linalg.eigvalsh(moment).mean()
    before = float("inf")
    for rank in (1, 4, 9):
        low, up, error = project_embeddings(weight, counts, moment, rank)
        found = lost(weight, low @ up.T, counts, damped)
        assert error == pytest.approx((found / lost(weight, 0 * weight, counts, damped)) ** 0.5, rel=1e-9)
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        assert found < lost(weight, (left[:, :rank] * values[:rank]) @ right[:rank], counts, damped)
        assert found < before
        before = found
        pair = [low.clone().requires_grad_(), up.clone().requires_grad_()]
        apart = weight - pair[0] @ pair[1].T
        (counts[:, None] * apart * (apart @ damped)).sum().backward()
        assert all(part.grad.norm() < 1e-9 * part.norm() for part in pair), "a stationary point"
    low, up, error = project_embeddings(weight, counts, None, 12)
    torch.testing.assert_close(low @ up.T, weight)
    assert error < 1e-6


def test_tokens_that_never_come_count_as_much_as_those_that_come_once() -> None:
    batch = {
        "input_ids": torch.tensor([[1, 2, 2, 0], [3, 2, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]),
    }
    assert token_counts([batch], 8).tolist() == [0.4, 1, 3, 1, 0.4, 0.4, 0.4, 0.4]
    every = {"input_ids": torch.arange(4)[None]}
    assert token_counts([every, every], 4).tolist() == [2, 2, 2, 2]
    with pytest.raises(ValueError, match="has the token 3; the model has 0 to 2"):
        token_counts([every], 3)
    with pytest.raises(ValueError, match="needs calibration data with input_ids, it has inputs_embeds"):
        token_counts([{"inputs_embeds": torch.zeros(1, 2, 4)}], 3)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, head: bool, tmp_path: Path) -> None:
    rank = 5
    dense = small_model(family, head)
    _, table = word_embeddings(dense, rank)
    model = compressed(family, head)
    table_now = model.get_input_embeddings()
    assert isinstance(table_now, FactorizedEmbedding) and table_now.rank == rank
    report = model.hf_quantizer.report
    assert report.compressed_model_parameters == model.num_parameters()
    assert report.embedding.lost == table.weight.numel() - sum(p.numel() for p in table_now.parameters())
    with torch.no_grad():
        expected = model(**BATCHES[0])[0]
    model.save_pretrained(tmp_path)
    for other in (type(model).from_pretrained(tmp_path), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        with torch.no_grad():
            torch.testing.assert_close(other.eval()(**BATCHES[0])[0], expected, rtol=0, atol=0)
        assert {name: p.shape for name, p in other.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert CompressionReport.load(tmp_path).embedding == report.embedding
    bare = transformers.AutoModel.from_pretrained(tmp_path)
    assert isinstance(bare.get_input_embeddings(), FactorizedEmbedding)
    back = type(model).from_pretrained(tmp_path).dequantize().eval()
    assert type(back.get_input_embeddings()) is nn.Embedding
    with torch.no_grad():
        torch.testing.assert_close(back(**BATCHES[0])[0], expected, rtol=1e-4, atol=1e-5)
    back.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())


def test_at_full_rank_the_model_answers_as_before() -> None:
    model = transformers.AutoModel.from_config(transformers.BertConfig(vocab_size=60, hidden_size=8, num_hidden_layers=1,
                                               num_attention_heads=2, intermediate_size=16)).eval()  # fmt: skip
    name, _, error = embed(model, BATCHES, 7)
    assert name == "embeddings.word_embeddings" and 0 < error < 1
    with pytest.raises(ValueError, match=r"embedding_rank must be at most 7, else 60 × 8 embeddings get larger, got 8"):
        embed(model, BATCHES, 8)


def test_refinement_makes_up_for_it() -> None:
    """The first block learns from what the compressed model reads, towards what the dense one answers."""
    model = small_model("bert")
    report = factorize(model, HeatConfig(target_params_ratio=0.9, embedding_rank=2, refine_steps=60), BATCHES)
    alone = factorize(small_model("bert"), HeatConfig(target_params_ratio=0.9, refine_steps=60), BATCHES)
    first, other = (own.refinement.blocks[0] for own in (report, alone))
    assert first.before > 10 * other.before and first.after < 0.995 * first.before


def test_an_error_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no more")

    model = small_model("bert")
    before, table = copy.deepcopy(model.state_dict()), model.get_input_embeddings()
    monkeypatch.setattr("heat_hf.compression.job.attach", fail)
    with pytest.raises(RuntimeError, match="no more"):
        factorize(model, ASKED, BATCHES)
    assert model.get_input_embeddings() is table
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_it_trains_and_quantizes_and_compiles(tmp_path: Path) -> None:
    model = compressed()
    small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        expected = model(**BATCHES[0]).logits
        assert (small(**BATCHES[0]).logits - expected).abs().max() < 0.2
        torch.testing.assert_close(torch.compile(model)(**BATCHES[0]).logits, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be saved as it is"):
        small.save_pretrained(tmp_path)
    model.train()
    model(**BATCHES[0]).logits.square().sum().backward()
    table = model.get_input_embeddings()
    assert table.low.weight.grad.norm() > 0 and table.up.weight.grad.norm() > 0
    with pytest.raises(TypeError, match="not an instance of"):
        model.resize_token_embeddings(70)


def test_it_is_exported(checkpoint: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("heat_hf.integrations.onnx")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    factorize(model, ASKED, BATCHES)
    onnx.export_onnx(model, transformers.AutoTokenizer.from_pretrained(checkpoint), tmp_path / "onnx")
    with torch.no_grad():
        found = onnx.OnnxModel(tmp_path / "onnx")(**BATCHES[0]).logits
        torch.testing.assert_close(found, model(**BATCHES[0]).logits, rtol=1e-4, atol=1e-5)


def test_it_is_distilled(tmp_path: Path) -> None:
    model = compressed()
    before = copy.deepcopy(model.get_input_embeddings().state_dict())
    train(tmp_path / "run", model, small_model("bert"), max_steps=4)
    assert all(not torch.equal(own, before[name]) for name, own in model.get_input_embeddings().state_dict().items())


def test_its_cost_is_counted(tmp_path: Path) -> None:
    model, costs = compressed(), cost_accelerator("simba-l")
    model.save_pretrained(tmp_path)
    now, dense = (model_cost(own, costs, 16, count=["embeddings"]) for own in (model, small_model("bert")))
    (words,) = (layer for layer in now.layers if layer.name == "words from their rank")
    assert words.size == "16x24x5" and words.cost.edp > 0 and not words.dense.edp
    assert "words from their rank" not in [layer.name for layer in dense.layers]
    assert model_cost(str(tmp_path), costs, 16, count=["embeddings"]).total.edp == now.total.edp
    assert "words from their rank" in layer_table(now)
    report = factorize(small_model("bert"), replace(ASKED, sequence_length=16), BATCHES)
    assert report.around.now.seconds - report.around.dense.seconds == pytest.approx(words.cost.cost.seconds)


def test_command_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = checkpoint.parent / "sentences.txt", checkpoint.parent / "out"
    line = [
        "compress",
        str(checkpoint),
        "--target-params-ratio",
        "0.5",
        "--embedding-rank",
        "6",
        "--calibration-file",
        str(data),
    ]
    assert main([*line, "--dry-run"]) == 0
    assert "embeddings of 30,522 tokens at rank 6: 732,528 → 183,276 parameters, ×0.250." in capsys.readouterr().out
    assert main([*line, "--output", str(out)]) == 0
    assert "×0.250; error 0." in capsys.readouterr().out
    assert "at rank 6" in (out / "README.md").read_text()
    tokens = transformers.AutoTokenizer.from_pretrained(out)(SENTENCES, padding=True, return_tensors="pt")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    assert model.get_input_embeddings().rank == 6 and torch.isfinite(model(**tokens).logits).all()


def test_blocks_of_which_nothing_is_factorized_load_with_their_embeddings(tmp_path: Path) -> None:
    model = small_model("bert")
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear and "encoder" in name]
    factorize(model, ASKED, BATCHES, dict.fromkeys(names))
    with torch.no_grad():
        expected = model.eval()(**BATCHES[0]).logits
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**BATCHES[0]).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_rank": 0}, "embedding_rank must be a whole number from 1"),
        ({"embedding_rank": 18}, "embedding_rank must be at most 17, else 60 × 24 embeddings get larger, got 18"),
        ({"embedding_rank": 4, "activation_aware": False}, "embedding_rank needs calibration data"),
    ],
)
def test_bad_values(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factorize(small_model("bert"), HeatConfig(target_params_ratio=0.5, **options), BATCHES)


def test_what_it_cannot_be_done_to() -> None:
    with pytest.raises(ValueError, match="embedding_rank needs the rows of a calibration_dataset"):
        HeatCompressor(small_model("bert")).compress(HeatConfig(target_params_ratio=0.5, embedding_rank=4))
    config = transformers.BertConfig(vocab_size=60, hidden_size=24, num_hidden_layers=1, num_attention_heads=4,
                                     intermediate_size=48)  # fmt: skip
    with pytest.raises(ValueError, match="BertForMaskedLM shares its word embeddings with its output layer"):
        factorize(transformers.BertForMaskedLM(config), HeatConfig(target_params_ratio=0.5, embedding_rank=4), BATCHES)
    other = small_model("bert")
    other.set_input_embeddings(nn.Embedding(60, 24, max_norm=1.0))
    with pytest.raises(ValueError, match=r"is for a plain nn.Embedding of words, BertForSequenceClassification has Emb"):
        factorize(other, HeatConfig(target_params_ratio=0.5, embedding_rank=4), BATCHES)


@pytest.mark.parametrize(
    "damage", [{"x": 5}, {"bert.embeddings.word_embeddings": 6}, {"bert.embeddings.word_embeddings": "5"}, []]
)
def test_a_damaged_folder(damage: object, tmp_path: Path) -> None:
    compressed().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    content["quantization_config"]["embeddings"] = damage
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"embedding|extents|ignore_mismatched_sizes"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
