"""`heat-hf trim`."""

from __future__ import annotations

import argparse
import sys

from heat_hf.cli import options
from heat_hf.cli.values import loading, rows_of, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `trim`."""
    parser.add_argument("model", help="Hub id or folder of the dense checkpoint")
    options.add_rows(parser, "corpus", "texts like those the model will be given, in all text columns", required=True)
    options.add_output(parser, "DIR", "where to save; appears only when all is done", required=True)
    options.add_overwrite(parser)
    options.add_loading(parser)
    options.add_json(parser, "what was found")


def run(args: argparse.Namespace) -> int:
    """Leave a checkpoint with the tokens of a corpus."""
    from heat_hf.compression.loading import load_dense
    from heat_hf.encoders.checkpoints.folder import save_compressed
    from heat_hf.encoders.checkpoints.sentence_encoder import as_given
    from heat_hf.encoders.checkpoints.storage import check_target
    from heat_hf.encoders.rows import texts_in
    from heat_hf.encoders.vocabulary import trim_vocabulary

    check_target(args.output, args.overwrite)
    rows = rows_of(args, "corpus")
    assert rows is not None
    texts = texts_in(rows, "--corpus-file")
    loaded = load_dense(args.model, **loading(args))
    if loaded.tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer, and so no vocabulary")
    found = {"tokens": {"before": len(loaded.tokenizer)}, "parameters": {"before": loaded.model.num_parameters()}}
    smaller = trim_vocabulary(loaded.model, loaded.tokenizer, as_given(texts, loaded.encoder))
    found["tokens"]["after"], found["parameters"]["after"] = len(smaller), loaded.model.num_parameters()
    save_compressed(loaded.model, smaller, args.output, loaded.encoder.files, args.overwrite)
    lines = (f"{name}: {own['before']:,} → {own['after']:,}" for name, own in found.items())
    show(args, found, "\n".join(lines))
    print(f"saved to {args.output}; it loads without heat_hf, and can be compressed", file=sys.stderr)
    return 0
