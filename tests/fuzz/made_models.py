"""Models made by hand, one for each kind of fault: what is done to a good one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, TypeProto, helper, numpy_helper

from tests.fuzz.bases import INPUTS
from tests.fuzz.edits import LONG

DEPTH = 2_000
Maker = Callable[[ModelProto], object]


def _weight(model: ModelProto, index: int = 0) -> TensorProto:
    return model.graph.initializer[index % len(model.graph.initializer)]


def _input(model: ModelProto) -> TypeProto.Tensor:
    return model.graph.input[0].type.tensor_type


def _put(model: ModelProto, value: float) -> None:
    """A value in the first weight."""
    tensor = _weight(model)
    array = np.array(np.zeros(tuple(tensor.dims), np.float32))
    array.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _external(model: ModelProto, index: int = 0, **entries: object) -> None:
    tensor = _weight(model, index)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def _rename_end(model: ModelProto) -> None:
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == model.graph.output[0].name:
                node.output[i] = "inner"


def _append(model: ModelProto, *operators: str) -> None:
    """Apply operators of one input (Sub and Add to a value and itself) to the output, the last one first."""
    _rename_end(model)
    last = "inner"
    for i, operator in enumerate(reversed(operators)):
        name = f"more{i}" if i + 1 < len(operators) else model.graph.output[0].name
        model.graph.node.append(helper.make_node(operator, [last] * (2 if operator in ("Sub", "Add") else 1), [name]))
        last = name


def _unknown_domain(model: ModelProto) -> None:
    model.graph.node[1].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def _no_layer(model: ModelProto) -> None:
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.append(helper.make_node("Relu", [model.graph.input[0].name], [model.graph.output[0].name]))


def _identity(model: ModelProto) -> None:
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Identity", [model.graph.input[0].name], [model.graph.output[0].name]))


def _weight_of_a_huge_shape_without_data(model: ModelProto) -> None:
    _weight(model).raw_data = b""
    _weight(model).dims[:] = [2**20, 2**20]


def _weight_without_elements(model: ModelProto) -> None:
    _weight(model).raw_data = b""
    _weight(model).dims[:] = [0, INPUTS]


def _weight_of_another_rank(model: ModelProto) -> None:
    dims = list(_weight(model).dims)
    _weight(model).dims[:] = [*dims, 1, 1]


def _weight_of_strings(model: ModelProto) -> None:
    name = _weight(model).name
    _weight(model).CopyFrom(TensorProto(name=name, data_type=TensorProto.STRING, dims=[1], string_data=[b"x"]))


def _names_with_control_characters(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = f"\x1b[31m{node.name}\r\n\x07"


def _names_of_markup(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = f"[red]{node.name}[/] \N{RIGHT-TO-LEFT OVERRIDE}\N{ZERO WIDTH SPACE}"


def _names_too_long(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = node.name * LONG


def _tensors_with_control_characters(model: ModelProto) -> None:
    name = "\x1b[2J\n\0"
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = name


def _names_of_all_nodes_alike(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = "same"


def _no_names(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = ""


def _graphs_in_one_another(model: ModelProto) -> bytes:
    """If nodes in one another, deeper than protobuf reads or writes; so in bytes."""
    graph = b""
    for _ in range(DEPTH):
        attribute = _field(1, b"then_branch") + _field(6, graph) + b"\xa0\x01\x05"  # name, g, type = GRAPH
        graph = _field(1, _field(1, b"c") + _field(2, b"o") + _field(4, b"If") + _field(5, attribute))  # node
    return model.SerializeToString() + _field(7, graph)


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes in protobuf's wire format."""
    size, rest = b"", len(data)
    while rest > 127:
        size, rest = size + bytes([rest % 128 + 128]), rest // 128
    return bytes([number * 8 + 2]) + size + bytes([rest]) + data


def _graphs_in_one_another_as_deep_as_can_be_read(model: ModelProto) -> None:
    body = GraphProto(name="g")
    for _ in range(24):
        outer = GraphProto(name="g")
        outer.node.append(helper.make_node("If", ["c"], ["o"], then_branch=body, else_branch=GraphProto()))
        body = outer
    model.graph.node.extend(body.node)


def _function_of_itself(model: ModelProto) -> None:
    calls = [helper.make_node("f", ["a"], ["b"], domain="own")]
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], calls, [helper.make_opsetid("own", 1)]))
    model.opset_import.add(domain="own", version=1)
    model.graph.node[1].op_type, model.graph.node[1].domain = "f", "own"


def _attribute_of_another_type(model: ModelProto) -> None:
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(helper.make_attribute("transB", "yes"))


def _too_few_inputs(model: ModelProto) -> None:
    del model.graph.node[0].input[1:]


def _input_is_a_sequence(model: ModelProto) -> None:
    kind = model.graph.input[0].type
    kind.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1])))


def _values_of_nan(model: ModelProto) -> None:
    """All outputs are the logarithm of a negative number."""
    _append(model, "Log", "Neg", "Abs")


def _loop_without_end(model: ModelProto) -> None:
    """Its condition never turns false; the float model is stopped by its count of 1,000 only."""
    values = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Relu", ["a"], ["b"])],
        "body",
        [values("i", TensorProto.INT64, []), values("c", TensorProto.BOOL, []), values("a", TensorProto.FLOAT, None)],
        [values("d", TensorProto.BOOL, []), values("b", TensorProto.FLOAT, None)],
    )
    _rename_end(model)
    count, condition = numpy_helper.from_array(np.array(1000), "count"), numpy_helper.from_array(np.array(True), "true")
    model.graph.initializer.extend([count, condition])
    output = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Loop", ["count", "true", "inner"], [output], body=body))


def _memory_without_end(model: ModelProto) -> None:
    """A constant of 4 TB, from 40 bytes."""
    shape = numpy_helper.from_array(np.array([2**20, 2**20]), "shape")
    model.graph.initializer.append(shape)
    _rename_end(model)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["huge"]))
    model.graph.node.append(helper.make_node("Add", ["inner", "huge"], [model.graph.output[0].name]))


# What no run may accept.
REFUSED: dict[str, Maker] = {
    "empty": lambda m: m.Clear(),
    "no graph": lambda m: m.ClearField("graph"),
    "no nodes": lambda m: m.graph.ClearField("node"),
    "no outputs": lambda m: m.graph.ClearField("output"),
    "no inputs": lambda m: m.graph.ClearField("input"),
    "output of nothing": lambda m: setattr(m.graph.output[0], "name", "nothing"),
    "input of nothing": lambda m: m.graph.node[0].input.__setitem__(0, "nothing"),
    "circle": lambda m: m.graph.node[0].input.__setitem__(0, m.graph.node[-1].output[0]),
    "node of itself": lambda m: m.graph.node[0].input.__setitem__(0, m.graph.node[0].output[0]),
    "output made twice": lambda m: m.graph.node[1].output.__setitem__(0, m.graph.node[0].output[0]),
    "unknown operator": lambda m: setattr(m.graph.node[1], "op_type", "Frobnicate"),
    "unknown domain": _unknown_domain,
    "domain without version": lambda m: setattr(m.graph.node[1], "domain", "com.example"),
    "no opset": lambda m: m.ClearField("opset_import"),
    "opset of tomorrow": lambda m: setattr(m.opset_import[0], "version", 999),
    "opset below zero": lambda m: setattr(m.opset_import[0], "version", -(2**63)),
    "opset of yesterday": lambda m: setattr(m.opset_import[0], "version", 1),
    "ir version of tomorrow": lambda m: setattr(m, "ir_version", 2**40),
    "ir version zero": lambda m: setattr(m, "ir_version", 0),
    "no layer": _no_layer,
    "identity": _identity,
    "weight too short": lambda m: setattr(_weight(m), "raw_data", b"\0" * 7),
    "weight of a huge shape": lambda m: _weight(m).dims.__setitem__(slice(None), [2**31, 2**31]),
    "weight of a huge shape without data": _weight_of_a_huge_shape_without_data,
    "weight of a negative shape": lambda m: _weight(m).dims.__setitem__(0, -_weight(m).dims[0]),
    "weight without elements": _weight_without_elements,
    "weight of another rank": _weight_of_another_rank,
    "weight of no type": lambda m: setattr(_weight(m), "data_type", TensorProto.UNDEFINED),
    "weight of an unknown type": lambda m: setattr(_weight(m), "data_type", 99),
    "weight of strings": _weight_of_strings,
    "weight with nan": lambda m: _put(m, float("nan")),
    "weight with infinity": lambda m: _put(m, float("inf")),
    "external outside": lambda m: _external(m, location="../../../../etc/passwd"),
    "external absolute": lambda m: _external(m, location="/etc/passwd"),
    "external device": lambda m: _external(m, location="/dev/zero", length=512),
    "external missing": lambda m: _external(m, location="nowhere.bin", offset=0, length=512),
    "external without location": lambda m: _external(m, offset=0, length=512),
    "external of a long name": lambda m: _external(m, location="x" * LONG),
    "external of a null byte": lambda m: _external(m, location="a\0b"),
    "external in the folder": lambda m: _external(m, location="."),
    "external beyond the end": lambda m: _external(m, location="mlp.npy", offset=2**62, length=512),
    "external before the start": lambda m: _external(m, location="mlp.npy", offset=-1, length=512),
    "external of a huge length": lambda m: _external(m, location="mlp.npy", offset=0, length=2**62),
    "external of a length in words": lambda m: _external(m, location="mlp.npy", offset="many", length="x"),
    "graphs in one another": _graphs_in_one_another,
    "function of itself": _function_of_itself,
    "attribute of another type": _attribute_of_another_type,
    "attribute unknown": lambda m: m.graph.node[0].attribute.append(helper.make_attribute("colour", 1)),
    "attribute without type": lambda m: m.graph.node[0].attribute.add(name="alpha", type=0),
    "too few inputs": _too_few_inputs,
    "too many inputs": lambda m: m.graph.node[0].input.extend([m.graph.node[0].input[0]] * 1000),
    "no output of a node": lambda m: m.graph.node[0].ClearField("output"),
    "input of strings": lambda m: setattr(_input(m), "elem_type", TensorProto.STRING),
    "input of complex numbers": lambda m: setattr(_input(m), "elem_type", TensorProto.COMPLEX64),
    "input of an unknown type": lambda m: setattr(_input(m), "elem_type", 99),
    "input is a sequence": _input_is_a_sequence,
    "input without a type": lambda m: m.graph.input[0].ClearField("type"),
    "input of a huge shape": lambda m: setattr(_input(m).shape.dim[0], "dim_value", 2**62),
    "input of another shape": lambda m: setattr(_input(m).shape.dim[1], "dim_value", INPUTS + 1),
    "input without elements": lambda m: setattr(_input(m).shape.dim[1], "dim_value", 0),
    "input twice": lambda m: m.graph.input.append(m.graph.input[0]),
    "input more": lambda m: m.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 2])),
    "values of nan": _values_of_nan,
    "values of infinity": lambda m: _append(m, "Reciprocal", "Sub"),
    "memory without end": _memory_without_end,
}
# What may have a meaning.
EITHER: dict[str, Maker] = {
    "weight twice": lambda m: m.graph.initializer.append(m.graph.initializer[0]),
    "opset twice": lambda m: m.opset_import.add(domain="", version=7),
    "weight with the largest number": lambda m: _put(m, 3.4e38),
    "weights of zero": lambda m: _put(m, 0.0),
    "weights of denormals": lambda m: _put(m, 1e-45),
    "names with control characters": _names_with_control_characters,
    "names of markup": _names_of_markup,
    "names too long": _names_too_long,
    "tensors with control characters": _tensors_with_control_characters,
    "names of all nodes alike": _names_of_all_nodes_alike,
    "no names": _no_names,
    "name of the graph": lambda m: setattr(m.graph, "name", "\x1b]0;title\x07" + "x" * LONG),
    "graphs in one another as deep as can be read": _graphs_in_one_another_as_deep_as_can_be_read,
    "input without a shape": lambda m: _input(m).ClearField("shape"),
    "values that are constant": lambda m: _append(m, "Sub"),
    "values at random": lambda m: _append(m, "RandomNormalLike", "RandomUniformLike"),
    "loop without end": _loop_without_end,
    "two thousand nodes": lambda m: _append(m, *["Relu"] * 2_000),
}
