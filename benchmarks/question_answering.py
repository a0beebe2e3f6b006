"""What the question-answering recipe reached, its answers scored again by an independent implementation of SQuAD v1.1's script.

Takes the recipe's output folder; the card, its picture and the figures go to the model cards.

    python -m benchmarks.question_answering --run runs/squad --validation squad/validation.parquet
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torchmetrics.functional.text import squad as independent
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from benchmarks.provenance import provenance
from heat_hf import CompressionReport
from heat_hf.encoders.rows import load_rows
from heat_hf.evaluation.answers import predict_answers
from heat_hf.evaluation.metrics import load_metric
from recipes.evidence import write_json


def scored_twice(predictions: list[str], references: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Exact match and F1 in percent, ours and the other one's."""
    ours = load_metric("squad").compute(predictions=predictions, references=references)
    torch.set_default_dtype(torch.float64)  # else torchmetrics adds up in single precision
    try:
        answers = [{"prediction_text": text, "id": str(row)} for row, text in enumerate(predictions)]
        other = independent(answers, [{"answers": texts, "id": str(row)} for row, texts in enumerate(references)])
    finally:
        torch.set_default_dtype(torch.float32)
    return {"heat_hf": dict(ours), "torchmetrics": {name: float(value) for name, value in other.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--card", type=Path, default=Path("model_cards/minilm-squad-heat"))
    args = parser.parse_args()
    model, row = args.run / "model", json.loads((args.run / "metrics.json").read_text())
    data = load_rows(str(args.validation))
    student = AutoModelForQuestionAnswering.from_pretrained(model)
    answers = predict_answers(student, AutoTokenizer.from_pretrained(model), data["question"], data["context"])
    scores = scored_twice(answers, list(data["answers"]))
    dense = CompressionReport.load(model).model_parameters / 1e6
    results = {"row": row, "dense_params_M": dense, "scored_twice": scores, "questions": len(data)}
    command = f"{row['command']} && python -m benchmarks.question_answering --run runs/squad --validation FILE"
    write_json(args.results / "question_answering.json", {**provenance(command, "torch", "transformers"), **results})
    args.card.mkdir(parents=True, exist_ok=True)
    for name in ("README.md", "training.png"):
        shutil.copyfile(model / name, args.card / name)
    write_json(args.card / "metrics.json", row)
    print(scores)


if __name__ == "__main__":
    main()
