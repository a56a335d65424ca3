import numpy as np
import pytest
from onnx import helper

from onnxcalib.graph.layout import from_rows, to_rows, window_of
from onnxcalib.spec import LayerPlan, QuantSpec


def plan_layer(op, axis, groups=1):
    spec = QuantSpec(8, signed=True, symmetric=True, axis=axis)
    return LayerPlan("layer", op, "x", "w", None, "y", spec, QuantSpec(8), groups)


@pytest.mark.parametrize(
    ("layer", "shape", "rows"),
    [
        (plan_layer("Conv", 0), (6, 4, 3, 3), (1, 6, 36)),
        (plan_layer("Conv", 0, groups=2), (6, 2, 5), (2, 3, 10)),
        (plan_layer("Conv", 0, groups=4), (8, 1, 2, 2, 2), (4, 2, 8)),
        (plan_layer("ConvTranspose", 1, groups=2), (4, 3, 2, 2), (1, 3, 16)),
        (plan_layer("Gemm", 0), (5, 7), (1, 5, 7)),
        (plan_layer("Gemm", 1), (7, 5), (1, 5, 7)),
        (plan_layer("MatMul", 1), (7, 5), (1, 5, 7)),
    ],
)
def test_rows_are_output_channels_and_turn_back_into_the_weight(draw, layer, shape, rows):
    weight = draw(*shape)
    arranged = to_rows(weight, layer)
    assert arranged.shape == rows
    np.testing.assert_array_equal(from_rows(arranged, layer, shape), weight)
    channel = np.moveaxis(weight, layer.weight_spec.axis, 0)[1]
    np.testing.assert_array_equal(np.sort(arranged.reshape(-1, rows[2])[1]), np.sort(channel.reshape(-1)))


def test_rows_of_a_dense_layer_multiply_its_input(draw):
    x, weight = draw(3, 7), draw(7, 5)
    (rows,) = to_rows(weight, plan_layer("MatMul", 1))
    np.testing.assert_allclose(x @ rows.T, x @ weight, rtol=1e-6)


def test_a_window_without_attributes_is_the_plain_one():
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    assert window_of(node, (3, 5), (9, 9)) == {
        "kernel": (3, 5), "strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0),
    }  # fmt: skip


def test_a_window_has_the_attributes_of_its_node():
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2], dilations=[3], pads=[1, 2])
    assert window_of(node, (4,), (9,)) == {"kernel": (4,), "strides": (2,), "dilations": (3,), "pads": (1, 2)}


def test_valid_padding_is_none():
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="VALID", strides=[2, 2])
    assert window_of(node, (3, 3), (9, 9))["pads"] == (0, 0, 0, 0)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(
    ("kernel", "strides", "size"),
    [((3, 4), (2, 1), (8, 9)), ((2, 2), (3, 2), (7, 8)), ((1, 1), (2, 2), (5, 5))],
)
def test_same_padding_is_that_of_onnxruntime(build, run, draw, auto_pad, kernel, strides, size):
    weight = draw(2, 1, *kernel)
    attributes = f"strides = {list(strides)}"
    signature = f"g (float[1, 1, {size[0]}, {size[1]}] x) => (float[a, b, c, d] y)"
    same = build(f'{signature} {{ y = Conv <auto_pad = "{auto_pad}", {attributes}> (x, w) }}', w=weight)
    pads = window_of(same.graph.node[0], kernel, size)["pads"]
    explicit = build(f"{signature} {{ y = Conv <pads = {list(pads)}, {attributes}> (x, w) }}", w=weight)
    x = draw(1, 1, *size)
    np.testing.assert_array_equal(run(explicit, x)[0], run(same, x)[0])


def test_same_padding_reaches_over_dilated_kernels():
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", dilations=[3], strides=[2])
    assert window_of(node, (2,), (7,))["pads"] == (2, 1)
