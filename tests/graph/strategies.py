"""Small models out of a few operators, whose values are whole numbers that float32 holds: results agree to the bit."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

# All activations have this shape.
SHAPE = (2, 4, 2, 2)
UNARY, BINARY = ("Relu", "Neg", "Abs", "Identity", "Dropout"), ("Add", "Mul", "Max", "Sub")


def whole_numbers(shape: tuple[int, ...], limit: int) -> st.SearchStrategy[np.ndarray]:
    """Float32 arrays of whole numbers of at most this size."""
    generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)
    return generators.map(lambda rng: rng.integers(-limit, limit, shape, endpoint=True).astype(np.float32))


@st.composite
def models(draw: st.DrawFn, most_nodes: int = 10) -> ModelProto:
    """Chains and branches over activations and constants, the latter as initializers and as Constant nodes.

    Nodes are in order and have no names.
    """
    initializers = {"k": draw(whole_numbers(SHAPE[1:], 2)), "w": draw(whole_numbers((4, 4, 1, 1), 1))}
    inner = draw(whole_numbers((4, 1, 1), 1))
    nodes = [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(inner))]
    tensors, is_activation = ["x", "k", "c"], {"x": True, "k": False, "c": False}
    for number in range(draw(st.integers(1, most_nodes))):
        output = f"t{number}"
        op = draw(st.sampled_from(("Conv", *UNARY, *BINARY)))
        inputs = [draw(st.sampled_from(tensors[-5:]))]
        if op == "Conv":
            inputs = [draw(st.sampled_from([name for name in tensors if is_activation[name]])), "w"]
        elif op in BINARY:
            inputs.append(draw(st.sampled_from(tensors)))
        if op == "Mul":
            inputs[1] = draw(st.sampled_from(("k", "c")))  # products of activations would leave the whole numbers
        nodes.append(helper.make_node(op, inputs, [output]))
        is_activation[output] = any(is_activation.get(name, False) for name in inputs)
        tensors.append(output)
    activations = [name for name in tensors[1:] if is_activation[name]]
    nodes.append(helper.make_node("Conv", [activations[-1] if activations else "x", "w"], ["y"]))
    also = draw(st.lists(st.sampled_from(activations), unique=True, max_size=2)) if activations else []
    return make_model(nodes, ["y", *also], initializers)


@st.composite
def quantizable_models(draw: st.DrawFn, most_nodes: int = 6) -> ModelProto:
    """Convolutions, activation functions, residual Adds and pools, in order and with names; opset 21."""
    initializers: dict[str, np.ndarray] = {}
    nodes, tensors = [], ["x"]
    for number in range(draw(st.integers(1, most_nodes))):
        op = draw(st.sampled_from(("Conv", "Conv", "Relu", "Add", "MaxPool", "Neg")))
        inputs = [draw(st.sampled_from(tensors[-3:])) for _ in range(2 if op == "Add" else 1)]
        if op == "Conv":
            initializers[f"w{number}"] = draw(whole_numbers((4, 4, 1, 1), 1))
            initializers[f"b{number}"] = draw(whole_numbers((4,), 3))
            inputs += [f"w{number}", f"b{number}"]
        attributes = {"kernel_shape": [1, 1]} if op == "MaxPool" else {}
        nodes.append(helper.make_node(op, inputs, [f"t{number}"], name=f"n{number}", **attributes))
        tensors.append(f"t{number}")
    initializers["w"] = draw(whole_numbers((4, 4, 1, 1), 1))
    nodes.append(helper.make_node("Conv", [tensors[-1], "w"], ["y"], name="last"))
    also = draw(st.lists(st.sampled_from(tensors[1:]), unique=True, max_size=1))
    return make_model(nodes, ["y", *also], initializers, opset=21, ir=10)


def make_model(
    nodes: list[NodeProto], outputs: list[str], initializers: dict[str, np.ndarray], *, opset: int = 17, ir: int = 8
) -> ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", *outputs)]
    tensors = [numpy_helper.from_array(value, name) for name, value in initializers.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
