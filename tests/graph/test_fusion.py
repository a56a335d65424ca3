import math

import numpy as np
import pytest
from onnx import helper

from onnxcalib.graph.fusion import (
    carried_outputs,
    data_inputs,
    is_nonnegative,
    moved_outputs,
    moves_values,
    rectified,
    upper_bound,
)
from onnxcalib.graph.index import Index

ENDS = np.array([6, 2, 4, 3], np.float32).reshape(4, 1, 1)


def graph_of(build, body, opset=17, **weights):
    model = build(f"g (float[N, 4, 8, 8] x, float low) => (float[a, b, c, d] y) {{ {body} }}", opset=opset, **weights)
    return model.graph, Index(model.graph)


@pytest.mark.parametrize(
    ("body", "moves"),
    [
        ("y = Transpose (x)", True),
        ("y = MaxPool <kernel_shape = [2, 2]> (x)", True),
        ("y = GlobalMaxPool (x)", True),
        ("y = Resize (x, , two)", True),
        ('y = Resize <mode = "linear"> (x, , two)', False),
        ("y = Pad (x, one)", True),
        ("y = Pad (x, one, zero)", True),
        ("y = Pad (x, one, half)", False),
        ("y = Pad (x, one, low)", False),
        ('y = Pad <mode = "reflect"> (x, one)', True),
        ("y = AveragePool <kernel_shape = [2, 2]> (x)", False),
        ("y = Relu (x)", False),
        ("y = com.example.Transpose (x)", False),
    ],
)
def test_movers_give_values_of_their_input_and_zeros(build, body, moves):
    graph, index = graph_of(
        build,
        body,
        two=np.float32([1, 1, 2, 2]),
        one=np.int64([0, 0, 1, 1] * 2),
        zero=np.float32(0),
        half=np.float32(0.5),
    )
    assert moves_values(index, graph.node[0]) is moves


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_an_old_pad_has_its_fill_as_an_attribute(build, value):
    graph, index = graph_of(build, f"y = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1], value = {value}> (x)", opset=10)
    assert moves_values(index, graph.node[0]) is (value == 0)


@pytest.mark.parametrize(
    ("body", "bound"),
    [
        ("y = Relu (x)", math.inf),
        ("y = Clip (x, zero, six)", 6.0),
        ("y = Clip (x, zero)", math.inf),
        ("y = Clip (x, , six)", None),
        ("y = Clip (x, six, six)", None),
        ("y = Clip (x, zero, zero)", None),
        ("y = Clip (x, low, six)", None),
        ("y = Clip (x, zero, low)", None),
        ("y = Sigmoid (x)", None),
        ("y = HardSigmoid (x)", 1.0),
        ("x_bounded = Min (x, ends) y = Relu (x_bounded)", 2.0),
        ("m = Min (x, ends) y = Relu (m)", math.inf),
    ],
)
def test_a_bound_is_that_of_a_relu_of_a_clip_from_zero_or_of_a_hardsigmoid(build, body, bound):
    _, index = graph_of(build, body, zero=np.float32(0), six=np.float32(6), ends=ENDS)
    assert upper_bound(index, "y") == bound
    assert upper_bound(index, "x") is None


@pytest.mark.parametrize(("attributes", "bound"), [("min = 0.0, max = 6.0", 6.0), ("max = 6.0", None)])
def test_an_old_clip_has_its_ends_as_attributes(build, attributes, bound):
    _, index = graph_of(build, f"y = Clip <{attributes}> (x)", opset=10)
    assert upper_bound(index, "y") == bound


@pytest.mark.parametrize(
    ("body", "tensor"),
    [
        ("c = Abs (x) y = Relu (c)", "y"),
        ("c = Abs (x) r = Relu (c) y = Add (c, r)", "c"),
        ("c = Abs (x) y = Sigmoid (c)", "c"),
        ("c = Abs (x) y = Clip (six, zero, c)", "c"),
        ("c = Abs (x) c_bounded = Min (c, ends) y = Relu (c_bounded)", "y"),
        ("c = Abs (x) c_bounded = Min (c, ends) y = Abs (c_bounded)", "c"),
        ("c = Abs (x) m = Min (c, ends) y = Relu (m)", "c"),
    ],
)
def test_a_tensor_is_rectified_by_the_relu_that_alone_reads_it(build, body, tensor):
    _, index = graph_of(build, body, zero=np.float32(0), six=np.float32(6), ends=ENDS)
    assert rectified(index, "c") == tensor


def test_a_graph_output_is_not_rectified(build):
    model = build("g (float[N] x) => (float[N] c, float[N] y) { c = Abs (x) y = Relu (c) }")
    assert rectified(Index(model.graph), "c") == "c"
    assert rectified(Index(model.graph), "y") == "y"


@pytest.mark.parametrize(
    ("body", "carried"),
    [
        ("c = Abs (x) p = MaxPool <kernel_shape = [2, 2]> (c) y = Relu (p)", ["y"]),
        ("c = Abs (x) p = MaxPool <kernel_shape = [2, 2]> (c) r = Relu (p) y = Add (c, r)", ["p"]),
        ("c = Transpose (x) p = MaxPool <kernel_shape = [2, 2]> (c) y = Relu (p)", ["p"]),
        ("c = Abs (x) p, q = Split <axis = 1> (c) r = Relu (p) y = Add (r, q)", ["p", "q"]),
    ],
)
def test_a_mover_takes_its_relu_along_only_where_nobody_needs_the_negative_values(build, body, carried):
    graph, index = graph_of(build, body)
    assert carried_outputs(index, graph.node[1]) == carried


def test_the_indices_of_a_pool_are_no_moved_values(build):
    graph, _ = graph_of(build, "y, i = MaxPool <kernel_shape = [2, 2]> (x)")
    assert moved_outputs(graph.node[0]) == ["y"]


def test_what_reads_nothing_carries_nothing():
    assert data_inputs(helper.make_node("Constant", [], ["y"], value_float=1.0)) == []


def test_movers_carry_their_first_input_alone(build):
    graph, _ = graph_of(build, "a = Reshape (x, s) y = Concat <axis = 0> (x, a)", s=np.int64([-1]))
    assert [data_inputs(node) for node in graph.node] == [["x"], ["x", "a"]]


@pytest.mark.parametrize(
    ("body", "never"),
    [
        ("y = Relu (x)", True),
        ("y = Sigmoid (x)", True),
        ("y = Clip (x, zero)", True),
        ("y = Clip (x, one)", False),
        ("r = Abs (x)  s = MaxPool <kernel_shape = [2, 2]> (r)  y = GlobalAveragePool (s)", True),
        ("r = Relu (x)  y = Pad (r, pads)", True),
        ("r = Relu (x)  y = Neg (r)", False),
        ("y = Transpose (x)", False),
    ],
)
def test_tensors_that_are_never_negative_are_known_by_what_makes_them(build, body, never):
    _, index = graph_of(build, body, zero=np.float32(0), one=np.float32(-1), pads=np.int64([0, 0, 1, 1, 0, 0, 1, 1]))
    assert is_nonnegative(index, "y") is never and not is_nonnegative(index, "x")


def test_nodes_without_inputs_carry_no_activations():
    assert data_inputs(helper.make_node("RandomNormal", [], ["r"], shape=[2])) == []
    assert data_inputs(helper.make_node("Relu", ["x"], ["r"])) == ["x"]
    assert data_inputs(helper.make_node("Add", ["x", "y"], ["r"])) == ["x", "y"]
