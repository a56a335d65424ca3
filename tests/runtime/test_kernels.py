"""Integer kernels of onnxruntime on this processor: which products they add as pairs, and where such sums saturate."""

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcalib.graph.layout import adds_pairs, from_rows, summing_order, to_rows
from onnxcalib.numeric.solve import round_layer
from onnxcalib.runtime.session import Session, saturates
from onnxcalib.spec import INT16_MAX, LayerScheme, QuantSpec

HIGHEST = 255
LIMIT = INT16_MAX // HIGHEST
# name: operator, shape of the weight, shape of the input, attributes.
KERNELS = {
    "Conv 1x1": ("Conv", (4, 16, 1, 1), (1, 16, 5, 5), {}),
    "Conv 3x3": ("Conv", (4, 4, 3, 3), (2, 4, 5, 5), {"pads": [1, 1, 1, 1]}),
    "Conv 3x3 of an odd number of channels": ("Conv", (4, 3, 3, 3), (1, 3, 5, 5), {}),
    "Conv of 16 channels, which symmetric kernels take": ("Conv", (16, 16, 2, 2), (1, 16, 4, 4), {}),
    "Conv with strides": ("Conv", (4, 4, 2, 2), (1, 4, 6, 6), {"strides": [2, 2]}),
    "Conv with dilations": ("Conv", (4, 4, 2, 2), (1, 4, 6, 6), {"dilations": [2, 2]}),
    "Conv of one channel": ("Conv", (8, 1, 3, 3), (1, 1, 5, 5), {}),
    "Conv in 1 dimension": ("Conv", (4, 4, 3), (1, 4, 9), {}),
    "Conv in 3 dimensions": ("Conv", (4, 2, 2, 2, 2), (1, 2, 3, 3, 3), {}),
    "Conv of groups": ("Conv", (8, 4, 2, 2), (1, 8, 4, 4), {"group": 2}),
    "Conv of groups of an odd number of channels": ("Conv", (4, 3, 2, 2), (1, 6, 4, 4), {"group": 2}),
    "depthwise Conv": ("Conv", (8, 1, 3, 3), (1, 8, 5, 5), {"group": 8}),
    "depthwise Conv with a multiplier": ("Conv", (16, 1, 3, 3), (1, 8, 5, 5), {"group": 8}),
    "Gemm": ("Gemm", (8, 16), (4, 16), {"transB": 1}),
    "Gemm of one row and odd inputs": ("Gemm", (8, 15), (1, 15), {"transB": 1}),
    "MatMul": ("MatMul", (16, 8), (4, 16), {}),
    "MatMul of one row": ("MatMul", (16, 8), (1, 16), {}),
    "MatMul in 3 dimensions": ("MatMul", (15, 8), (2, 3, 15), {}),
}
# The same with so many inputs that kernels work on them in parts.
WIDE = {
    "Conv": ("Conv", (24, 40, 3, 3), (2, 40, 7, 7), {"pads": [1, 1, 1, 1]}),
    "Conv of an odd number of channels": ("Conv", (24, 37, 3, 3), (2, 37, 7, 7), {"pads": [1, 1, 1, 1]}),
    "Conv of groups": ("Conv", (32, 18, 3, 3), (2, 36, 7, 7), {"group": 2}),
    "depthwise Conv": ("Conv", (32, 1, 5, 5), (2, 32, 9, 9), {"group": 32}),
    "Gemm": ("Gemm", (24, 1000), (5, 1000), {"transB": 1}),
    "MatMul": ("MatMul", (777, 24), (2, 3, 777), {}),
}


# The only one whose products are not added in pairs.
UNPAIRED = "depthwise Conv"


def plan_layer(op: str, shape, attributes) -> LayerScheme:
    axis = 1 if op == "MatMul" else 0
    groups = attributes.get("group", 1)
    limit = LIMIT if adds_pairs(op, shape, groups) else None
    spec = QuantSpec(8, signed=True, symmetric=True, axis=axis, pair_limit=limit)
    return LayerScheme("layer", op, "x", "w", None, "y", spec, QuantSpec(8), groups)


def make_model(kernel, weight: np.ndarray, *, scale: float, zero_points=(0, 0)) -> ModelProto:
    """One layer between Q/DQ pairs, of steps 1 in front and ``scale`` behind, and zero points in front and behind."""
    op, _, shape, attributes = kernel
    axis = 1 if op == "MatMul" else 0
    channels = weight.shape[axis]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero_in"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero_in"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=axis),
        helper.make_node(op, ["xd", "wd"], ["y"], **attributes),
        helper.make_node("QuantizeLinear", ["y", "step", "zero_out"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "step", "zero_out"], ["out"]),
    ]
    values = {"one": np.float32(1), "zero_in": np.uint8(zero_points[0]), "zero_out": np.uint8(zero_points[1])}
    values |= {"step": np.float32(scale), "w": weight.astype(np.int8)}
    values |= {"w_scale": np.ones(channels, np.float32), "w_zero": np.zeros(channels, np.int8)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measure_steps(model: ModelProto, x: np.ndarray, scale: float, **how) -> float:
    """Largest difference of a session from one without graph optimizations, in steps."""
    wanted, given = (s.run({"x": x})["out"] for s in (Session(model, optimize=False), Session(model, **how)))
    return float(np.abs(wanted - given).max() / scale)


def weigh_pair(kernel, pair: tuple[int, int], sizes: tuple[int, int]) -> np.ndarray:
    """A weight with two integers in each row, and one far off that brings their sum back into int16."""
    op, shape, _, attributes = kernel
    layer = plan_layer(op, shape, attributes)
    rows = np.zeros(to_rows(np.zeros(shape), layer).shape)
    order = summing_order(layer, shape)
    rows[..., order[pair[0]]], rows[..., order[pair[1]]] = sizes
    other = next(place for place in range(len(order)) if place // 2 not in (pair[0] // 2, pair[1] // 2))
    rows[..., order[other]] = -127
    return from_rows(rows, layer, shape)


def count_inputs(kernel) -> int:
    op, shape, _, attributes = kernel
    return len(summing_order(plan_layer(op, shape, attributes), shape))


@pytest.mark.parametrize("name", KERNELS)
def test_a_pair_at_its_limit_is_exact_and_one_above_saturates_where_the_processor_does(name):
    kernel = KERNELS[name]
    x = np.full(kernel[2], HIGHEST, np.float32)
    for first in range(0, count_inputs(kernel) - 1, 2):
        pair = (first, first + 1)
        at, above = (weigh_pair(kernel, pair, (64, LIMIT - 64 + more)) for more in (0, 1))
        assert measure_steps(make_model(kernel, at, scale=4), x, 4, deployed=True) <= 1, pair
        steps = measure_steps(make_model(kernel, above, scale=4), x, 4, deployed=True)
        assert steps > 20 if saturates() and name != UNPAIRED else steps <= 1, (pair, steps)


@pytest.mark.parametrize("name", KERNELS)
def test_products_that_are_no_pair_never_saturate(name):
    """The second of a pair and the first of the next; a last one of an odd number is alone."""
    kernel = KERNELS[name]
    x = np.full(kernel[2], HIGHEST, np.float32)
    for first in range(1, count_inputs(kernel) - 1, 2):
        weight = weigh_pair(kernel, (first, first + 1), (127, 127))
        assert measure_steps(make_model(kernel, weight, scale=200), x, 200, deployed=True) <= 1, first


@pytest.mark.parametrize("name", KERNELS)
def test_sums_are_exact_on_every_processor_unless_the_session_is_a_deployed_one(name):
    kernel = KERNELS[name]
    weight = np.full(kernel[1], 127)
    x = np.full(kernel[2], HIGHEST, np.float32)
    scale = 127 * count_inputs(kernel)
    assert measure_steps(make_model(kernel, weight, scale=scale), x, scale) <= 1
    steps = measure_steps(make_model(kernel, weight, scale=scale), x, scale, deployed=True)
    assert steps > 50 if saturates() and name != UNPAIRED else steps <= 1


@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize("name", WIDE)
def test_rounded_weights_give_what_they_say_on_every_processor(name, zero_point):
    kernel = WIDE[name]
    op, shape, sizes, attributes = kernel
    layer = plan_layer(op, shape, attributes)
    rng = np.random.default_rng(0)
    # Heavy tails of one sign: full range would leave hundreds of pairs beyond the limit.
    weight = np.abs(rng.standard_t(3, shape)).astype(np.float32)
    rows = torch.from_numpy(to_rows(weight, layer).copy())
    summing = torch.from_numpy(summing_order(layer, shape)) if layer.weight_spec.pair_limit else None
    integers = from_rows(round_layer(rows, layer.weight_spec, summing=summing).integers.numpy(), layer, shape)
    x = rng.integers(0, 2, sizes).astype(np.float32) * HIGHEST - zero_point
    scale = float(HIGHEST * np.abs(integers).sum() / shape[layer.weight_spec.axis] / 100)
    model = make_model(kernel, integers, scale=scale, zero_points=(zero_point, 128))
    assert measure_steps(model, x, scale, deployed=True) <= 1


def test_products_of_two_activations_are_exact():
    """Both are unsigned: their kernel has no such sums."""
    nodes = []
    for name in ("a", "b"):
        nodes.append(helper.make_node("QuantizeLinear", [name, "one", "zero"], [f"{name}q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}q", "one", "zero"], [f"{name}d"]))
    nodes.append(helper.make_node("MatMul", ["ad", "bd"], ["y"]))
    nodes.append(helper.make_node("QuantizeLinear", ["y", "step", "zero"], ["yq"]))
    nodes.append(helper.make_node("DequantizeLinear", ["yq", "step", "zero"], ["out"]))
    scale = float(HIGHEST * 32)
    constants = {"one": np.float32(1), "zero": np.uint8(0), "step": np.float32(scale * 16)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 32, 32]) for name in ("a", "b")],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = dict.fromkeys("ab", np.full((2, 32, 32), HIGHEST, np.float32))
    wanted, given = (Session(model, optimize=o, deployed=True).run(feeds)["out"] for o in (False, True))
    assert np.abs(wanted - given).max() <= scale * 16


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_that_add_in_pairs_are_known(name):
    op, shape, _, attributes = KERNELS[name]
    assert adds_pairs(op, shape, attributes.get("group", 1)) is (name != UNPAIRED)
    assert not adds_pairs("ConvTranspose", shape, attributes.get("group", 1))


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("Conv of groups of an odd number of channels", [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]),
        ("Conv in 1 dimension", [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]),
        ("MatMul in 3 dimensions", list(range(15))),
        ("Gemm", list(range(16))),
    ],
)
def test_the_order_of_the_sums_is_known(name, order):
    """Channels last."""
    op, shape, _, attributes = KERNELS[name]
    assert summing_order(plan_layer(op, shape, attributes), shape).tolist() == order
