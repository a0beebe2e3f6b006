"""`heat-hf export`."""

from __future__ import annotations

import argparse

from heat_hf.cli import options
from heat_hf.cli.values import loading, rows_of, show, single_rows, with_encoder
from heat_hf.hardware.machine.runtimes import RUNTIMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `export`."""
    parser.add_argument("model", help="Hub id or folder, dense or compressed")
    runtimes = " or ".join(name for name, runtime in RUNTIMES.items() if runtime.extra)  # the others take models as they are
    parser.add_argument("--runtime", default="onnxruntime", help=f"{runtimes} (default: %(default)s)")
    text = "for onnx/model.onnx or openvino/openvino_model.xml, with configuration, tokenizer and pooling"
    options.add_output(parser, "DIR", text, required=True)
    parser.add_argument("--int8", action="store_true", help="quantize the weights, per channel, and activations")
    options.add_ranges(parser, "--int8 with openvino")
    options.add_loading(parser)
    options.add_overwrite(parser)
    options.add_json(parser, "what was written")


def run(args: argparse.Namespace) -> int:
    """Export for a runtime, with the head that the checkpoint has."""
    from transformers import AutoConfig

    from heat_hf.encoders.checkpoints.storage import check_target
    from heat_hf.encoders.checkpoints.tokenizer import load_tokenizer
    from heat_hf.encoders.linears import model_class_of
    from heat_hf.hardware.machine.graphs import OPSET
    from heat_hf.integrations.exported import exported_kind
    from heat_hf.integrations.exporting import export_model, exported_bytes, require_exportable

    kind = exported_kind(args.runtime)
    require_exportable(kind, args.int8, args.calibration_file is not None)
    rows = rows_of(args, "calibration")
    check_target(args.output, args.overwrite)
    how, encoder = with_encoder(args.model, loading(args))
    model = model_class_of(AutoConfig.from_pretrained(args.model, **how)).from_pretrained(args.model, **how)
    tokenizer = load_tokenizer(args.model, **how)
    batches = single_rows(model, tokenizer, rows, encoder)
    path = export_model(kind, model, tokenizer, args.output, args.int8, args.overwrite, encoder, batches)
    size, precision = exported_bytes(kind, args.output), "int8" if args.int8 else "float32"
    written = {"file": str(path), "bytes": size, "runtime": args.runtime, "opset": OPSET, "int8": args.int8}
    show(args, written, f"exported: {path}, {size / 2**20:.1f} MiB, opset {OPSET}, {precision}")
    return 0
