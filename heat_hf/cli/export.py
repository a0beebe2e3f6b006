"""`heat-hf export`."""

from __future__ import annotations

import argparse

from heat_hf.cli import options
from heat_hf.cli.values import loading, show, with_encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `export`."""
    parser.add_argument("model", help="Hub id or folder, dense or compressed")
    options.add_output(parser, "DIR", "for onnx/model.onnx, with configuration, tokenizer and pooling", required=True)
    parser.add_argument("--int8", action="store_true", help="quantize the weights, per channel, and activations as they come")
    options.add_loading(parser)
    options.add_overwrite(parser)
    options.add_json(parser, "what was written")


def run(args: argparse.Namespace) -> int:
    """Export to ONNX, with the head that the checkpoint has."""
    from transformers import AutoConfig

    from heat_hf.encoders.checkpoints.storage import check_target
    from heat_hf.encoders.checkpoints.tokenizer import load_tokenizer
    from heat_hf.encoders.linears import model_class_of
    from heat_hf.hardware.machine.graphs import OPSET
    from heat_hf.integrations.onnx import export_onnx

    check_target(args.output, args.overwrite)
    how, encoder = with_encoder(args.model, loading(args))
    model = model_class_of(AutoConfig.from_pretrained(args.model, **how)).from_pretrained(args.model, **how)
    tokenizer = load_tokenizer(args.model, **how)
    path = export_onnx(model, tokenizer, args.output, args.int8, args.overwrite, encoder)
    size = path.stat().st_size
    written = {"file": str(path), "bytes": size, "opset": OPSET, "int8": args.int8}
    show(args, written, f"exported: {path}, {size / 2**20:.1f} MiB, opset {OPSET}, {'int8' if args.int8 else 'float32'}")
    return 0
