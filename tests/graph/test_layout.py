import numpy as np
import pytest
from onnx import helper

from onnxcalib.graph.layout import adds_pairs, count_inputs, from_rows, kernel_rows, to_rows, window_of
from onnxcalib.spec import LayerScheme, QuantSpec


def plan_layer(op, axis, groups=1):
    spec = QuantSpec(8, signed=True, symmetric=True, axis=axis)
    return LayerScheme("layer", op, "x", "w", None, "y", spec, QuantSpec(8), groups)


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
    assert count_inputs(shape, layer) == rows[2]
    np.testing.assert_array_equal(from_rows(arranged, layer, shape), weight)
    channel = np.moveaxis(weight, layer.weight_spec.axis, 0)[1]
    np.testing.assert_array_equal(np.sort(arranged.reshape(-1, rows[2])[1]), np.sort(channel.reshape(-1)))


def test_rows_of_a_dense_layer_multiply_its_input(draw):
    x, weight = draw(3, 7), draw(7, 5)
    (rows,) = to_rows(weight, plan_layer("MatMul", 1))
    np.testing.assert_allclose(x @ rows.T, x @ weight, rtol=1e-6)


# The order of an x86 kernel's sums


@pytest.mark.parametrize("shape", [(4, 3, 2, 3), (4, 2, 3), (2, 3, 2, 2, 2)])
def test_rows_of_a_convolution_have_neighbouring_channels_side_by_side(shape):
    weight = np.random.default_rng(1).integers(-128, 128, shape).astype(np.int8)
    rows = kernel_rows(weight)
    assert rows.shape == (shape[0], int(np.prod(shape[1:])))
    places = list(np.ndindex(*shape[2:]))
    for channel, row in enumerate(rows):
        wanted = [weight[(channel, source, *place)] for place in places for source in range(shape[1])]
        assert row.tolist() == wanted


def test_rows_multiply_a_patch_with_its_channels_last(build, run):
    rng = np.random.default_rng(2)
    weight, patch = rng.integers(-128, 128, (4, 3, 2, 3)), rng.integers(0, 256, (3, 2, 3))
    text = "g (float[1, 3, 2, 3] x) => (float[1, 4, 1, 1] y) { y = Conv (x, w) }"
    (wanted,) = run(build(text, w=weight.astype(np.float32)), patch[None].astype(np.float32))
    np.testing.assert_array_equal(kernel_rows(weight) @ np.moveaxis(patch, 0, -1).reshape(-1), wanted.reshape(-1))


def test_rows_of_matrices_are_the_columns_of_each():
    matrix, stack = np.arange(12).reshape(4, 3), np.arange(24).reshape(2, 4, 3)
    np.testing.assert_array_equal(kernel_rows(matrix, 1), matrix.T)
    np.testing.assert_array_equal(kernel_rows(matrix, 0), matrix)
    np.testing.assert_array_equal(kernel_rows(stack, 2), [stack[k, :, i] for k in range(2) for i in range(3)])


def test_a_vector_is_one_row():
    assert kernel_rows(np.arange(4), 0).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("op", "shape", "groups", "found"),
    [
        ("Conv", (4, 1, 3, 3), 4, False),
        ("Conv", (4, 2, 3, 3), 4, True),
        ("Conv", (8, 1, 3, 3), 4, True),
        ("Conv", (1, 1, 3, 3), 1, True),
        ("Conv", (1, 4, 3, 3), 1, True),
        ("ConvTranspose", (4, 4, 3, 3), 1, False),
    ],
)
def test_a_depthwise_and_a_transposed_convolution_add_no_pairs(op, shape, groups, found):
    assert adds_pairs(op, shape, groups) == found


# Windows


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
