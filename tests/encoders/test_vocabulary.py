"""A vocabulary trimmed to texts: these are answered as before, others are spelled."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, SENTENCES, small_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from heat_hf import HeatCompressor, HeatConfig, trim_vocabulary
from heat_hf.cli import main

WORDS = ("our", "man", "is", "playing", "dogs", "run", "on", "the", "beach", "guitar")
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def unigram() -> Any:
    pieces = [(f"▁{word}", -2.0 - number / 100) for number, word in enumerate(WORDS)]
    letters = [(f"{mark}{letter}", -9.0) for mark in ("▁", "") for letter in "abcdefghijklmnopqrstuvwxyz."]
    raw = Tokenizer(models.Unigram([*((token, 0.0) for token in SPECIAL), *pieces, *letters], unk_id=3))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special: dict[str, Any] = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token"), SPECIAL, strict=True))
    special |= {"model_input_names": ["input_ids", "attention_mask"]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **special)


def answers(model: Any, tokenizer: Any, texts: list[str]) -> Any:
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt"))[0]


@pytest.fixture
def wordpiece(minilm: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(minilm)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_texts_are_answered_bit_by_bit_as_before(family: str, wordpiece: Any, tmp_path: Path) -> None:
    model = small_model(family)
    model.resize_token_embeddings(len(wordpiece))
    before = answers(model, wordpiece, SENTENCES)
    smaller = trim_vocabulary(model, wordpiece, SENTENCES)
    assert len(smaller) < len(wordpiece) / 10 and model.config.vocab_size == len(smaller)
    assert model.get_input_embeddings().weight.shape[0] == len(smaller)
    assert torch.equal(answers(model, smaller, SENTENCES), before)
    model.save_pretrained(tmp_path)
    smaller.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(answers(loaded, transformers.AutoTokenizer.from_pretrained(tmp_path), SENTENCES), before)


@pytest.mark.parametrize("family", ["xlm-roberta", "camembert", "mpnet"])
def test_positions_that_start_at_the_padding_token(family: str) -> None:
    tokenizer, model, texts = unigram(), small_model(family), ["our man is playing the guitar", "dogs run"]
    model.resize_token_embeddings(len(tokenizer))
    before = answers(model, tokenizer, texts)
    smaller = trim_vocabulary(model, tokenizer, texts)
    assert len(tokenizer) - len(smaller) == 2, "on and beach"
    assert torch.equal(answers(model, smaller, texts), before)


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_says_the_same_of_tokens_that_stay(tied: bool, wordpiece: Any) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("bert", **{**FAMILIES["bert"][0], "vocab_size": len(wordpiece)})
    config.tie_word_embeddings = tied
    model = transformers.BertForMaskedLM(config).eval()
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    before, old = answers(model, wordpiece, SENTENCES), wordpiece.get_vocab()
    smaller = trim_vocabulary(model, wordpiece, SENTENCES)
    tokens = smaller.get_vocab()
    kept = [old[token] for token in sorted(tokens, key=tokens.get)]
    torch.testing.assert_close(answers(model, smaller, SENTENCES), before[..., kept], rtol=0, atol=1e-6)
    same = model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert same == tied


def test_another_word_is_spelled(wordpiece: Any) -> None:
    model = small_model("bert")
    model.resize_token_embeddings(len(wordpiece))
    smaller = trim_vocabulary(model, wordpiece, SENTENCES)
    assert smaller.tokenize("guitar zebra") == ["guitar", "z", "##e", "##b", "##r", "##a"]
    assert smaller.unk_token_id not in smaller("A zebra, 99% of it!")["input_ids"]
    for name in ("pad", "cls", "sep", "mask", "unk"):
        assert getattr(smaller, f"{name}_token") == getattr(wordpiece, f"{name}_token")


def test_a_whole_checkpoint(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    command = ["trim", str(checkpoint), "--corpus-file", str(tmp_path / "labels.csv"), "--output", str(tmp_path / "small")]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"]["after"] < found["tokens"]["before"] / 10
    scores = []
    for folder in (checkpoint, tmp_path / "small"):
        asked = ["evaluate", str(folder), "--task", "text-classification", "--data", str(tmp_path / "labels.csv"), "--json"]
        assert main(asked) == 0
        scores.append(next(iter(json.loads(capsys.readouterr().out).values()))["accuracy"])
    assert scores[0] == scores[1]
    HeatCompressor.from_pretrained(tmp_path / "small").compress(HeatConfig(rank=4), SENTENCES, tmp_path / "heat")
    assert transformers.AutoModel.from_pretrained(tmp_path / "heat").config.vocab_size == found["tokens"]["after"]
    assert main(["trim", str(tmp_path / "heat"), *command[2:4], "--output", str(tmp_path / "again")]) == 2
    assert "compressed by heat_hf already" in capsys.readouterr().err


def test_prompts_and_lower_case_of_a_sentence_encoder(minilm: str, wordpiece: Any, tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    model = small_model("bert", head=False)
    model.resize_token_embeddings(len(wordpiece))
    model.save_pretrained(tmp_path / "plain")
    wordpiece.save_pretrained(tmp_path / "plain")
    first = st.sentence_transformer.modules.Transformer(str(tmp_path / "plain"))
    pooling = st.sentence_transformer.modules.Pooling(24, "mean")
    prompts = {"prompts": {"query": "represent this question: "}, "default_prompt_name": "query"}
    dense = st.SentenceTransformer(modules=[first, pooling], device="cpu", **prompts)
    dense.save_pretrained(str(tmp_path / "st"))
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    asked = ["trim", str(tmp_path / "st"), "--corpus-file", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "small")]
    assert main(asked) == 0
    small = st.SentenceTransformer(str(tmp_path / "small"), device="cpu")
    assert len(small.tokenizer) < len(wordpiece) / 10
    assert (small.encode(SENTENCES) == dense.encode(SENTENCES)).all()


def test_what_cannot_be_trimmed_stays_as_it_was(wordpiece: Any) -> None:
    model = small_model("bert")
    model.resize_token_embeddings(len(wordpiece))
    before = copy.deepcopy(model.state_dict())
    for tokenizer, texts, words in (
        (wordpiece, [], "there are no texts"),
        (transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())), SENTENCES, "this one is of BPE"),
        (transformers.CanineTokenizer(), SENTENCES, "this one is of CanineTokenizer"),
    ):
        with pytest.raises(ValueError, match=words):
            trim_vocabulary(model, tokenizer, texts)
    model.config.pad_token_id = 7  # [unused6], which no text has
    with pytest.raises(ValueError, match="the padding token 7 must keep its number"):
        trim_vocabulary(model, wordpiece, SENTENCES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    small = small_model("bert")
    with pytest.raises(ValueError, match="the model has the tokens 0 to 59"):
        trim_vocabulary(small, wordpiece, SENTENCES)
