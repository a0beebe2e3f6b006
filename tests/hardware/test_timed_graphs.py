"""What is timed in ONNX Runtime is what an exported model runs, in float32 and in int8."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from heat_hf import TensorSetting, TensorShape
from heat_hf.formats.size import MatrixSize

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import numpy as np
import onnx
import onnxruntime
import torch

from heat_hf.hardware.between import Between
from heat_hf.hardware.machine.attention import of_three_axes
from heat_hf.hardware.machine.graphs import by_hand, by_pytorch, onnx_stack, openvino_stack, quantize, stack_graph
from heat_hf.hardware.machine.layers import COPIED_TOKENS, Stack, copies
from heat_hf.hardware.machine.runtimes import has_bfloat16, openvino_compiled, openvino_tensor

SIZE = MatrixSize(48, 64)
PLAIN = ["low_rank", "pivoted", "fewer_outputs", "fewer_inputs", "shared_basis", "on_basis"]
SUBJECTS = {"dense": SIZE} | {name: TensorSetting(name, TensorShape.matrix(*SIZE), (16,)) for name in PLAIN}


def stack(name: str) -> Stack:
    """One copy."""
    return Stack(SUBJECTS[name], COPIED_TOKENS)


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def outputs(path: Path, own: Stack) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {f"x{number}": x.numpy() for number, x in enumerate(own.inputs)})


@pytest.mark.parametrize("name", SUBJECTS)
def test_by_hand_as_by_pytorch(name: str, tmp_path: Path) -> None:
    """The same kinds of nodes as often, also in int8, and the same figures as the layer."""
    own = stack(name)
    (tmp_path / "hand").write_bytes(by_hand(own).SerializeToString())
    by_pytorch(own, tmp_path / "torch")
    assert kinds(tmp_path / "hand") == kinds(tmp_path / "torch")
    (wanted,) = own(*own.inputs)
    for file in ("hand", "torch"):
        np.testing.assert_allclose(outputs(tmp_path / file, own)[0], wanted.numpy(), atol=1e-4)
        quantize(tmp_path / file, tmp_path)
    assert kinds(tmp_path / "hand") == kinds(tmp_path / "torch")
    assert "DynamicQuantizeLinear" in kinds(tmp_path / "hand")


def test_copies_have_weights_of_their_own(tmp_path: Path) -> None:
    own = Stack(SUBJECTS["low_rank"], 8)
    stack_graph(SUBJECTS["low_rank"], 8, tmp_path / "stack")
    assert len(own.layers) == copies(SIZE, 8) == 16 and kinds(tmp_path / "stack")["MatMul"] == 32
    assert len({float(layer(own.inputs[0]).sum()) for layer in own.layers}) == 16
    assert {x.data_ptr() for x in own.inputs} == {Stack(SIZE, 4).inputs[0].data_ptr()}, "inputs are in the cache, as in a model"
    for found, wanted in zip(outputs(tmp_path / "stack", own), own(*own.inputs), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_other_formats_are_exported(tmp_path: Path) -> None:
    cp = TensorSetting("cp", TensorShape.parse("48:8x8", *SIZE), (4,))
    own = Stack(cp, COPIED_TOKENS)
    stack_graph(cp, COPIED_TOKENS, tmp_path / "stack")
    (wanted,) = own(*own.inputs)
    np.testing.assert_allclose(outputs(tmp_path / "stack", own)[0], wanted.numpy(), atol=1e-4)
    small = tmp_path / "int8"
    small.write_bytes(onnx_stack(SUBJECTS["low_rank"], COPIED_TOKENS, int8=True))
    assert "DynamicQuantizeLinear" in kinds(small)


def test_attention_is_what_an_exported_model_runs(tmp_path: Path) -> None:
    """One operation with a mask, of three inputs; what it answers is what heads do with them."""
    attention = Between(3, 8, "", 2, 5)
    own = Stack(attention, 10)
    stack_graph(attention, 10, tmp_path / "stack")
    nodes = [node for node in onnx.load(tmp_path / "stack").graph.node if node.op_type == "Attention"]
    assert len(nodes) == len(own.layers) == 16 and all(len(node.input) == 4 for node in nodes)
    random = np.random.default_rng(0).normal(size=(3, 2, 5, 24)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "stack"), providers=["CPUExecutionProvider"])
    found = session.run(None, {f"x{number}": random[number % 3] for number in range(48)})
    query, key, value = (x.reshape(2, 5, 3, 8).transpose(0, 2, 1, 3) for x in random)
    weights = np.exp(query @ key.swapaxes(-1, -2) / 8**0.5)
    wanted = weights / weights.sum(-1, keepdims=True) @ value
    np.testing.assert_allclose(found[-1], wanted.transpose(0, 2, 1, 3).reshape(2, 5, 24), atol=1e-5)
    (tmp_path / "flat").write_bytes(onnx_stack(attention, 10, int8=False))
    assert kinds(tmp_path / "stack")["Transpose"] == 64 and "Transpose" not in kinds(tmp_path / "flat")
    of_three_axes(tmp_path / "flat")  # has nothing left to do
    flat = onnxruntime.InferenceSession(str(tmp_path / "flat"), providers=["CPUExecutionProvider"])
    assert [own.name for own in flat.get_outputs()] == [own.name for own in session.get_outputs()]
    again = flat.run(None, {f"x{number}": random[number % 3] for number in range(48)})
    np.testing.assert_allclose(again, found, atol=1e-6)


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no instructions for bfloat16")
def test_layers_read_and_answer_bfloat16_in_openvino() -> None:
    """As in a model that computes in it, where nothing is converted between layers."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install 'heat-hf[openvino]'")
    own = Stack(SIZE, COPIED_TOKENS)
    model = openvino_compiled(openvino_stack(SIZE, COPIED_TOKENS, int8=False, bfloat16=True), threads=1, bfloat16=True)
    kinds = {port.get_element_type() for port in (*model.inputs, *model.outputs)}
    assert kinds == {openvino.Type.bf16}
    request = model.create_infer_request()
    for number, x in enumerate(own.inputs):
        request.set_input_tensor(number, openvino_tensor(x, bfloat16=True))
    request.infer()
    found = torch.from_numpy(request.get_output_tensor(0).data.view("int16").copy()).view(torch.bfloat16)
    torch.testing.assert_close(found.float(), own(*own.inputs)[0].reshape(found.shape), atol=0.05, rtol=0.02)


def test_pivots_are_put_in_their_places_when_a_file_is_loaded(tmp_path: Path) -> None:
    """Not in every forward pass, where that takes longer than the dense layer."""
    own = Stack(TensorSetting("pivoted", TensorShape.matrix(384, 384), (96,)), COPIED_TOKENS)
    by_pytorch(own, tmp_path / "stack")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized")
    onnxruntime.InferenceSession(str(tmp_path / "stack"), options, providers=["CPUExecutionProvider"])
    assert kinds(tmp_path / "optimized") == {"MatMul": 2, "Add": 1}
    assert kinds(tmp_path / "stack")["MatMul"] == 2
