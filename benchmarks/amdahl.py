"""Where the time of a dense model and of a compressed one goes, by kind of operation, and how near to its bound the second is.

The bound is Amdahl's: the products of factorized matrices take as much less as they have fewer multiply-accumulates, attention
and activation functions as much less as they have fewer heads and neurons, and all else takes what it takes in the dense model.

    python -m benchmarks.amdahl --dense FOLDER --compressed FOLDER --output benchmarks/results/amdahl.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.machine import runs
from benchmarks.provenance import provenance
from heat_hf.encoders.between import between
from heat_hf.encoders.linears import encoder_linears, factorized_layers, model_class_of
from heat_hf.encoders.rows import load_rows
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware.machine.runtimes import in_bfloat16
from heat_hf.integrations.exported import EXPORTED
from heat_hf.integrations.exporting import written
from recipes.evidence import write_json

BATCH, LENGTH = 8, 128
PASSES = 20
PRODUCTS, ATTENTION, ACTIVATION, NORMS, REST = KINDS = ("products", "attention", "activation", "norms and sums", "rest")
OPERATIONS = {
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), PRODUCTS),
    **dict.fromkeys(("DynamicQuantizeLinear", "FullyConnected", "FullyConnectedQuantizedLegacy", "FakeQuantize"), PRODUCTS),
    # OpenVINO's subgraphs are attention, and what element-wise work it joins to it; GELU is part of its products.
    **dict.fromkeys(("Attention", "Subgraph"), ATTENTION),
    **dict.fromkeys(("BiasGelu", "Gelu"), ACTIVATION),
    **dict.fromkeys(("LayerNormalization", "Add", "Sum", "MVN", "MulAdd"), NORMS),
}  # others are the rest, as what moves and reshapes


def onnxruntime_times(path: Path, precision: str, feed: Mapping[str, Any]) -> Counter[str]:  # noqa: ARG001
    """Seconds of a pass by operation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_profiling = True
    options.profile_file_prefix = str(path.parent / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(PASSES):
        session.run(None, {wanted.name: feed[wanted.name] for wanted in session.get_inputs()})
    times: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += event["dur"] * 1e-6 / PASSES
    return times


def openvino_times(path: Path, precision: str, feed: Mapping[str, Any]) -> Counter[str]:
    """Seconds of a pass by operation; those of the first passes do not count."""
    import openvino

    half = "bf16" if in_bfloat16(precision) else "f32"
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": half, "PERF_COUNT": True}
    hints["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
    request = openvino.Core().compile_model(str(path), "CPU", hints).create_infer_request()
    times: Counter[str] = Counter()
    for number in range(PASSES + 2):
        request.infer({wanted.any_name: feed[wanted.any_name] for wanted in request.model_inputs})
        for node in request.profiling_info if number >= 2 else ():
            times[node.node_type] += node.real_time.total_seconds() / PASSES
    return times


PROFILES = {"onnxruntime": onnxruntime_times, "openvino": openvino_times}


def by_kind(times: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each of `KINDS`."""
    found = dict.fromkeys(KINDS, 0.0)
    for operation, seconds in times.items():
        found[OPERATIONS.get(operation, REST)] += seconds
    return found


def left(dense: Any, compressed: Any) -> dict[str, float]:
    """What is left of the multiply-accumulates, of the heads and of the neurons, as fractions."""
    linears, layers = encoder_linears(dense), factorized_layers(compressed)
    whole = sum(MatrixSize.of(linear).elements for linear in linears.values())
    now = sum(
        layers[name].setting.plan(BATCH * LENGTH).macs / (BATCH * LENGTH) if name in layers else MatrixSize.of(linear).elements
        for name, linear in linears.items()
    )
    before, after = Counter[str](), Counter[str]()
    for name, work in between(dense, linears, BATCH, LENGTH).items():
        kind, setting = ACTIVATION if work.activation else ATTENTION, layers[name].setting if name in layers else None
        before[kind] += work.features
        after[kind] += setting.rank[0] if setting is not None and setting.format == "fewer_inputs" else work.features
    return {PRODUCTS: now / whole} | {kind: after[kind] / before[kind] for kind in before}


def placed(folder: str, scratch: Path, rows: list[str]) -> tuple[Any, dict[str, Path]]:
    """A model, and its files for each way in which it is exported and runs here."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = model_class_of(transformers.AutoConfig.from_pretrained(folder)).from_pretrained(folder).eval()
    calibration = [dict(tokenizer([row], return_tensors="pt", truncation=True, max_length=LENGTH)) for row in rows]
    files = {}
    with written(model, tokenizer) as graph:
        for runtime, precision in (way for way in runs() if way[0] in EXPORTED):
            place = scratch / f"{runtime}-{precision}"
            graph.place(EXPORTED[runtime], place, precision == "int8", calibration)
            files[f"{runtime} {precision}"] = place / EXPORTED[runtime].file
    return model, files


def profiled(files: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Seconds by kind in each way."""
    ids = np.random.default_rng(0).integers(1000, 20000, (BATCH, LENGTH))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    found = {}
    for way, file in files.items():
        runtime, precision = way.split()
        times = PROFILES[runtime](file, precision, feed)
        found[way] = by_kind(times)
        print(way, {name: f"{1e3 * seconds:.2f} ms" for name, seconds in times.most_common(12)}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dense", required=True)
    parser.add_argument("--compressed", required=True)
    parser.add_argument("--text", type=Path, required=True, help="file of sentences, for the ranges of int8")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/amdahl.json"))
    args = parser.parse_args()
    rows = load_rows(args.text)["sentence"][:200]
    with tempfile.TemporaryDirectory() as scratch:
        dense, first = placed(args.dense, Path(scratch) / "dense", rows)
        compressed, second = placed(args.compressed, Path(scratch) / "compressed", rows)
        print("timing", flush=True)
        before, after = profiled(first), profiled(second)
    parts, ways = left(dense, compressed), {}
    for way, kinds in before.items():
        least = sum(seconds * parts.get(kind, 1.0) for kind, seconds in kinds.items())
        whole = sum(kinds.values())
        ways[way] = {
            "dense": kinds,
            "compressed": after[way],
            "bound": whole / least,
            "speedup": whole / sum(after[way].values()),
        }
    command = "python -m benchmarks.amdahl --dense FOLDER --compressed FOLDER --text FILE --output FILE"
    about = {**provenance(command, "torch", "onnxruntime", "openvino"), "threads": torch.get_num_threads(), "left": parts}
    write_json(args.output, {**about, "ways": ways})


if __name__ == "__main__":
    main()
