"""Which nodes the tool itself leaves in float, and why."""

import re

import numpy as np
import pytest

import onnxcalib
from onnxcalib import OnnxCalibWarning, pipeline
from onnxcalib.config import QuantizeConfig
from onnxcalib.quantization import last_layers, placement
from onnxcalib.quantization.output_parts import find_parts
from onnxcalib.quantization.tensor_shapes import measure_shapes

HEAD = """[stem] h = Conv <pads = [1, 1, 1, 1]> (x, w1)  [relu] r = Relu (h)
    [body] k = Conv <pads = [1, 1, 1, 1]> (r, w2)  [relu2] f = Relu (k)
    [box] b = Conv (f, wb)  [cls] s = Conv (f, ws)  [j] j = Concat <axis = 1> (b, s)
    [t] bb, ss = Split <axis = 1> (j, sizes)  [m] q = Mul (bb, hundred)  [p] p = Sigmoid (ss)
    [y] y = Concat <axis = 1> (q, p)"""


@pytest.fixture
def detector(build, weigh):
    return build(
        f"g (float[N, 3, 8, 8] x) => (float[N, 7, 8, 8] y) {{ {HEAD} }}",
        w1=weigh(32, 3, 3, 3), w2=weigh(64, 32, 3, 3), wb=weigh(4, 64, 1, 1), ws=weigh(3, 64, 1, 1),
        sizes=np.array([4, 3]), hundred=np.float32(100),
    )  # fmt: skip


@pytest.fixture
def prepare(draw):
    return lambda model: pipeline.prepare(model, draw(16, 3, 8, 8), QuantizeConfig(threads=1))


def test_joined_parts_and_the_last_layers_of_a_detector_stay_in_float(detector, prepare, monkeypatch):
    monkeypatch.setattr(last_layers, "MOST_SHARE", 0.03)
    prepared = prepare(detector)
    assert prepared.in_float.keys() == {"j", "box", "cls"}
    assert prepared.in_float["j"] == (
        "it joins tensors that are taken apart again; on one grid the range of one would round the others"
    )
    assert prepared.in_float["cls"] == (
        "the last layers in front of the parts of y, which 256 levels would hold badly; 2.3% of the model's products"
    )
    assert {layer.name for layer in prepared.scheme.layers} == {"stem", "body"}
    assert prepared.parts.keys() == {"y"}


def test_last_layers_that_cost_much_stay_on_integers_on_grids_of_their_own(detector, prepare):
    prepared = prepare(detector)
    assert prepared.in_float.keys() == {"j"}
    assert {"b", "s"} <= prepared.scheme.activations.keys()
    assert not any({"b", "s"} & set(members) for members in prepared.scheme.shared)


def test_layers_that_read_floats_are_quantized_all_the_same(detector, draw, monkeypatch):
    monkeypatch.setattr(last_layers, "MOST_SHARE", 0.03)
    prepared = pipeline.prepare(detector, draw(16, 3, 8, 8), QuantizeConfig(threads=1, activation_bits=32))
    assert prepared.in_float == {}
    assert {layer.name for layer in prepared.scheme.layers} == {"stem", "body", "box", "cls"}


def test_bits_of_a_layer_that_stays_in_float_are_warned_of(detector, draw, monkeypatch):
    monkeypatch.setattr(last_layers, "MOST_SHARE", 0.03)
    config = QuantizeConfig(threads=1, layers={"box|stem": {"weight_bits": 8}})
    text = "layers: box: found bits, which have no effect: box stays in float, as the last layers in front of the parts"
    with pytest.warns(OnnxCalibWarning, match=re.escape(text)):
        pipeline.prepare(detector, draw(16, 3, 8, 8), config)


def test_a_matrix_product_gives_float_already(build, weigh, draw):
    model = build(
        "g (float[N, 8] x) => (float[N, 5] y) { [h] h = MatMul (x, w)  [a] a = MatMul (h, wa)  [b] b = MatMul (h, wb)"
        " [y] y = Concat <axis = 1> (a, b) }",
        w=weigh(8, 200), wa=weigh(200, 2), wb=weigh(200, 3),
    )  # fmt: skip
    feeds = {"x": draw(2, 8)}
    assert last_layers.find_last_layers(model, find_parts(model, feeds), measure_shapes(model, feeds)) == {}


def test_angles_of_positions_stay_in_float_and_sizes_are_not_listed(build, weigh, draw):
    model = build(
        """g (float[N, 4] x, int64[N, 1] pos) => (float[N, 4] y) {
            p = Cast <to = 1> (pos)  [angles] a = MatMul (p, row)  s = Sin (a)  [in] h = MatMul (x, w)
            [turn] t = Mul (h, s)  [out] z = MatMul (t, w)
            n = Shape (z)  [double] d = Concat <axis = 0> (n, n)  e = Slice (d, zero, two)  y = Reshape (z, e) }""",
        w=weigh(4, 4), row=draw(1, 4), zero=np.int64([0]), two=np.int64([2]),
    )  # fmt: skip
    samples = {"x": draw(16, 4), "pos": np.arange(16)[:, None]}
    found = pipeline.prepare(model, samples, QuantizeConfig(threads=1))
    assert list(found.in_float) == ["angles", "turn"]
    assert [layer.name for layer in found.scheme.layers] == ["in", "out"]


@pytest.mark.parametrize(("last", "found"), [("Conv (u, w)", ["first", "pool"]), ("Neg (u)", ["pool"])])
def test_a_pool_with_places_stays_in_float_with_its_layer_unless_no_other_is_left(build, weigh, draw, last, found):
    sizes = "<kernel_shape = [2, 2], strides = [2, 2]>"
    body = f"[first] c = Conv (x, w) [pool] m, i = MaxPool {sizes} (c) u = MaxUnpool {sizes} (m, i) y = {last}"
    model = build(f"g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {{ {body} }}", w=weigh(3, 3, 1, 1))
    assert list(pipeline.prepare(model, draw(16, 3, 8, 8), QuantizeConfig(threads=1)).in_float) == found


# Patches, and the float operators of a transformer in front of its first layer.
PATCHES = """g (float[N, 3, 8, 8] x) => (float[N, 4, M] y) {
    [patch] c = Conv <strides = [4, 4]> (x, w1)  f = Reshape (c, flat)  t = Transpose <perm = [0, 2, 1]> (f)
    n = LayerNormalization (t, g)  [wide] h = MatMul (n, w2)  y = Tanh (h) }"""


@pytest.mark.parametrize(
    ("width", "settings", "alone"),
    [
        (2048, {}, {"patch"}),
        (64, {}, set()),  # of few products, a convolution in float would cost too much
        (2048, {"placement": "all"}, set()),
        (2048, {"layers": {"patch": {"activation_bits": 8}}}, set()),
    ],
)
def test_a_small_convolution_that_gives_patches_to_a_norm_reads_float(build, weigh, draw, width, settings, alone):
    operands = {"w1": weigh(8, 3, 4, 4), "flat": np.int64([0, 8, 4]), "g": np.ones(8, np.float32)}
    model = build(PATCHES, **operands, w2=weigh(8, width))
    prepared = pipeline.prepare(model, draw(16, 3, 8, 8), QuantizeConfig(threads=1, **settings))
    assert (prepared.alone, "c" in prepared.scheme.activations) == (alone, not alone)
    told = [each.reason for each in prepared.run.left_out if each.what == "integer activations of patch"]
    share = "256 levels would round what float operators read of it; 2.3% of the model's products"
    assert told == [f"{share}; its weights alone are quantized"] * len(alone)


def test_one_that_gives_patches_to_a_layer_too_stays_on_integers(build, weigh, draw):
    operands = {"w1": weigh(8, 3, 4, 4), "flat": np.int64([0, 8, 4]), "g": np.ones(8, np.float32)}
    model = build(PATCHES.replace("y = Tanh (h)", "d = MatMul (t, w2) y = Sub (h, d)"), **operands, w2=weigh(8, 2048))
    assert not pipeline.prepare(model, draw(16, 3, 8, 8), QuantizeConfig(threads=1)).alone


# A constant on the left of one product, and a plain layer.
LEFT = """g (float[N, 8, 8] x) => (float[N, 6, 4] y) {
    [right] a = MatMul (x, w1)  r = Relu (a)  [left] b = MatMul (w2, r)  y = Tanh (b) }"""


@pytest.fixture
def left(build, weigh):
    return build(LEFT, w1=weigh(8, 4), w2=weigh(6, 8))


def list_ops(prepared):
    return {node.name: node.op_type for node in prepared.model.graph.node if node.name in ("left", "right")}


def test_a_product_with_its_constant_on_the_left_becomes_a_convolution(left, draw):
    prepared = pipeline.prepare(left, draw(16, 8, 8), QuantizeConfig(placement="all", threads=1))
    assert list_ops(prepared) == {"left": "Conv", "right": "MatMul"}


def test_one_that_is_excluded_keeps_its_operator(left, draw):
    prepared = pipeline.prepare(left, draw(16, 8, 8), QuantizeConfig(exclude=["left"], threads=1))
    assert list_ops(prepared) == {"left": "MatMul", "right": "MatMul"}
    assert prepared.passes["products_as_layers"] == 0


@pytest.mark.parametrize(("exclude", "ops"), [([], {"Conv", "DepthToSpace"}), (["up"], {"Conv", "ConvTranspose"})])
def test_a_transposed_convolution_that_is_excluded_keeps_its_operator(build, weigh, draw, exclude, ops):
    body = "[down] h = Conv (x, w1)  [up] y = ConvTranspose <strides = [2, 2]> (h, w2)"
    model = build(
        f"g (float[N, 3, 4, 4] x) => (float[N, 3, 8, 8] y) {{ {body} }}", w1=weigh(8, 3, 1, 1), w2=weigh(8, 3, 2, 2)
    )
    settings = QuantizeConfig(exclude=exclude, placement="all", threads=1)
    prepared = pipeline.prepare(model, draw(16, 3, 4, 4), settings)
    assert {node.op_type for node in prepared.model.graph.node} == ops
    assert prepared.passes["write_as_convolutions"] == (not exclude)


def test_one_that_would_be_slower_on_integers_keeps_its_operator_and_the_reason(left, draw, monkeypatch):
    def choose(model, *_):
        return {node.name: "it is slow" for node in model.graph.node if node.op_type == "Conv"}

    monkeypatch.setattr(placement, "choose_by_cost", choose)
    result = onnxcalib.quantize(left, draw(16, 8, 8), QuantizeConfig(reconstruct=False, threads=1))
    (record,) = result.report.in_float
    assert (record.name, record.op, record.reason, record.bytes) == ("left", "MatMul", "it is slow", 192)
    assert [layer.name for layer in result.report.layers] == ["right"]
    assert "Conv" not in [node.op_type for node in result.model.graph.node]
