"""Let a float16 model compute in float32; its inputs and outputs stay float16."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, TypeProto, helper

from ..edit import refill, rename, take_name
from ..index import list_names, subgraphs
from ..load import weight_types
from ..values import read_values
from ..weight_file import make_inside, make_tensor

FLOAT16, FLOAT32 = TensorProto.FLOAT16, TensorProto.FLOAT
# Attributes that name an element type.
TYPE_ATTRIBUTES = ("to", "dtype", "stash_type")


def widen_float16(model: ModelProto) -> int:
    """Make all float16 tensors float32 if layers have float16 weights; returns how many constants were rewritten.

    Each float16 input and output of the graph keeps its type, with a Cast behind or before it. With integer weights
    float16 saves nothing, and what lies between integer kernels is float32.
    """
    graph = model.graph
    if FLOAT16 not in weight_types(graph):
        return 0
    count = _widen_constants(graph, make_tensor)
    for value in graph.value_info:
        _widen_type(value.type)
    inputs = [value.name for value in graph.input if _is_float16(value.type)]
    outputs = [value.name for value in graph.output if _is_float16(value.type) and value.name not in inputs]
    taken = list_names(model)
    renamed: dict[str, str] = {}
    casts: dict[str, str] = {}
    for name in (*inputs, *outputs):
        renamed[name] = take_name(f"{name}.float32", taken)
        casts[name] = take_name(f"{renamed[name]}.cast", taken)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    rename(graph, renamed)
    nodes = [
        *(helper.make_node("Cast", [name], [renamed[name]], casts[name], to=FLOAT32) for name in inputs),
        *graph.node,
        *(helper.make_node("Cast", [renamed[name]], [name], casts[name], to=FLOAT16) for name in outputs),
    ]
    refill(graph.node, nodes)
    return count


def _widen_constants(graph: GraphProto, make: Callable[[str, np.ndarray], TensorProto] = make_inside) -> int:
    """Rewrite the constants and attributes of the graph and its bodies, and the types that bodies declare.

    make: makes an initializer of the graph.
    """
    count = sum(_widen_tensor(tensor, make) for tensor in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            tensors = (*((attribute.t,) if attribute.HasField("t") else ()), *attribute.tensors)
            count += sum(_widen_tensor(tensor, make_inside) for tensor in tensors)
            if attribute.name in TYPE_ATTRIBUTES and attribute.i == FLOAT16:
                attribute.i = FLOAT32
        for body in subgraphs(node):
            count += _widen_constants(body)
            for value in (*body.input, *body.output, *body.value_info):
                _widen_type(value.type)
    return count


def _widen_tensor(tensor: TensorProto, make: Callable[[str, np.ndarray], TensorProto]) -> bool:
    if tensor.data_type != FLOAT16:
        return False
    tensor.CopyFrom(make(tensor.name, read_values(tensor).astype(np.float32)))
    return True


def _widen_type(kind: TypeProto) -> None:
    if _is_float16(kind):
        kind.tensor_type.elem_type = FLOAT32
    for inner in (kind.sequence_type, kind.optional_type):
        if inner.HasField("elem_type"):
            _widen_type(inner.elem_type)


def _is_float16(kind: TypeProto) -> bool:
    return kind.WhichOneof("value") == "tensor_type" and kind.tensor_type.elem_type == FLOAT16
