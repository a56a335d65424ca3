"""Constant folding: what can be computed before any input is known becomes an initializer."""

from __future__ import annotations

import math

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, shape_inference
from onnx.reference import ReferenceEvaluator

from ..edit import add_constant, drop_dead, remove_at
from ..index import attribute_of, has_bodies, is_op
from ..ops import LAYERS, LINEAR_OPS, RANDOM_OPS, SHAPE_READERS
from ..shapes import INFERENCE_FAULTS, Shape, infer_shapes
from ..stream import tensor_bytes
from ..tensors import MOST_BYTES as MOST_TENSOR_BYTES
from ..values import is_outside, read_values

# A folded result that is larger than this, and than the operands that it is computed from, only makes the file larger.
MOST_BYTES = 1 << 20


def fold_constants(model: ModelProto) -> int:
    """Replace nodes whose operands are all constant by initializers of the same names; returns how many nodes went.

    Shape and Size are constant where the dimensions that they give are fixed, and a Gather of a Shape where those that
    it selects are. These nodes stay: random and quantizing operators, nodes with bodies or of other domains, nodes that
    make graph outputs, nodes with results above MOST_BYTES that are no layer's weight, results that are larger than any
    tensor may be, and nodes that onnx's reference evaluator cannot compute.
    """
    total = 0
    while True:
        shapes = infer_shapes(model)
        folded = _fold_once(model, shapes)
        total += folded
        # Folded operands may fix shapes of later tensors, which only Shape and Size turn into constants.
        if not folded or not any(node.op_type in SHAPE_READERS for node in model.graph.node):
            return total


def _fold_once(model: ModelProto, shapes: dict[str, Shape]) -> int:
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    weights = _weight_sources(graph)
    shape_values: dict[str, Shape] = {}
    folded = []
    for position, node in enumerate(graph.node):
        if not _foldable(node, outputs):
            continue
        results = _read_shape(node, shapes, shape_values, constants)
        if results is None and all(name in constants for name in node.input if name) and node.op_type != "Constant":
            operands = {name: constants[name] for name in node.input if name}
            results = _evaluate(model, node, operands, is_weight=not weights.isdisjoint(node.output))
        if results is None:
            continue
        for name, value in results.items():
            add_constant(graph, name, value)
            constants[name] = graph.initializer[-1]
        folded.append(position)
    remove_at(graph.node, folded)
    if folded:
        drop_dead(model)
    return len(folded)


def _foldable(node: NodeProto, outputs: set[str]) -> bool:
    # Folding QuantizeLinear and DequantizeLinear would hide that the model is quantized already.
    if node.domain or node.op_type in RANDOM_OPS + LINEAR_OPS or not outputs.isdisjoint(node.output):
        return False
    return not has_bodies(node)


def _weight_sources(graph: GraphProto) -> set[str]:
    """Tensors that are the weight or bias of a layer, or from which one is computed."""
    sources: set[str] = set()
    for node in reversed(graph.node):
        if is_op(node, *LAYERS):
            sources.update(name for name in node.input[1:] if name)
        if not sources.isdisjoint(node.output):
            sources.update(name for name in node.input if name)
    return sources


def _read_shape(
    node: NodeProto, shapes: dict[str, Shape], shape_values: dict[str, Shape], constants: dict[str, TensorProto]
) -> dict[str, np.ndarray] | None:
    """Value of a Shape, a Size or a Gather of a Shape from fixed dimensions; None for other nodes.

    shape_values: what the Shapes met so far give, unknown dimensions included; mutated.
    """
    if is_op(node, *SHAPE_READERS):
        if node.input[0] not in shapes:
            return None
        dims = shapes[node.input[0]]
        if node.op_type == "Size":
            size = _fixed(dims)
            return None if size is None else {node.output[0]: np.array(math.prod(size), dtype=np.int64)}
        dims = dims[attribute_of(node, "start", 0) : attribute_of(node, "end", len(dims))]
        shape_values[node.output[0]] = dims
        value_shape: tuple[int, ...] = (len(dims),)
    elif node.op_type == "Gather" and node.input[0] in shape_values and node.input[1] in constants:
        whole, indices = shape_values[node.input[0]], read_values(constants[node.input[1]])
        if not indices.size or indices.min() < -len(whole) or indices.max() >= len(whole):
            return None
        dims, value_shape = tuple(whole[number] for number in indices.reshape(-1)), indices.shape
    else:
        return None
    fixed = _fixed(dims)
    return None if fixed is None else {node.output[0]: np.array(fixed, dtype=np.int64).reshape(value_shape)}


def _fixed(dims: Shape) -> list[int] | None:
    """The dimensions where all of them are fixed."""
    fixed = [size for size in dims if size is not None]
    return fixed if len(fixed) == len(dims) else None


def _evaluate(
    model: ModelProto, node: NodeProto, operands: dict[str, TensorProto], *, is_weight: bool
) -> dict[str, np.ndarray] | None:
    """The node's outputs; None where they cannot be computed, are too large, or contradict shape inference."""
    names = [name for name in node.output if name]
    outside = [tensor for tensor in operands.values() if is_outside(tensor)]
    inputs = [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in outside]
    graph = helper.make_graph([node], "node", inputs, [helper.make_empty_tensor_value_info(name) for name in names])
    graph.initializer.extend(tensor for tensor in operands.values() if not is_outside(tensor))
    single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        single = shape_inference.infer_shapes(single, strict_mode=True)
    except INFERENCE_FAULTS:
        return None
    expected = {value.name: value.type.tensor_type for value in single.graph.output}
    room = MOST_TENSOR_BYTES if is_weight else max(MOST_BYTES, sum(map(tensor_bytes, operands.values())))
    if sum(_bytes(kind) for kind in expected.values()) > room:
        return None
    feeds = {tensor.name: read_values(tensor) for tensor in outside}
    try:
        with np.errstate(all="ignore"):
            values = ReferenceEvaluator(single).run(names, feeds)
    except Exception:  # the evaluator lets through whatever numpy or its own operators raise
        return None
    results = dict(zip(names, values, strict=True))
    if not all(_fits(results[name], expected[name]) for name in names):
        return None
    return results if sum(value.nbytes for value in results.values()) <= room else None


def _bytes(kind: TypeProto.Tensor) -> int:
    """Size of a tensor of that type, 0 where its shape is unknown."""
    if not _has_fixed_shape(kind):
        return 0
    itemsize = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).itemsize if kind.elem_type else 1
    return itemsize * math.prod(int(d.dim_value) for d in kind.shape.dim)


def _has_fixed_shape(kind: TypeProto.Tensor) -> bool:
    return kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim)


def _fits(value: object, kind: TypeProto.Tensor) -> bool:
    """Whether the evaluator's answer is an array of the inferred type and, where it is known, shape."""
    if not isinstance(value, (np.ndarray, np.generic)) or not kind.elem_type:
        return False
    if value.dtype != helper.tensor_dtype_to_np_dtype(kind.elem_type):
        return False
    if not _has_fixed_shape(kind):
        return True
    return value.shape == tuple(d.dim_value for d in kind.shape.dim)
