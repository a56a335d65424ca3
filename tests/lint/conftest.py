"""A small quantized model that is sound for a target, and small edits that spoil it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

OPSETS = {"onnxruntime": 21, "qnn": 21, "openvino": 21, "tensorrt": 21, "xint8": 17, "symmetric": 17}
CONV = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1}
STEP, SUMS = 2.0**-4, 2.0**-10  # of activations, and of the products of conv1 and head


class Draft:
    """A model in the making, with methods that read and change it by the names of nodes and tensors."""

    def __init__(self, opset: int) -> None:
        self.model = helper.make_model(
            helper.make_graph([], "g", [], []), ir_version=10, opset_imports=[helper.make_opsetid("", opset)]
        )
        self.graph = self.model.graph

    def add(self, op: str, inputs: list[str], output: str, **attributes) -> str:
        self.graph.node.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def dequantize(self, name: str, integers, scale: float) -> str:
        """A DequantizeLinear NAME of a constant NAME_q."""
        zero = self.constant(f"{name}_z", np.zeros((), integers.dtype))
        scale = self.constant(f"{name}_s", np.float32(scale))
        return self.add("DequantizeLinear", [self.constant(f"{name}_q", integers), scale, zero], name)

    def pair(self, tensor: str, scale: float = STEP, made: str | None = None) -> str:
        """A QuantizeLinear TENSOR_q and a DequantizeLinear TENSOR_dq."""
        scales = [self.constant(f"{tensor}_{part}_s", np.float32(scale)) for part in ("q", "dq")]
        zeros = [self.constant(f"{tensor}_{part}_z", np.int8(0)) for part in ("q", "dq")]
        integers = self.add("QuantizeLinear", [tensor, scales[0], zeros[0]], f"{tensor}_q")
        return self.add("DequantizeLinear", [integers, scales[1], zeros[1]], made or f"{tensor}_dq")

    def node(self, name: str) -> NodeProto:
        return next(node for node in self.graph.node if node.name == name)

    def value(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(next(t for t in self.graph.initializer if t.name == name))

    def set(self, name: str, value, kind: int | None = None) -> None:
        """Replace a constant, as the element type ``kind`` where NumPy has it not."""
        tensor = next(t for t in self.graph.initializer if t.name == name)
        value = np.asarray(value)
        made = numpy_helper.from_array(value, name)
        if kind is not None:
            made = helper.make_tensor(name, kind, value.shape, value.reshape(-1).tolist())
        tensor.CopyFrom(made)

    def scale(self, tensor: str, scale: float) -> None:
        """Another scale for both nodes of a pair."""
        for part in ("q", "dq"):
            self.set(f"{tensor}_{part}_s", np.float32(scale))

    def drop(self, name: str) -> None:
        self.graph.node.remove(self.node(name))

    def give(self, tensor: str) -> None:
        """Another output of the graph."""
        self.graph.output.append(onnx.ValueInfoProto(name=tensor))


def add_bias(draft: Draft, target: str, name: str) -> str:
    if target == "tensorrt":
        return draft.constant(name, np.ones(2, np.float32))
    if target == "xint8":
        return draft.dequantize(name, np.full(2, 9, np.int8), 2.0**-6)
    return draft.dequantize(name, np.full(2, 9, np.int32), SUMS)


def draw_sound(target: str) -> Draft:
    """A residual network that keeps all the rules of a target."""
    draft = Draft(OPSETS[target])
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])
    draft.graph.input.append(image)
    draft.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2]))
    fed = draft.pair("x")
    kernel = draft.dequantize("w1", np.full((2, 2, 3, 3), 3, np.int8), 2.0**-6)
    draft.add("Conv", [fed, kernel, add_bias(draft, target, "b1")], "conv1", **CONV)
    active = draft.pair(draft.add("Relu", ["conv1"], "relu"))
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    pooled = draft.pair(draft.add("MaxPool", [active], "pool", **pool))
    kernel = draft.dequantize("w2", np.full((2, 2, 3, 3), 5, np.int8), 2.0**-7)
    mixed = draft.pair(draft.add("Conv", [pooled, kernel], "conv2", **CONV))
    joined = draft.pair(draft.add("Add", [mixed, pooled], "add"))
    gated = draft.pair(draft.add("Mul", [joined, mixed], "mul"))
    both = draft.pair(draft.add("Concat", [joined, gated], "concat", axis=1))
    mean = draft.pair(draft.add("GlobalAveragePool", [both], "mean"))
    flat = draft.pair(draft.add("Flatten", [mean], "flat"))
    weight = draft.dequantize("w3", np.full((2, 4), 7, np.int8), 2.0**-6)
    made = "y" if target == "tensorrt" else "scores"
    draft.add("Gemm", [flat, weight, add_bias(draft, target, "b3")], made, transB=1)
    if made != "y":
        draft.pair(made, made="y")
    return draft


@pytest.fixture
def sound() -> type:
    return draw_sound
