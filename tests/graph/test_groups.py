"""Placing in whole groups, on made models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnxcalib.graph.emit import emit_qdq
from onnxcalib.graph.layer_params import LayerParams
from onnxcalib.graph.names import Selection
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.lint.run import check_target
from onnxcalib.numeric.ranges import make_grid
from onnxcalib.spec import Grids, QParams, QuantSpec, Requirements
from onnxcalib.targets import load_target

QNN = load_target("qnn").requirements
HEAD = '<ir_version: 10, opset_import: ["": 21]>\ngraph (float[1,4,8,8] x) => (float[{shape}] y)\n'
WEIGHT = "float[4,4,1,1] w = {" + ", ".join(["0.5"] * 16) + "}"


def read(body: str, *, shape: str = "1,4,8,8", constants: str = "") -> onnx.ModelProto:
    """A model of one input x, a Conv's weight w, and these nodes, named n0, n1, ... in their order."""
    held = ",\n".join(filter(None, [WEIGHT, constants]))
    model = onnx.parser.parse_model(f"{HEAD.format(shape=shape)}<{held}>\n{{\n{body}\n}}")
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    return model


def emit(model: onnx.ModelProto, requirements: Requirements = QNN, selection: Selection | None = None):
    """The scheme of a target and its file, with grids from -1 to 1, and the range of a constant for it."""
    scheme = make_scheme(model, requirements=requirements, selection=selection)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def choose(tensor: str, spec: QuantSpec) -> QParams:
        values = np.concatenate([stored[t].reshape(-1) for t in scheme.members_of(tensor) if t in stored] or [[-1, 1]])
        return make_grid(values.min(), values.max(), spec, bound=scheme.bound_of(scheme.members_of(tensor)))

    grids = Grids({tensor: choose(tensor, spec) for tensor, spec in scheme.activations.items()})
    layers = {}
    for layer in scheme.layers:
        weight = stored[layer.weight]
        count = 1 if layer.weight_spec.axis is None else weight.shape[layer.weight_spec.axis]
        scale = np.full(count, 2.0**-7, np.float32)
        grid = QParams(scale, np.zeros(count, np.int32), layer.weight_spec)
        layers[layer.name] = LayerParams(np.clip(np.rint(weight * 128), -127, 127), grid, None)
    return scheme, emit_qdq(model, scheme, grids, layers, encoding="standard", keep_outputs=False)


def fix_attributes(model: onnx.ModelProto) -> None:
    """Write out what a Conv has by default, as preparation does."""
    wanted = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
    for node in model.graph.node:
        given = {attribute.name for attribute in node.attribute}
        if node.op_type == "Conv":
            node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in wanted.items() if k not in given)


def list_float_operands(model: onnx.ModelProto) -> list[str]:
    """Operators that read or give floats which no DequantizeLinear made or no QuantizeLinear reads."""
    made = {t: node.op_type for node in model.graph.node for t in node.output}
    return [
        f"{node.op_type} {node.name} reads {t}"
        for node in model.graph.node
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Relu", "Clip")
        for t in node.input
        if made.get(t, "DequantizeLinear") != "DequantizeLinear"
    ]


OPERATORS = {
    "Add": "y = Add(c, x)",
    "Add of a constant": "y = Add(c, k)",
    "Sub of a scalar": "y = Sub(c, s)",
    "Mul of a scalar": "y = Mul(s, c)",
    "Div": "y = Div(c, k)",
    "Concat with a constant": "d = Concat<axis = 1>(c, k)\ny = Slice(d, zero, four, one)",
    "Relu behind it": "y = Relu(c)",
    "Clip of its own": "m = Clip(c, s, s)\ny = Sub(c, m)",
    "Sigmoid": "d = Sigmoid(c)\ny = Mul(c, d)",
    "MaxPool": "y = MaxPool<kernel_shape = [1, 1], strides = [1, 1]>(c)",
    "Reshape": "d = Reshape(c, flat)\ny = Reshape(d, back)",
    "Transpose": "d = Transpose<perm = [0, 2, 3, 1]>(c)\ny = Transpose<perm = [0, 3, 1, 2]>(d)",
    "Softmax": "y = Softmax<axis = 1>(c)",
    "Pad and Slice": "d = Pad(c, pads)\ny = Slice(d, zero, four, one)",
    "Split": "d, e = Split<axis = 1, num_outputs = 2>(c)\ny = Concat<axis = 1>(e, d)",
    "LeakyRelu": "y = LeakyRelu<alpha = 0.1>(c)",
    "PRelu": "y = PRelu(c, k)",
    "HardSwish": "y = HardSwish(c)",
    "Max": "y = Max(c, s)",
    "ReduceMean": "d = ReduceMean(c, one)\ny = Sub(c, d)",
    "Resize": 'd = Resize<mode = "linear">(c, , half)\ny = Resize<mode = "nearest">(d, , twice)',
    "Where": "y = Where(b, c, s)",
    "DepthToSpace": "d = DepthToSpace<blocksize = 2>(c)\ny = SpaceToDepth<blocksize = 2>(d)",
    "product with a constant stack": "y = MatMul(c, stack)",
}
CONSTANTS = f"""float[1,4,1,1] k = {{0.5, -0.25, 0.125, 1.0}}, float s = {{0.5}},
int64[1] zero = {{0}}, int64[1] four = {{4}}, int64[1] one = {{1}}, int64[2] flat = {{4, 64}},
int64[4] back = {{1, 4, 8, 8}}, int64[8] pads = {{0, 0, 0, 0, 0, 2, 0, 0}}, float[4] half = {{1, 1, 0.5, 0.5}},
float[4] twice = {{1, 1, 2, 2}}, bool[1] b = {{1}}, float[1,8,8] stack = {{{", ".join(["0.5"] * 64)}}}"""


@pytest.mark.parametrize("body", OPERATORS.values(), ids=list(OPERATORS))
def test_what_is_written_for_a_target_of_groups_has_all_operators_in_groups_and_passes_its_lint(body):
    constants = CONSTANTS
    if "Concat<axis = 1>(c, k)" in body:
        constants = constants.replace("[1,4,1,1] k", "[1,4,8,8] k")
        values = ", ".join(["0.25", "-0.5"] * 128)
        constants = constants.replace("{0.5, -0.25, 0.125, 1.0}", "{" + values + "}")
    model = read(f"c = Conv(x, w)\n{body}", constants=constants)
    fix_attributes(model)
    _, quantized = emit(model)
    onnx.checker.check_model(quantized)
    record = check_target(quantized, "qnn")
    assert not [f"{v.rule}: {v.where}: {v.found}" for v in record.violations]
    assert not list_float_operands(quantized)


def test_a_constant_operand_is_stored_as_integers_on_a_grid_of_its_own():
    model = read("c = Conv(x, w)\ny = Add(c, k)", constants="float[1,4,1,1] k = {0.5, -0.25, 0.125, 1.0}")
    scheme, quantized = emit(model)
    assert scheme.constants == {"k"}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    assert "k" not in stored
    assert stored["k_quantized"].dtype == np.uint8
    step = stored["k_dequantized_scale"]
    values = step * (stored["k_quantized"].astype(int) - stored["k_dequantized_zero_point"].astype(int))
    np.testing.assert_allclose(values.reshape(-1), [0.5, -0.25, 0.125, 1.0], atol=step / 2)


def test_a_constant_that_a_float_operator_reads_too_keeps_its_floats():
    model = read(
        "c = Conv(x, w)\nd = Add(c, k)\ne = Erf(k)\ny = Add(d, e)",
        constants="float[1,4,1,1] k = {0.5, -0.25, 0.125, 1.0}",
    )
    _, quantized = emit(model)
    (erf,) = (node for node in quantized.graph.node if node.op_type == "Erf")
    assert list(erf.input) == ["k"]


def test_the_output_of_the_last_layer_is_quantized_and_keeps_its_name():
    _, quantized = emit(read("y = Conv(x, w)"))
    last = quantized.graph.node[-1]
    assert (last.op_type, last.output[0]) == ("DequantizeLinear", "y")


def test_what_an_operator_at_the_exit_gives_stays_float():
    model = read("c = Conv(x, w)\np = GlobalAveragePool(c)\ny = Flatten(p)", shape="1,4")
    scheme, _ = emit(model)
    assert list(scheme.activations) == ["x", "c"]


def test_integers_that_describe_shapes_have_no_grid():
    model = read(
        "c = Conv(x, w)\ns = Shape(c)\ng = Gather<axis = 0>(s, zero)\nh = Concat<axis = 0>(g, rest)\ny = Reshape(c, h)",
        shape="1,4,64",
        constants="int64[1] zero = {0}, int64[2] rest = {4, 64}",
    )
    scheme, _ = emit(model)
    assert list(scheme.activations) == ["x", "c", "y"]


def test_a_mover_between_float_operators_stays_float():
    model = read("c = Conv(x, w)\ne = Erf(c)\nt = Transpose<perm = [0, 1, 3, 2]>(e)\ny = Erf(t)")
    scheme, _ = emit(model)
    assert list(scheme.activations) == ["x", "c"]


def test_a_mover_of_floats_that_only_groups_read_is_on_integers():
    model = read("e = Erf(x)\nt = Transpose<perm = [0, 1, 3, 2]>(e)\ny = Conv(t, w)")
    scheme, _ = emit(model)
    assert list(scheme.activations) == ["e", "t", "y"]
    assert scheme.shared == (("e", "t"),)


def test_an_excluded_node_stays_float_between_groups():
    model = read("c = Conv(x, w)\nd = Mul(c, c)\ny = Add(d, c)")
    scheme, _ = emit(model, selection=Selection(frozenset({"n1"})))
    assert list(scheme.activations) == ["x", "c", "d", "y"]
    assert scheme.barred == frozenset()


def test_what_reads_a_constant_that_no_grid_holds_stays_float():
    model = read("c = Conv(x, w)\nd = Add(c, k)\ny = Erf(d)", constants="float[1,4,1,1] k = {0, -1e38, 0, 0}")
    scheme, _ = emit(model)
    assert list(scheme.activations) == ["x", "c"]


def test_without_operators_of_its_own_a_group_ends_in_front_of_a_relu():
    needs = replace(QNN, through=frozenset(), grouped=QNN.grouped - {"Relu", "Clip"})
    scheme, _ = emit(read("c = Conv(x, w)\ny = Relu(c)"), needs)
    assert list(scheme.activations) == ["x", "c"]


def test_another_operator_of_a_group_stands_in_front_of_its_grid():
    needs = replace(QNN, through=QNN.through | {"LeakyRelu"}, grouped=QNN.grouped - {"LeakyRelu"})
    scheme, _ = emit(read("c = Conv(x, w)\ny = LeakyRelu(c)"), needs)
    assert list(scheme.activations) == ["x", "y"]


def test_the_rows_of_a_table_are_looked_up_on_its_own_grid():
    model = read(
        "r = Gather(table, ids)\nd = Reshape(r, size)\nc = Conv(x, w)\ny = Add(c, d)",
        constants="int64[4] size = {1, 1, 1, 1}, float[3,1] table = {1, 2, 3}",
    )
    model.graph.input.append(onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [1]))
    scheme, _ = emit(model)
    assert list(scheme.activations) == ["table", "x", "r", "d", "c", "y"]
    assert scheme.shared == (("table", "r", "d"),) and scheme.constants == {"table"}


def test_a_layer_that_a_target_of_groups_does_not_name_is_on_integers_too():
    body = "a = Conv(x, w)\nb = Mul(a, a)\nc = Add(b, b)\ny = Conv(c, w)"
    scheme, written = emit(read(body), replace(QNN, grouped=frozenset({"Mul"}), through=frozenset()))
    assert set(scheme.activations) >= {"x", "a", "b", "c", "y"} and len(scheme.layers) == 2
    onnx.checker.check_model(written)
