import numpy as np
import pytest
from onnx import checker

from onnxcalib.graph.index import all_nodes, attribute_of
from onnxcalib.graph.passes.attributes import spell_attributes


def spell(model):
    node = model.graph.node[0]
    return {a.name: attribute_of(node, a.name, None) for a in node.attribute}


@pytest.mark.parametrize(
    ("node", "shape", "opset", "given"),
    [
        ("Conv (x, w)", (6, 4, 3, 2), 13, {"kernel_shape": [3, 2], "dilations": [1, 1], "group": 1}),
        ("Conv <group = 2> (x, w)", (6, 2, 3, 3), 22, {"kernel_shape": [3, 3], "dilations": [1, 1], "group": 2}),
        ("ConvTranspose (x, w)", (4, 6, 2, 2), 13, {"kernel_shape": [2, 2], "dilations": [1, 1], "group": 1}),
        ("MaxPool <kernel_shape = [2, 2]> (x)", None, 13, {"kernel_shape": [2, 2], "dilations": [1, 1]}),
        ("AveragePool <kernel_shape = [2, 2]> (x)", None, 18, {"kernel_shape": [2, 2]}),
        ("AveragePool <kernel_shape = [2, 2], dilations = [1, 1]> (x)", None, 19, {"kernel_shape": [2, 2]}),
        ("AveragePool <kernel_shape = [2, 2], dilations = [1, 2]> (x)", None, 19,
         {"kernel_shape": [2, 2], "dilations": [1, 2]}),
    ],
)  # fmt: skip
def test_defaults_are_written_out(build, run, draw, node, shape, opset, given):
    weights = {} if shape is None else {"w": draw(*shape)}
    model = build(f"g (float[N, 4, H, W] x) => (float[a, b, c, d] y) {{ y = {node} }}", opset=opset, ir=10, **weights)
    x = draw(2, 4, 7, 6)
    (before,) = run(model, x)
    assert spell_attributes(model) == 1
    assert spell(model) == {**given, "strides": [1, 1], "pads": [0, 0, 0, 0]}
    checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, x)[0], before)
    assert spell_attributes(model) == 0


def test_attributes_that_are_there_stay(build, draw):
    model = build(
        """g (float[N, 4, 8, 8] x) => (float[a, b, c, d] y) { y = ConvTranspose <kernel_shape = [3, 3], group = 2,
        output_padding = [1, 1], strides = [2, 2], dilations = [2, 2], pads = [1, 0, 0, 1]> (x, w) }""",
        w=draw(4, 2, 3, 3),
    )
    before = model.SerializeToString(deterministic=True)
    assert spell_attributes(model) == 0
    assert model.SerializeToString(deterministic=True) == before


NODES = {
    "Conv": "Conv <auto_pad = {auto}, strides = [{s}, {s}], dilations = [{d}, {d}]> (x, w)",
    "MaxPool": "MaxPool <kernel_shape = [3, 2], auto_pad = {auto}, strides = [{s}, {s}], dilations = [{d}, {d}]> (x)",
    "AveragePool": "AveragePool <kernel_shape = [3, 2], auto_pad = {auto}, strides = [{s}, {s}]> (x)",
}


@pytest.mark.parametrize("op", NODES)
@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize(("size", "stride"), [("7, 8", 2), ("7, 8", 1), ("H, W", 1)])
def test_automatic_pads_become_numbers(build, run, draw, op, auto, size, stride):
    node = NODES[op].format(auto=f'"{auto}"', s=stride, d=1)
    model = build(f"g (float[N, 4, {size}] x) => (float[a, b, c, d] y) {{ y = {node} }}", w=draw(6, 4, 3, 2))
    inputs = [draw(2, 4, 7, 8)] + ([draw(2, 4, 5, 6)] if "H" in size else [])
    before = [run(model, x)[0] for x in inputs]
    assert spell_attributes(model) == 1
    assert "auto_pad" not in spell(model) and len(spell(model)["pads"]) == 4
    for x, wanted in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(run(model, x)[0], wanted)


def test_pads_of_a_dilated_convolution_reach_over_its_holes(build, run, draw):
    node = NODES["Conv"].format(auto='"SAME_UPPER"', s=1, d=2)
    model = build(f"g (float[N, 4, H, W] x) => (float[a, b, c, d] y) {{ y = {node} }}", w=draw(6, 4, 3, 2))
    assert spell_attributes(model) == 1 and spell(model)["pads"] == [2, 1, 2, 1]
    assert run(model, draw(2, 4, 7, 8))[0].shape == (2, 6, 7, 8)


@pytest.mark.parametrize(
    ("op", "size", "stride", "dilation"),
    [("Conv", "H, 8", 2, 1), ("MaxPool", "H, W", 2, 1), ("MaxPool", "7, 8", 1, 2), ("AveragePool", "7, 8", 3, 1)],
)
def test_automatic_pads_that_are_not_known_stay(build, run, draw, op, size, stride, dilation):
    node = NODES[op].format(auto='"SAME_UPPER"', s=stride, d=dilation)
    model = build(f"g (float[N, 4, {size}] x) => (float[a, b, c, d] y) {{ y = {node} }}", w=draw(6, 4, 3, 2))
    x = draw(2, 4, 7, 8)
    (before,) = run(model, x)
    spell_attributes(model)
    assert spell(model)["auto_pad"] == b"SAME_UPPER" and "pads" not in spell(model)
    assert spell(model)["kernel_shape"] == [3, 2]
    np.testing.assert_array_equal(run(model, x)[0], before)


@pytest.mark.parametrize("extra", ['auto_pad = "SAME_UPPER"', "output_shape = [15, 15]"])
def test_a_transposed_convolution_that_finds_its_pads_keeps_doing_so(build, run, draw, extra):
    node = f"y = ConvTranspose <{extra}, strides = [2, 2]> (x, w)"
    model = build(f"g (float[N, 4, 7, 7] x) => (float[a, b, c, d] y) {{ {node} }}", w=draw(4, 6, 3, 3))
    x = draw(2, 4, 7, 7)
    (before,) = run(model, x)
    assert spell_attributes(model) == 1
    assert extra.split()[0] in spell(model) and "pads" not in spell(model) and spell(model)["group"] == 1
    np.testing.assert_array_equal(run(model, x)[0], before)


def test_nodes_inside_bodies_are_spelled_too(build, run, draw):
    model = build(
        """g (float[N, 4, 7, 7] x, bool yes) => (float[a, b, c, d] y) { y = If (yes) <
            then_branch = t () => (float[e, f, g, h] u) { u = Conv (x, v) },
            else_branch = n () => (float[i, j, k, l] z) { z = Conv (x, w) }> }""",
        w=draw(4, 4, 3, 3), v=draw(4, 4, 1, 1),
    )  # fmt: skip
    x = draw(2, 4, 7, 7)
    before = [run(model, x, np.array(yes))[0] for yes in (True, False)]
    assert spell_attributes(model) == 2
    kernels = [attribute_of(n, "kernel_shape", None) for n in all_nodes(model.graph) if n.op_type == "Conv"]
    assert kernels == [[1, 1], [3, 3]]
    for yes, wanted in zip((True, False), before, strict=True):
        np.testing.assert_array_equal(run(model, x, np.array(yes))[0], wanted)


def test_a_convolution_whose_kernel_nobody_tells_stays(build):
    model = build("g (float[N, 4, 7, 7] x, float[a, b, c, d] w) => (float[e, f, g, h] y) { y = Conv (x, w) }")
    assert spell_attributes(model) == 0 and not model.graph.node[0].attribute


def test_a_model_without_any_stays(build):
    assert spell_attributes(build("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")) == 0
