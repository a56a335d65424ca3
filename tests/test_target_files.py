"""What quantize writes for a target keeps its rules, and its numbers are near those of the float model."""

from __future__ import annotations

import re

import numpy as np
import pytest

import onnxcalib
from onnxcalib import ConfigError, QuantizeConfig, quantize
from onnxcalib.graph.index import is_op

SAMPLES = np.random.default_rng(3).normal(size=(24, 3, 16, 16)).astype(np.float32)
CONV = "Conv <pads = [1, 1, 1, 1]>"
# Layers, what is added to their outputs, pools, movers, gates, a Concat, a product of activations, and float operators.
NET = f"""g (float[1, 3, 16, 16] image) => (float[1, 4] scores, float[1, 8, 8, 8] map) {{
    [stem] a = {CONV} (image, w1, b1)  [relu] r = Relu (a)
    [inner] c = {CONV} (r, w2, b2)  [add] s = Add (c, r)  [relu2] t = Relu (s)
    [pool] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (t)
    [deep] d = Conv <pads = [1, 1, 1, 1], group = 8> (p, w3)  [clip] e = Clip (d, zero, six)
    [side] o = Conv (p, w4)  [gate] h = HardSwish (o)
    [join] k = Concat <axis = 1> (e, h)  [mix] m = Conv (k, w5)
    [flat2] v = Reshape (m, rows)  [turn] u = Transpose <perm = [0, 2, 1]> (v)  [product] q = MatMul (v, u)
    [soft] z = Softmax (q)  [back] map = Reshape (m, square)
    [mean] g1 = GlobalAveragePool (m)  [flat] f = Flatten (g1)  [wide] x1 = ReduceMean <keepdims = 0> (z, last)
    [sum] x2 = Add (f, x1)  [head] scores = Gemm <transB = 1> (x2, w6, b6)
}}"""
CONSTANTS = {
    "zero": np.float32(0), "six": np.float32(6), "rows": np.int64([1, 8, 64]), "square": np.int64([1, 8, 8, 8]),
    "last": np.int64([2]),
}  # fmt: skip
MLP = """g (float[N, 128] x) => (float[N, 4] y) {
    [first] a = MatMul (x, w1)  [relu] r = Relu (a)  [narrow] n = MatMul (r, w2)  [relu2] s = Relu (n)
    [last] y = Gemm (s, w3, b3) }"""
OURS = ("tensorrt", "symmetric", "openvino")


@pytest.fixture
def net(build, weigh):
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 1, 3, 3), "w4": (8, 8, 1, 1), "w5": (8, 16, 1, 1)}
    weights = {name: weigh(*shape) for name, shape in shapes.items()} | {"w6": weigh(4, 8)}
    return build(NET, opset=18, **weights, b1=weigh(8), b2=weigh(8), b6=weigh(4), **CONSTANTS)


@pytest.mark.parametrize("target", OURS)
def test_a_file_keeps_the_rules_of_its_target(net, target):
    result = quantize(net, SAMPLES, QuantizeConfig(target=target, pipeline="light"))
    assert not [each.text for each in onnxcalib.check_target(result.model, target).violations]
    assert min(output.sqnr_db for output in result.report.outputs) > 20


@pytest.mark.parametrize("target", OURS)
def test_what_the_user_leaves_in_float_breaks_no_rule(net, target):
    config = QuantizeConfig(target=target, pipeline="light", exclude=("side", "relu2", "product"))
    result = quantize(net, SAMPLES, config)
    assert result.lint.passed, [each.text for each in result.lint.violations]
    assert not [node.name for node in result.model.graph.node if is_op(node, "Max")]


@pytest.fixture
def mlp(build, weigh):
    return build(MLP, w1=weigh(128, 96), w2=weigh(96, 64), w3=weigh(64, 4), b3=weigh(4))


VECTORS = np.random.default_rng(4).normal(size=(32, 128)).astype(np.float32)
ALONE = {"target": "tensorrt", "weight_bits": 4, "activation_bits": 32}


def test_weights_alone_are_int4_in_blocks_that_tensorrt_takes(mlp):
    result = quantize(mlp, VECTORS, QuantizeConfig(**ALONE))
    assert onnxcalib.check_target(result.model, "tensorrt").passed
    blocks = [onnx_attribute(node) for node in result.model.graph.node if is_op(node, "DequantizeLinear")]
    assert blocks == [64, 64]
    reason = "its weight has 96 inputs, and target 'tensorrt' takes whole blocks of 64"
    assert {each.name: each.reason for each in result.report.in_float} == {"narrow": reason}


def test_layers_that_tensorrt_has_not_for_weights_alone_are_refused_or_left_in_float(net):
    complaint = (
        "activation_bits: found 32, and no layer that can have it; stem stays in float, as target 'tensorrt' takes"
        " weights beside float activations in Gemm and MatMul alone; give 8, or another target"
    )
    with pytest.raises(ConfigError, match="^" + re.escape(complaint)):
        quantize(net, SAMPLES, QuantizeConfig(**ALONE))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"block_size": 32}, "block_size: found 32; target 'tensorrt' takes 64 or 128"),
        ({"first_last_bits": 8}, "first_last_bits: found 8; target 'tensorrt' takes 4"),
    ],
)
def test_blocks_and_bits_that_tensorrt_has_not_for_weights_alone_are_refused(mlp, settings, complaint):
    with pytest.raises(ConfigError, match="^" + complaint):
        quantize(mlp, VECTORS, QuantizeConfig(**ALONE, **settings))


def onnx_attribute(node):
    return next(attribute.i for attribute in node.attribute if attribute.name == "block_size")
