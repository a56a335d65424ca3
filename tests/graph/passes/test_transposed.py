import numpy as np
import pytest

from onnxcalib.graph.index import attribute_of
from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.graph.passes.transposed import write_as_convolutions

# kernel, and what is written of the node: those that upsample by their stride.
UPSAMPLING = [
    (2, "strides = [2, 2]"),
    (4, "strides = [2, 2], pads = [1, 1, 1, 1]"),
    (3, "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]"),
    (5, "strides = [2, 2], pads = [2, 2, 2, 2], output_padding = [1, 1]"),
    (4, "strides = [2, 2], pads = [0, 1, 2, 1]"),
    (3, "strides = [3, 3]"),
    (4, "strides = [2, 2], pads = [1, 1, 1, 1], group = 2"),
    (3, "pads = [1, 1, 1, 1]"),
]
OTHERS = [
    (3, "strides = [2, 2], pads = [1, 1, 1, 1]"),
    (2, "strides = [1, 1]"),
    (2, "strides = [2, 1], pads = [0, 0, 0, 1]"),
    (3, "pads = [2, 2, 2, 2], dilations = [2, 2]"),
    (3, "strides = [2, 2], output_shape = [8, 10]"),
    (2, 'strides = [2, 2], auto_pad = "SAME_UPPER"'),
    (1, "strides = [2, 2], output_padding = [1, 1]"),
]


@pytest.fixture
def make(build, draw):
    def make(kernel, attributes, behind="", output="y"):
        group = 2 if "group" in attributes else 1
        model = build(
            f"g (float[N, 4, 4, 5] x) => ({output}) {{ [up] y = ConvTranspose <{attributes}> (x, w, b) {behind} }}",
            w=draw(4, 3, kernel, kernel),
            b=draw(3 * group),
        )
        name_nodes(model)
        return model

    return make


@pytest.mark.parametrize(("kernel", "attributes"), UPSAMPLING)
def test_what_multiplies_the_size_becomes_a_convolution(make, run, draw, kernel, attributes):
    model, x = make(kernel, attributes), draw(2, 4, 4, 5)
    before = run(model, x)[0]
    assert write_as_convolutions(model) == ["up"]
    operators = [node.op_type for node in model.graph.node]
    assert operators == (["Conv", "DepthToSpace"] if "strides" in attributes else ["Conv"])
    assert model.graph.node[0].name == "up"
    np.testing.assert_allclose(run(model, x)[0], before, atol=1e-5)


@pytest.mark.parametrize(("kernel", "attributes"), OTHERS)
def test_others_stay(make, kernel, attributes):
    model = make(kernel, attributes)
    assert not write_as_convolutions(model) and model.graph.node[0].op_type == "ConvTranspose"


def test_a_relu_behind_it_comes_in_front_of_the_move(make, run, draw):
    model, x = make(2, "strides = [2, 2]", "[r] z = Relu (y) [n] t = Neg (z)", "t"), draw(2, 4, 4, 5)
    before = run(model, x)[0]
    write_as_convolutions(model)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "DepthToSpace", "Neg"]
    np.testing.assert_allclose(run(model, x)[0], before, atol=1e-5)


def test_a_relu_beside_other_readers_stays_behind(make, run, draw):
    model, x = make(2, "strides = [2, 2]", "[r] z = Relu (y) [a] t = Add (y, z)", "t"), draw(2, 4, 4, 5)
    before = run(model, x)[0]
    write_as_convolutions(model)
    assert [node.op_type for node in model.graph.node] == ["Conv", "DepthToSpace", "Relu", "Add"]
    np.testing.assert_allclose(run(model, x)[0], before, atol=1e-5)


def test_every_attribute_of_the_convolution_is_written(make):
    model = make(4, "strides = [2, 2], pads = [0, 1, 2, 1]")
    write_as_convolutions(model)
    node = model.graph.node[0]
    assert {a.name for a in node.attribute} == {"kernel_shape", "strides", "pads", "dilations", "group"}
    assert attribute_of(node, "pads", [])[:2] == [1, 1] and attribute_of(node, "strides", []) == [1, 1]
