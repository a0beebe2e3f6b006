"""ONNX graphs: written by PyTorch, or, in a thousandth of the time, by hand for layers that are plain linears inside."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor, nn

from heat_hf.formats.layer import FactorizedLinear
from heat_hf.hardware.machine.attention import of_three_axes
from heat_hf.hardware.machine.layers import Stack, Subject, inputs

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OPSET = 23  # the first that has attention as one operation, which runtimes have a kernel for
IR_VERSION = 10  # that PyTorch writes


def export(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, **options: Any) -> None:
    """Let PyTorch write a module as ONNX.

    Args:
        module: tensors in, a tuple of tensors out.
        inputs: examples.
        path: of the file.
        **options: names and dynamic shapes, as `torch.onnx.export` takes them.
    """
    from onnxscript.optimizer import optimize_ir

    with _quiet():
        # Its own optimization would also join rotary embeddings, to an operation that ONNX Runtime does not run as written.
        options |= {"dynamo": True, "verbose": False, "optimize": False, "opset_version": OPSET}
        program = torch.onnx.export(module, inputs, **options)
        assert program is not None
        optimize_ir(program.model)
    _adapt(program.model)
    program.save(str(path), external_data=False)


def _adapt(model: Any) -> None:  # noqa: ANN401 - of onnx_ir
    """What PyTorch writes as what runs faster, and without the paths of this machine, which it notes for debugging.

    ONNX Runtime makes one node of an addition and the layer norm behind it, whose kernel takes ten times as long as both: it
    does not do so with a sum.
    """
    for node in model.graph:
        node.metadata_props.clear()
        readers = {user.op_type for output in node.outputs for user, _ in output.uses()}
        if node.op_type == "Add" and "LayerNormalization" in readers:
            node.op_type = "Sum"


def quantize(path: Path, scratch: Path) -> None:
    """Weights of all products in int8, per channel, in the place of a float32 model; activations are quantized as they come.

    Args:
        path: of the model.
        scratch: folder for a copy.
    """
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic
    from onnxruntime.quantization.registry import IntegerOpsRegistry

    prepared = scratch / f"prepared-{path.name}"
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    # Weights of 7 bits: on CPUs without VNNI the sum of two products of 8 bits overflows (seen: outputs without meaning).
    options = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    # It would take ONNX's attention for ONNX Runtime's own, an older operation of the same name.
    kinds = [kind for kind in IntegerOpsRegistry if kind != "Attention"]
    quantize_dynamic(str(prepared), str(path), op_types_to_quantize=kinds, **options)


def openvino_quantized(
    model: Any,  # noqa: ANN401
    rows: Sequence[Mapping[str, Any]],
    bars: TextIO | None = None,
    corrected: bool = True,
) -> Any:  # noqa: ANN401
    """A model of OpenVINO in int8: weights per channel, activations by the ranges that they have on the rows (static).

    Args:
        model: in float32.
        rows: what it takes.
        bars: where progress is shown.
        corrected: whether biases make up for what the products lose; no time hangs on that, but that of quantizing.
    """
    os.environ.setdefault("NNCF_CI", "1")  # sends no statistics of the model
    import nncf

    nncf.set_log_level(logging.WARNING)
    with contextlib.redirect_stdout(bars or io.StringIO()):  # its progress bars
        more = nncf.AdvancedQuantizationParameters(disable_bias_correction=not corrected)
        return nncf.quantize(
            model,
            nncf.Dataset(rows),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(rows),
            advanced_parameters=more,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that it does not need, and of axes that share a name on purpose."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def stack_graph(subject: Subject, tokens: int, path: Path) -> None:
    """Write a stack of layers as ONNX, by hand where that can be; inputs are called x0, x1 and so on."""
    stack = Stack(subject, tokens)
    if all(map(_is_plain, stack.layers)):
        path.write_bytes(by_hand(stack).SerializeToString())
    else:
        by_pytorch(stack, path)


@lru_cache(maxsize=16)  # a race that is run again has them again
def onnx_stack(subject: Subject, tokens: int, int8: bool) -> bytes:
    """A stack of layers for ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stack.onnx"
        stack_graph(subject, tokens, path)
        of_three_axes(path)
        if int8:
            quantize(path, Path(folder))
        return path.read_bytes()


@lru_cache(maxsize=16)
def openvino_stack(subject: Subject, tokens: int, int8: bool, bfloat16: bool) -> Any:  # noqa: ANN401
    """A stack of layers for OpenVINO; with `bfloat16` that is what they read and answer, as in a model that computes in it."""
    import openvino
    from openvino.preprocess import PrePostProcessor

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stack.onnx"
        stack_graph(subject, tokens, path)
        model = openvino.Core().read_model(path.read_bytes())
    feed = {f"x{number}": x.numpy() for number, x in enumerate(inputs(subject, tokens))}
    model = openvino_quantized(model, [feed], corrected=False) if int8 else model
    if not bfloat16:
        return model
    around = PrePostProcessor(model)
    for number in range(len(model.inputs)):
        around.input(number).tensor().set_element_type(openvino.Type.bf16)
    for number in range(len(model.outputs)):
        around.output(number).tensor().set_element_type(openvino.Type.bf16)
    return around.build()


def by_pytorch(stack: Stack, path: Path) -> None:
    """As models are exported, for any number of rows and tokens: with extents that are known graphs become others."""
    examples = tuple(x.new_zeros(2, 3, x.shape[-1]) for x in stack.inputs)
    free = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    names = [f"x{number}" for number in range(len(examples))]
    export(stack, examples, path, input_names=names, dynamic_shapes={"inputs": (free,) * len(names)})


def by_hand(stack: Stack) -> ModelProto:
    """The graph that PyTorch would write: every linear a product with a bias of its own node."""
    from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

    nodes: list[NodeProto] = []
    weights, inputs, outputs = [], list[ValueInfoProto](), list[ValueInfoProto]()
    for number, (layer, x) in enumerate(zip(stack.layers, stack.inputs, strict=True)):
        own, values = _nodes(layer, f"x{number}", f"y{number}")
        nodes += own
        weights += [numpy_helper.from_array(value.numpy(), name) for name, value in values.items()]
        for name, features, all_of in ((f"x{number}", x.shape[-1], inputs), (f"y{number}", None, outputs)):
            all_of.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "tokens", features]))
    graph = helper.make_graph(nodes, "stack", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _is_plain(layer: nn.Module) -> bool:
    cores = (name.startswith("core_") for name, _ in layer.named_parameters(recurse=False))
    return isinstance(layer, (nn.Linear, FactorizedLinear)) and not any(cores)


def _nodes(layer: nn.Module, x: str, y: str) -> tuple[list[NodeProto], dict[str, Tensor]]:
    """Nodes of one layer, and its weights by name."""
    from onnx import helper

    nodes: list[NodeProto] = []
    weights: dict[str, Tensor] = {}

    def add(kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{y}_{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def weight(value: Tensor) -> str:
        name = f"{y}_w{len(weights)}"
        weights[name] = value.detach().contiguous()
        return name

    linears = [layer] if isinstance(layer, nn.Linear) else [child for child in layer.children() if isinstance(child, nn.Linear)]
    matrices = [linear.weight for linear in linears]
    if hasattr(layer, "order"):  # with the rows of the pivots, which runtimes put there when they load an exported model
        matrices[1], _ = layer.setting.codec.solved(layer.cores)  # type: ignore[union-attr, operator]
    result = x
    for matrix in matrices:
        result = add("MatMul", [result, weight(matrix.T)])
    add("Add", [result, weight(layer.bias)])  # type: ignore[arg-type]
    nodes[-1].output[0] = y
    return nodes, weights
