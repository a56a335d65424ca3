"""Count what a file holds: operators, constants by type, parameters, inputs and outputs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from ..contents import Dimension, OperatorRecord, PortRecord, TypeRecord
from ..graph.index import Index, all_nodes, index_graphs, is_op, own_constants, subgraphs
from ..graph.inspect.grids import spell_type
from ..graph.inspect.integers import LINEAR_DOMAINS, is_linear
from ..graph.inspect.layer_forms import LayerForm
from ..graph.ops import LINEAR_OPS, PACKED_WEIGHTS
from ..graph.scaled_weights import INTEGERS
from ..graph.tensors import list_graphs
from ..graph.values import count_bytes

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
# A Constant's attributes beside tensors: the type, and bytes of a value.
PLAIN_VALUES = {"value_float": ("float", 4), "value_floats": ("float", 4), "value_int": ("int64", 8),
                "value_ints": ("int64", 8), "value_string": ("string", 0), "value_strings": ("string", 0)}  # fmt: skip
# Operators between a constant of integers and what multiplies or looks up its values.
CARRIERS = ("Cast", "Reshape", "Transpose", "Gather", "Identity", "Add", "Mul", "Squeeze", "Unsqueeze")
# Numbers of the inputs that are scales and zero points, of the operators on integers whose names do not begin alike.
GRID_INPUTS = {
    "QLinearConv": (1, 2, 4, 5, 6, 7), "QLinearMatMul": (1, 2, 4, 5, 6, 7), "QGemm": (1, 2, 4, 5, 7, 8),
    "ConvInteger": (2, 3), "MatMulInteger": (2, 3), "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeMatMul": (2, 3), "QAttention": (3, 4, 6, 7), "DynamicQuantizeLSTM": (8, 9, 10, 11),
    "MatMulNBits": (2, 3, 4), "MatMulBnb4": (2,), "GatherBlockQuantized": (2, 3),
}  # fmt: skip
# Constants of operators on integers that are parameters: weights and biases.
INTEGER_INPUTS = {"QLinearConv": (3, 8), "QLinearMatMul": (0, 3), "QGemm": (3, 6), "ConvInteger": (1,),
                  "MatMulInteger": (1,), "MatMulIntegerToFloat": (1,), "DynamicQuantizeMatMul": (1,),
                  "QAttention": (1,), "DynamicQuantizeLSTM": (1, 2)}  # fmt: skip


def count_operators(model: ModelProto) -> tuple[OperatorRecord, ...]:
    """The operators of the graph, its bodies and its functions, those of ONNX first, the most frequent first."""
    found: Counter[tuple[str, str]] = Counter()
    inside: Counter[tuple[str, str]] = Counter()
    for node, is_inside in _list_nodes(model):
        key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        found[key] += 1
        inside[key] += is_inside
    ordered = sorted(found, key=lambda key: (key[0], -found[key], key[1]))
    return tuple(OperatorRecord(op, domain, found[domain, op], inside[domain, op]) for domain, op in ordered)


def count_types(model: ModelProto, external: Mapping[int, int]) -> tuple[TypeRecord, ...]:
    """The constants by element type, most bytes first. external: number of a type -> bytes in other files."""
    found: dict[str, TypeRecord] = {}

    def add(kind: str, values: int, size: int, *, in_nodes: bool, inside: bool) -> None:
        before = found.get(kind, TypeRecord(kind, 0, 0, 0))
        found[kind] = replace(
            before,
            tensors=before.tensors + 1,
            values=before.values + values,
            bytes=before.bytes + size,
            in_nodes=before.in_nodes + in_nodes * size,
            inside=before.inside + inside * size,
        )

    for tensor, in_nodes, inside in _list_stored(model):
        size = len(b"".join(tensor.string_data)) if tensor.data_type == TensorProto.STRING else count_bytes(tensor)
        add(spell_type(tensor.data_type), math.prod(tensor.dims), size, in_nodes=in_nodes, inside=inside)
    for attribute, inside in _list_plain(model):
        kind, width = PLAIN_VALUES[attribute.name]
        count = len(attribute.floats) or len(attribute.ints) or len(attribute.strings) or 1
        size = len(b"".join([attribute.s, *attribute.strings])) if kind == "string" else count * width
        add(kind, count, size, in_nodes=True, inside=inside)
    for number, size in external.items():
        kind = spell_type(number)
        found[kind] = replace(found[kind], external=size)
    return tuple(sorted(found.values(), key=lambda each: (-each.bytes, each.type)))


def _list_stored(model: ModelProto) -> Iterator[tuple[TensorProto, bool, bool]]:
    """Each tensor, whether an attribute holds it, and whether it is in a body or a function."""
    for graph in list_graphs(model):
        inside = graph is not model.graph
        sparse = (part for each in graph.sparse_initializer for part in (each.values, each.indices))
        yield from ((tensor, False, inside) for tensor in chain(graph.initializer, sparse))
    for node, inside in _list_nodes(model):
        for attribute in node.attribute:
            given = (attribute.t,) if attribute.HasField("t") else tuple(attribute.tensors)
            sparse = attribute.sparse_tensor
            given += (sparse.values, sparse.indices) if attribute.HasField("sparse_tensor") else ()
            yield from ((tensor, True, inside) for tensor in given)


def _list_plain(model: ModelProto) -> Iterator[tuple[AttributeProto, bool]]:
    """The attributes of Constants that hold numbers or texts without a tensor."""
    for node, inside in _list_nodes(model):
        if is_op(node, "Constant"):
            yield from ((each, inside) for each in node.attribute if each.name in PLAIN_VALUES)


def _list_nodes(model: ModelProto) -> Iterator[tuple[NodeProto, bool]]:
    """Every node, and whether it is in a body or a function."""
    for node in model.graph.node:
        yield node, False
        yield from ((inner, True) for body in subgraphs(node) for inner in all_nodes(body))
    for function in model.functions:
        yield from ((node, True) for node in all_nodes(function))


def count_parameters(model: ModelProto, forms: Iterable[LayerForm]) -> int:
    """Values of weights and biases: constant floats that are no scales, and integers that stand for floats.

    Of packed matrices the values count, in place of their bytes.
    """
    packed = {id(form.node): form.values for form in forms if form.node.op_type in PACKED_WEIGHTS}
    total = 0
    for graph, index in index_graphs(model.graph):
        own = own_constants(graph)
        index.initializers |= own
        grids, integers, bytes_of_packed = _list_roles(graph.node, index)
        for name, tensor in own.items():
            counts = name in integers or (tensor.data_type in FLOATS and name not in grids)
            total += math.prod(tensor.dims) if counts and name not in bytes_of_packed else 0
        counted = set[str]()
        for node in graph.node:
            stored = node.input[0 if node.op_type == "GatherBlockQuantized" else 1] if id(node) in packed else ""
            if stored and stored not in counted:
                counted.add(stored)
                total += packed[id(node)]
    return total


def _list_roles(nodes: Iterable[NodeProto], index: Index) -> tuple[set[str], set[str], set[str]]:
    """Names of scales and zero points, of integers that stand for weights or biases, and of packed matrices."""
    grids, integers, packed = set[str](), set[str](), set[str]()
    for node in nodes:
        op = node.op_type
        if is_linear(node, *LINEAR_OPS):
            grids.update(node.input[1:3])
            integers.add(_trace_constant(index, node.input[0]))
        elif is_op(node, "Mul"):  # integers times scales
            cast = index.producer.get(node.input[0])
            stored = _trace_constant(index, cast.input[0]) if cast is not None and is_op(cast, "Cast") else ""
            if stored and index.initializers[stored].data_type in INTEGERS:
                integers.add(stored)
                grids.add(_trace_constant(index, node.input[1]))
        elif node.domain in LINEAR_DOMAINS and op in GRID_INPUTS:
            grids.update(node.input[i] for i in GRID_INPUTS[op] if i < len(node.input))
            given = [node.input[i] for i in INTEGER_INPUTS.get(op, ()) if i < len(node.input)]
            integers.update(_trace_constant(index, name) for name in given)
            if op in PACKED_WEIGHTS:
                packed.update(node.input[:2])
        elif op.startswith("QLinear"):
            grids.update(name for name in node.input[1:] if name in index.initializers)
    return grids - {""}, integers - {""}, packed


def _trace_constant(index: Index, name: str) -> str:
    """The constant of which operators that move or cast values, or look rows up, make a tensor."""
    while name not in index.initializers:
        node = index.producer.get(name)
        if node is None or not is_op(node, *CARRIERS):
            return ""
        name = node.input[0]
    return name


def list_ports(values: Iterable[ValueInfoProto]) -> tuple[PortRecord, ...]:
    """Inputs or outputs in their order."""
    return tuple(map(_describe_port, values))


def _describe_port(value: ValueInfoProto) -> PortRecord:
    if not value.type.HasField("tensor_type"):
        return PortRecord(value.name, (value.type.WhichOneof("value") or "unknown").removesuffix("_type"), None)
    kind = value.type.tensor_type
    dims: list[Dimension] = []
    for dim in kind.shape.dim:
        fixed = dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        dims.append(fixed if fixed is not None else dim.dim_param or None)
    return PortRecord(value.name, spell_type(kind.elem_type), tuple(dims) if kind.HasField("shape") else None)
