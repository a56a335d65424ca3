"""Take a part out of a graph as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from .index import Index, reads
from .shapes import infer_graph


def infer_types(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Element type and, if known, shape of every tensor, as inferred, or else as the file records it."""
    graphs = [model.graph, infer_graph(model) or model.graph]
    return {v.name: v for graph in graphs for v in (*graph.input, *graph.value_info, *graph.output)}


def extract(
    model: ModelProto,
    types: Mapping[str, ValueInfoProto],
    *,
    nodes: Iterable[str] | None = None,
    inputs: Sequence[str],
    outputs: Sequence[str],
    index: Index | None = None,
) -> ModelProto:
    """The model from the tensors ``inputs`` to the tensors ``outputs``: the nodes named, or all that ``outputs`` need.

    Nodes and the initializers that they read are copied. An input of unknown type is taken for float of any rank; an
    output of unknown type is left to onnxruntime. Nodes are told apart by name, so each needs its own. index: that of
    the model's graph, if the caller has it; the whole graph is not looked at then.
    """
    index = index or Index(model.graph)
    wanted = needed_nodes(index, inputs, outputs)
    if nodes is not None:
        wanted &= set(nodes)
    kept = [index.nodes[name] for name in sorted(wanted, key=index.position.__getitem__)]
    read = {tensor for node in kept for tensor in reads(node)}
    unknown = helper.make_empty_tensor_value_info
    graph = helper.make_graph(
        kept,
        model.graph.name or "block",
        [types.get(t) or helper.make_tensor_value_info(t, TensorProto.FLOAT, None) for t in inputs],
        [types.get(t) or unknown(t) for t in outputs],
    )
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    # Given to make_graph they would be copied twice.
    part.graph.initializer.extend(tensor for name, tensor in index.initializers.items() if name in read)
    return part


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
        stack.extend(t for t in reads(node) if t not in known)
    return names


def needed_inputs(index: Index, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Those of the tensors ``inputs`` that are among ``outputs`` or on which these depend."""
    names = needed_nodes(index, inputs, outputs)
    return [t for t in inputs if t in outputs or any(node.name in names for node in index.readers(t))]
