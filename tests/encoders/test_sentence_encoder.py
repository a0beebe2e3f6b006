"""A checkpoint of sentence-transformers is compressed to one, with its pooling and normalization."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.encoders.checkpoints.sentence_encoder import sentence_encoder
from heat_hf.evaluation.tasks.sentence_similarity import sentence_embeddings

SENTENCES = ["A man is playing a guitar.", "Two dogs run on the beach.", "The market fell today."]


def test_sentence_transformers_loads_the_result(minilm: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    compressor = HeatCompressor.from_pretrained(minilm)
    compressor.compress(HeatConfig(target_params_ratio=0.6), save_directory=tmp_path / "heat")
    dense, loaded = SentenceTransformer(minilm, device="cpu"), SentenceTransformer(str(tmp_path / "heat"), device="cpu")
    assert [type(module) for module in loaded] == [type(module) for module in dense]
    assert loaded.max_seq_length == dense.max_seq_length == 256
    found = loaded.encode(SENTENCES)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    own = sentence_embeddings(compressor.model, compressor.tokenizer, SENTENCES).numpy()
    np.testing.assert_allclose(found, own, atol=1e-5)
    assert (found @ dense.encode(SENTENCES).T).argmax(1).tolist() == [0, 1, 2]


def test_a_transformer_in_a_subfolder(minilm: str, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(minilm, old / "0_Transformer")
    shutil.move(old / "0_Transformer" / "1_Pooling", old / "1_Pooling")
    modules = json.loads((old / "0_Transformer" / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(modules))
    found = sentence_encoder(old)
    assert found.subfolder == "0_Transformer"
    assert json.loads(found.files["modules.json"])[0]["path"] == ""
    assert json.loads(found.files["sentence_bert_config.json"])["max_seq_length"] == 256
    assert "1_Pooling/config.json" in found.files
    compressor = HeatCompressor.from_pretrained(old)
    assert compressor.tokenizer is not None and compressor.model.config.hidden_size == 384


def test_other_checkpoints_have_nothing_beside(tmp_path: Path) -> None:
    assert sentence_encoder(tmp_path).files == {}
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.WordEmbeddings", "path": ""}]))
    with pytest.raises(ValueError, match=r"must be a Transformer, got .*WordEmbeddings"):
        sentence_encoder(tmp_path)


def test_an_object_is_refused_with_what_to_do(minilm: str) -> None:
    from sentence_transformers import SentenceTransformer

    with pytest.raises(ValueError, match="got a SentenceTransformer; of a SentenceTransformer, name the folder or id"):
        HeatCompressor.from_pretrained(SentenceTransformer(minilm, device="cpu"))
