"""Constant folding: what can be computed before any input is known becomes an initializer."""

from __future__ import annotations

import math

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from ..edit import drop_dead
from ..index import subgraphs
from ..ops import LAYERS, LINEAR_OPS, RANDOM_OPS
from ..shapes import Shape, infer_shapes

# A folded result that is larger than this, and than the operands it came from, would only swell the file.
MOST_BYTES = 1 << 20


def fold_constants(model: ModelProto) -> int:
    """Replace nodes whose operands are all constant by initializers of the same names; returns how many nodes went.

    Shape and Size are constant where the dimensions they tell are fixed, and a Gather of a Shape where those it picks
    are. Left alone: random and quantizing operators, nodes with bodies or of other domains, those that make graph
    outputs, results above MOST_BYTES unless they are a layer's weight, and what onnx's reference evaluator cannot
    compute.
    """
    total = 0
    while True:
        shapes = infer_shapes(model)
        folded = _fold_once(model, shapes)
        total += folded
        # Folded operands may fix shapes further on, which only Shape and Size can turn into constants.
        if not folded or not any(node.op_type in ("Shape", "Size") for node in model.graph.node):
            return total


def _fold_once(model: ModelProto, shapes: dict[str, Shape]) -> int:
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    weights = _weight_sources(graph)
    told: dict[str, Shape] = {}
    folded = []
    for place, node in enumerate(graph.node):
        if not _foldable(node, outputs):
            continue
        results = _tell_shape(node, shapes, told, constants)
        if results is None and all(name in constants for name in node.input if name) and node.op_type != "Constant":
            operands = {name: constants[name] for name in node.input if name}
            results = _evaluate(model, node, operands, is_weight=not weights.isdisjoint(node.output))
        if results is None:
            continue
        for name, value in results.items():
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
            constants[name] = graph.initializer[-1]
        folded.append(place)
    for place in reversed(folded):
        del graph.node[place]
    if folded:
        drop_dead(model)
    return len(folded)


def _foldable(node: NodeProto, outputs: set[str]) -> bool:
    # Folding QuantizeLinear and DequantizeLinear would hide that the model is quantized already.
    if node.domain or node.op_type in RANDOM_OPS + LINEAR_OPS or not outputs.isdisjoint(node.output):
        return False
    return not any(True for _ in subgraphs(node))


def _weight_sources(graph: GraphProto) -> set[str]:
    """Tensors that the weight or the bias of some layer is, or is computed from."""
    sources: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in LAYERS and not node.domain:
            sources.update(name for name in node.input[1:] if name)
        if not sources.isdisjoint(node.output):
            sources.update(name for name in node.input if name)
    return sources


def _tell_shape(
    node: NodeProto, shapes: dict[str, Shape], told: dict[str, Shape], constants: dict[str, TensorProto]
) -> dict[str, np.ndarray] | None:
    """Value of a Shape, a Size or a Gather of a Shape from fixed dimensions; ``told`` remembers what Shapes tell."""
    if node.op_type in ("Shape", "Size"):
        if node.input[0] not in shapes:
            return None
        dims = shapes[node.input[0]]
        if node.op_type == "Size":
            return None if None in dims else {node.output[0]: np.array(math.prod(dims), dtype=np.int64)}
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        dims = dims[bounds.get("start", 0) : bounds.get("end", len(dims))]
        told[node.output[0]] = dims
        return None if None in dims else {node.output[0]: np.array(dims, dtype=np.int64)}
    if node.op_type == "Gather" and node.input[0] in told and node.input[1] in constants:
        dims = told[node.input[0]]
        places = numpy_helper.to_array(constants[node.input[1]])
        if not places.size or places.min() < -len(dims) or places.max() >= len(dims):
            return None
        picked = [dims[place] for place in places.reshape(-1)]
        if None not in picked:
            return {node.output[0]: np.array(picked, dtype=np.int64).reshape(places.shape)}
    return None


def _evaluate(
    model: ModelProto, node: NodeProto, operands: dict[str, TensorProto], *, is_weight: bool
) -> dict[str, np.ndarray] | None:
    """The node's outputs, or None where they are unknown, too large, or not of the type and shape they should have."""
    names = [name for name in node.output if name]
    graph = helper.make_graph([node], "node", [], [helper.make_empty_tensor_value_info(name) for name in names])
    graph.initializer.extend(operands.values())
    single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        single = shape_inference.infer_shapes(single, strict_mode=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        return None
    expected = {value.name: value.type.tensor_type for value in single.graph.output}
    room = math.inf if is_weight else max(MOST_BYTES, sum(tensor.ByteSize() for tensor in operands.values()))
    if sum(_bytes(kind) for kind in expected.values()) > room:
        return None
    try:
        with np.errstate(all="ignore"):
            values = ReferenceEvaluator(single).run(names, {})
    except Exception:  # the evaluator passes on whatever numpy or its own operators raise
        return None
    results = dict(zip(names, values, strict=True))
    if not all(_fits(results[name], expected[name]) for name in names):
        return None
    return results if sum(value.nbytes for value in results.values()) <= room else None


def _bytes(kind: TypeProto.Tensor) -> int:
    """Size of a tensor of that type, 0 where its shape is unknown."""
    if not kind.HasField("shape") or any(not d.HasField("dim_value") for d in kind.shape.dim):
        return 0
    itemsize = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).itemsize if kind.elem_type else 1
    return itemsize * math.prod(d.dim_value for d in kind.shape.dim)


def _fits(value: object, kind: TypeProto.Tensor) -> bool:
    """Whether the evaluator's answer is an array of the inferred type and, where it is known, shape."""
    if not isinstance(value, (np.ndarray, np.generic)) or not kind.elem_type:
        return False
    if value.dtype != helper.tensor_dtype_to_np_dtype(kind.elem_type):
        return False
    if not kind.HasField("shape") or any(not d.HasField("dim_value") for d in kind.shape.dim):
        return True
    return value.shape == tuple(d.dim_value for d in kind.shape.dim)
