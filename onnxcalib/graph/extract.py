"""Cut a part out of a graph as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx import ModelProto, TensorProto, ValueInfoProto, helper, shape_inference

from .index import Index, captured


def infer_types(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Element type and, where known, shape of every tensor that shape inference reaches."""
    inferred = shape_inference.infer_shapes(model).graph
    return {v.name: v for v in (*inferred.input, *inferred.value_info, *inferred.output)}


def extract(
    model: ModelProto,
    types: dict[str, ValueInfoProto],
    *,
    nodes: Iterable[str] | None = None,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> ModelProto:
    """The model from the tensors ``inputs`` to the tensors ``outputs``: the nodes named, or all that ``outputs`` need.

    Node protos are shared by copy, initializers are included where read; ranks that inference does not know stay open.
    """
    index = Index(model.graph)
    wanted = needed_nodes(index, inputs, outputs)
    kept = [n for n in model.graph.node if n.name in wanted]
    if nodes is not None:
        allowed = set(nodes)
        kept = [n for n in kept if n.name in allowed]
    read = {t for n in kept for t in (*n.input, *captured(n))}
    graph = helper.make_graph(
        kept,
        model.graph.name or "block",
        [_value_info(types, t) for t in inputs],
        [_value_info(types, t) for t in outputs],
        [i for i in model.graph.initializer if i.name in read],
    )
    cut = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return cut


def needed_nodes(index: Index, inputs: Sequence[str], outputs: Sequence[str]) -> set[str]:
    """Names of the nodes on which ``outputs`` depend, going back no further than ``inputs``."""
    known = set(inputs)
    names: set[str] = set()
    stack = [t for t in outputs if t not in known]
    while stack:
        node = index.producer.get(stack.pop())
        if node is None or node.name in names:
            continue
        names.add(node.name)
        stack.extend(t for t in (*node.input, *captured(node)) if t and t not in known)
    return names


def _value_info(types: dict[str, ValueInfoProto], tensor: str) -> ValueInfoProto:
    known = types.get(tensor)
    if known is not None:
        return known
    return helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None)
