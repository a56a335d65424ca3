"""The structure of a model before anything reads what it means: texts, names, types, and nodes as operators allow.

onnxruntime refuses most of this too, but not before a run's samples are read, and not by the name of what is at fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from google.protobuf.message import Message
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    checker,
    defs,
)

from ..errors import ModelError, first_line
from .index import all_graphs, all_nodes, has_bodies, in_scope, is_op, own_constants, subgraphs
from .tensors import ADVICE, MOST_ELEMENTS, check_type, is_text, spell_node
from .values import read_values

# Exporters write -1 for a dimension that is not fixed.
UNKNOWN_DIM = -1
STANDARD = ("", "ai.onnx")
# What may hold the value of a Constant.
_KINDS = AttributeProto.AttributeType
VALUES = {
    "value": _KINDS.Value("TENSOR"),
    **{f"value_{kind.lower()}": _KINDS.Value(kind) for kind in ("FLOAT", "FLOATS", "INT", "INTS", "STRING", "STRINGS")},
}
# Of a graph with the bodies of its functions in place of their calls.
MOST_NODES = 10**6
# At a nanosecond each, 30 years. Exporters write the largest int64 for a loop that its condition ends.
MOST_TRIPS = 10**18
# onnx's check of a node would search bodies for what they read from outside.
_NO_BODY = GraphProto(name="body")


def check_texts(model: ModelProto, where: str) -> None:
    """Raise ModelError for a text that is not UTF-8, which Python's protobuf gives as bytes."""
    bad = next(_find_bytes(model), None)
    if bad is not None:
        raise ModelError(f"{where}: a name or text that is not UTF-8 found, {bad[:40]!r}; {ADVICE}")


def _find_bytes(message: Message) -> Iterator[bytes]:
    for field, value in _set_fields(message):
        if field.type == field.TYPE_STRING:
            texts = (value,) if isinstance(value, (str, bytes)) else value
            yield from (text for text in texts if isinstance(text, bytes))
        elif field.type == field.TYPE_MESSAGE:
            for inner in (value,) if isinstance(value, Message) else value:
                yield from _find_bytes(inner)


def _set_fields(message: Message) -> Any:
    """As ``ListFields``, which would copy the values of a tensor."""
    if not isinstance(message, TensorProto):
        return message.ListFields()
    named = ("name", "doc_string", "external_data")
    return [(message.DESCRIPTOR.fields_by_name[name], getattr(message, name)) for name in named]


def check_structure(model: ModelProto, where: str) -> None:
    """Raise ModelError for names that are missing or given twice, impossible types, and nodes against their operator.

    What functions do is not checked here. Dimensions of -1, which stand for any, are left out: mutates the model.
    """
    keys = [entry.key for entry in model.metadata_props]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ModelError(f"{where}: metadata {twice[:100]!r} are given twice; every key is needed once; {ADVICE}")
    for graph in all_graphs(model.graph):
        _check_names(graph, where)
        for kind, values in (("input", graph.input), ("output", graph.output), ("tensor", graph.value_info)):
            for value in values:
                _check_type(
                    value.type, f"{where}: {kind} {value.name}", known=graph is model.graph and kind != "tensor"
                )
    _check_calls(model, where)
    _check_nodes(model, where)
    _check_loops(model.graph, where, {})


def _check_names(graph: GraphProto, where: str) -> None:
    """Raise ModelError where a tensor of one graph has no name, or two makers."""
    inputs, stored = ([value.name for value in values] for values in (graph.input, graph.initializer))
    made = [(f"node {spell_node(node)}", name) for node in graph.node for name in node.output if name]
    makers: dict[str, str] = {}
    for maker, name in [*(("initializers", name) for name in stored), *made]:
        if name in makers:
            raise ModelError(f"{where}: tensor {name} is made twice, by {makers[name]} and {maker}; {ADVICE}")
        makers[name] = maker
    fed = set(inputs)
    if len(fed) < len(inputs):
        twice = next(name for name in inputs if inputs.count(name) > 1)
        raise ModelError(f"{where}: input {twice} is listed twice; every input needs a name of its own; {ADVICE}")
    for maker, name in made:
        if name in fed:
            raise ModelError(f"{where}: tensor {name} is made twice, as an input and by {maker}; {ADVICE}")
    outputs = [value.name for value in graph.output]
    for kind, names in (("input", inputs), ("initializer", stored), ("output", outputs)):
        if "" in names:
            raise ModelError(f"{where}: graph {graph.name}: an {kind} without a name found; {ADVICE}")


def _check_type(kind: TypeProto, where: str, *, known: bool) -> None:
    """Raise ModelError for an element type or a dimension that cannot be; a type that must be known is not 0."""
    which = kind.WhichOneof("value")
    if which in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(kind, which)
        if tensor.elem_type or known:
            check_type(tensor.elem_type, where)
        for dim in tensor.shape.dim:
            if dim.dim_value == UNKNOWN_DIM:
                dim.ClearField("dim_value")
            elif not 0 <= dim.dim_value <= MOST_ELEMENTS:
                raise ModelError(
                    f"{where}: dimension {dim.dim_value} found; 0 to {MOST_ELEMENTS:,} are allowed; {ADVICE}"
                )
    elif which in ("sequence_type", "optional_type"):
        _check_type(getattr(kind, which).elem_type, where, known=False)
    elif which == "map_type":
        _check_type(kind.map_type.value_type, where, known=False)


def _check_calls(model: ModelProto, where: str) -> None:
    """Raise ModelError for functions that call each other so often that the whole graph fits nowhere."""
    functions = {(function.domain, function.name): function for function in model.functions}
    called = {key: [(n.domain, n.op_type) for n in all_nodes(function)] for key, function in functions.items()}
    sizes: dict[tuple[str, str], int] = {}
    try:
        for key in TopologicalSorter({key: set(calls) & set(called) for key, calls in called.items()}).static_order():
            sizes[key] = sum(sizes.get(each, 1) for each in called[key])
    except CycleError:  # onnx names the functions of the cycle
        return
    whole = sum(sizes.get((node.domain, node.op_type), 1) for node in all_nodes(model.graph))
    if sizes and whole > MOST_NODES:
        raise ModelError(
            f"{where}: graph {model.graph.name}: {whole:,} nodes with those of its functions found; {MOST_NODES:,} are"
            f" allowed; {ADVICE}"
        )


def _check_nodes(model: ModelProto, where: str) -> None:
    """Raise ModelError for a node whose inputs, outputs or attributes are not those of its operator."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in STANDARD)
    own = {(function.domain, function.name) for function in model.functions}
    context = checker.C.CheckerContext()
    context.ir_version, context.opset_imports = model.ir_version, {"": opset}
    for node in all_nodes(model.graph):
        name = f"{where}: node {spell_node(node)}"
        if not node.op_type:
            raise ModelError(f"{name}: has no operator; {ADVICE}")
        if node.domain not in STANDARD or (node.domain, node.op_type) in own:
            continue
        bad = next((each.name for each in node.attribute if not all(map(is_text, (each.s, *each.strings)))), None)
        if bad is not None:
            raise ModelError(f"{name}: attribute {bad} holds text that is not UTF-8; {ADVICE}")
        if node.op_type == "Constant":
            _check_constant(node, name)
        elif defs.has(node.op_type, opset):  # onnxruntime knows more operators than onnx
            try:
                checker.check_node(_without_bodies(node), context)
            except checker.ValidationError as error:
                raise ModelError(f"{name}: {first_line(error)}; {ADVICE}") from error


def _without_bodies(node: NodeProto) -> NodeProto:
    if not node.domain and not has_bodies(node):
        return node
    copy = NodeProto(op_type=node.op_type, name=node.name, input=node.input, output=node.output)
    for attribute in node.attribute:
        added = copy.attribute.add()
        if attribute.type != attribute.GRAPH:
            added.CopyFrom(attribute)
        else:
            added.name, added.type = attribute.name, attribute.type
            added.g.CopyFrom(_NO_BODY)
    return copy


def _check_constant(node: NodeProto, name: str) -> None:
    """As onnx's check of a node, which would copy the value."""
    given = [attribute.name for attribute in node.attribute]
    whole = len(given) == 1 and VALUES.get(given[0]) == node.attribute[0].type
    if not whole or len(node.input) or len(node.output) != 1 or not node.output[0]:
        raise ModelError(
            f"{name}: {len(node.input)} inputs, {len(node.output)} outputs and attributes {', '.join(given) or 'none'}"
            f" found; a Constant has one output and one of {', '.join(VALUES)}, of the type in the name; {ADVICE}"
        )


def _never_ends(node: NodeProto, count: TensorProto | None, constants: Mapping[str, TensorProto]) -> bool:
    """Whether a Loop runs for ever: it has no bound, and its body hands on the condition with which it began."""
    first, second = (*node.input, "", "")[:2]
    if first and (count is None or read_values(count).item() < MOST_TRIPS):
        return False
    if second and (second not in constants or not read_values(constants[second]).all()):
        return False
    for body in subgraphs(node):
        (given,) = body.output[:1] or [None]
        handed_on = {inner.output[0]: inner.input[0] for inner in body.node if is_op(inner, "Identity")}
        return given is not None and len(body.input) > 1 and handed_on.get(given.name, given.name) == body.input[1].name
    return False


def _check_loops(graph: GraphProto, where: str, outer: Mapping[str, TensorProto]) -> None:
    """Raise ModelError for a Loop whose constant trip count is no single number, on which onnxruntime crashes."""
    constants = in_scope(graph, outer, own_constants(graph))
    for node in graph.node:
        count = constants.get(node.input[0]) if is_op(node, "Loop") and node.input else None
        if count is not None and math.prod(count.dims) != 1:
            raise ModelError(
                f"{where}: node {spell_node(node)}: trip count {node.input[0]} of dimensions {list(count.dims)} found;"
                f" one number is needed; {ADVICE}"
            )
        if is_op(node, "Loop") and _never_ends(node, count, constants):
            raise ModelError(
                f"{where}: node {spell_node(node)}: no trip count, and a condition that is always true found; a loop"
                f" that ends is needed; {ADVICE}"
            )
        for body in subgraphs(node):
            _check_loops(body, where, constants)
