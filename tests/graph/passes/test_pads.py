import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import checker, numpy_helper

from onnxcalib.graph.index import attribute_of
from onnxcalib.graph.passes.attributes import spell_attributes
from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.graph.passes.pads import fold_pads

PADS = np.int64([0, 0, 1, 0, 0, 0, 2, 1])
ZERO = {"pads": PADS}
CONV, MAX = "Conv (p, w)", "MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (p)"
AVERAGE = "AveragePool <kernel_shape = [3, 3], strides = [2, 2]{}> (p)"


def make(build, draw, node, *, before="Identity", pad="Pad (r, pads)", inputs="float[N, 3, 8, 7] x", **weights):
    text = f"g ({inputs}) => (float[a, b, c, d] y) {{ r = {before} (x)  p = {pad}  y = {node} }}"
    model = build(text, opset=18, w=draw(4, 3, 3, 3), **weights)
    name_nodes(model)
    spell_attributes(model)
    return model


def ops(model):
    return [node.op_type for node in model.graph.node]


def last(model):
    return model.graph.node[-1]


@pytest.mark.parametrize(
    ("node", "before", "pad", "weights", "pads"),
    [
        (CONV, "Identity", "Pad (r, pads)", ZERO, [1, 0, 2, 1]),
        ("Conv <pads = [1, 2, 3, 4], strides = [2, 1]> (p, w)", "Identity", "Pad (r, pads)", ZERO, [2, 2, 5, 5]),
        ('Conv <auto_pad = "VALID"> (p, w)', "Identity", "Pad (r, pads, zero)", {**ZERO, "zero": np.float32(0)}, None),
        (CONV, "Identity", "Pad (r, pads)", {"pads": 9 * PADS}, [9, 0, 18, 9]),
        (CONV, "Identity", 'Pad <mode = "constant"> (r, pads, , axes)',
         {"pads": np.int64([1, 2, 3, 4]), "axes": np.int64([-1, 2])}, [2, 1, 4, 3]),
        (MAX, "Relu", "Pad (r, pads)", ZERO, [1, 0, 2, 1]),
        (MAX, "Sigmoid", "Pad (r, pads)", ZERO, [1, 0, 2, 1]),
        (MAX, "Identity", "Pad (r, pads, low)", {**ZERO, "low": np.float32(-np.inf)}, [1, 0, 2, 1]),
        (AVERAGE.format(""), "Identity", "Pad (r, pads)", ZERO, [1, 0, 2, 1]),
        (AVERAGE.format(", count_include_pad = 1, pads = [1, 1, 0, 0]"), "Identity", "Pad (r, pads)", ZERO,
         [2, 1, 2, 1]),
    ],
)  # fmt: skip
def test_the_reader_pads_by_itself(build, run, draw, node, before, pad, weights, pads):
    model = make(build, draw, node, before=before, pad=pad, **weights)
    x = draw(2, 3, 8, 7)
    (wanted,) = run(model, x)
    assert fold_pads(model) == 1
    assert "Pad" not in ops(model) and "pads" not in {tensor.name for tensor in model.graph.initializer}
    assert attribute_of(last(model), "pads", None) == (pads or [1, 0, 2, 1])
    checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, x)[0], wanted, rtol=1e-5, atol=1e-5)
    assert fold_pads(model) == 0


@pytest.mark.parametrize(
    ("node", "before", "pad", "weights"),
    [
        (CONV, "Identity", "Pad (r, pads, one)", {**ZERO, "one": np.float32(1)}),
        (CONV, "Identity", 'Pad <mode = "edge"> (r, pads)', ZERO),
        (CONV, "Identity", "Pad (r, pads)", {"pads": np.int64([0, 0, -1, 0, 0, 0, 1, 0])}),
        (CONV, "Identity", "Pad (r, pads)", {"pads": np.int64([1, 0, 1, 1, 0, 0, 1, 1])}),
        ("Conv (p, p)", "Identity", "Pad (r, pads)", ZERO),
        ("Conv (x, p)", "Identity", "Pad (r, pads)", ZERO),
        ("ConvTranspose (p, v)", "Identity", "Pad (r, pads)", ZERO),
        (MAX, "Identity", "Pad (r, pads)", ZERO),
        (MAX, "LeakyRelu", "Pad (r, pads)", ZERO),
        (CONV, "Relu", "Pad (r, pads, low)", {**ZERO, "low": np.float32(-np.inf)}),
        (MAX, "Relu", "Pad (r, pads)", {"pads": 2 * PADS}),
        ("MaxPool <kernel_shape = [3, 3], ceil_mode = 1> (p)", "Relu", "Pad (r, pads)", ZERO),
        ("MaxPool <kernel_shape = [3, 3], dilations = [2, 2]> (p)", "Relu", "Pad (r, pads)", ZERO),
        (AVERAGE.format(", pads = [1, 1, 0, 0]"), "Identity", "Pad (r, pads)", ZERO),
        (AVERAGE.format(", ceil_mode = 1"), "Identity", "Pad (r, pads)", ZERO),
        ("Add (p, p)", "Identity", "Pad (r, pads)", ZERO),
    ],
)  # fmt: skip
def test_a_pad_that_the_reader_cannot_take_stays(build, draw, node, before, pad, weights):
    model = make(build, draw, node, before=before, pad=pad, v=draw(3, 4, 3, 3), **weights)
    before = model.SerializeToString(deterministic=True)
    assert fold_pads(model) == 0
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("output", ["y", "p"])
def test_a_pad_of_nothing_vanishes(build, run, draw, mode, output):
    model = build(
        f"""g (float[N, 3, 8, 7] x) => (float[a, b, c, d] {output}) {{
            r = Abs (x)  p = Pad <mode = "{mode}"> (r, pads)  y = Relu (p) }}""",
        pads=np.zeros(8, np.int64),
    )
    name_nodes(model)
    x = draw(2, 3, 8, 7)
    (before,) = run(model, x)
    assert fold_pads(model) == 1 and "Pad" not in ops(model) and "Identity" not in ops(model)
    np.testing.assert_array_equal(run(model, x)[0], before)


def test_pads_that_are_not_known_stay(build, draw):
    known = make(build, draw, CONV, inputs="float[N, 3, 8, 7] x, int64[8] pads")
    sized = make(build, draw, 'Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (p, w)', inputs="float[N, 3, H, W] x",
                 **ZERO)  # fmt: skip
    assert fold_pads(known) == 0 and fold_pads(sized) == 0
    bare = make(build, draw, CONV, **ZERO)
    del last(bare).attribute[:]
    assert fold_pads(bare) == 0


@pytest.mark.parametrize(
    ("more", "output", "count"),
    [
        ("z = MaxPool <kernel_shape = [2, 2]> (p)", "float[a, b, c, d] z", 1),
        ("z = Relu (p)", "float[a, b, c, d] z", 0),
        ("z = Shape (p)", "int64[4] z", 0),
        ("", "float[a, b, c, d] p", 0),
        ("z = If (yes) <then_branch = t () => (float[a, b, c, d] u) { u = Neg (p) },"
         " else_branch = e () => (float[a, b, c, d] v) { v = Abs (p) }>", "float[a, b, c, d] z", 0),
    ],
)  # fmt: skip
def test_a_pad_goes_only_where_all_of_its_readers_take_it(build, run, draw, more, output, count):
    model = build(
        f"""g (float[N, 3, 8, 7] x, bool yes) => (float[e, f, g, h] y, {output}) {{
            r = Relu (x)  p = Pad (r, pads)  y = Conv (p, w)  {more} }}""",
        w=draw(4, 3, 3, 3), pads=PADS // 2,
    )  # fmt: skip
    name_nodes(model)
    spell_attributes(model)
    inputs = draw(2, 3, 8, 7), np.array(True)
    wanted = run(model, *inputs)
    assert fold_pads(model) == count and ("Pad" in ops(model)) is not bool(count)
    for before, after in zip(wanted, run(model, *inputs), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_a_pool_whose_places_are_counted_keeps_its_pad(build, draw):
    model = build(
        """g (float[N, 3, 8, 7] x) => (float[a, b, c, d] y, int64[a, b, c, d] places) {
            r = Relu (x)  p = Pad (r, pads)  y, places = MaxPool <kernel_shape = [3, 3]> (p) }""",
        pads=PADS,
    )
    name_nodes(model)
    spell_attributes(model)
    assert fold_pads(model) == 0


LAYERS = {
    "QLinearConv": "Conv <pads = [2, 0, 1, 1]> (a, w)",
    "QLinearConv of one channel": "Conv <pads = [1, 0, 1, 2], group = 8> (a, v)",
    "QLinearAveragePool": "AveragePool <kernel_shape = [3, 3], pads = [0, 1, 2, 1], count_include_pad = 1> (a)",
    "NhwcMaxPool": "MaxPool <kernel_shape = [3, 3], pads = [0, 1, 2, 1]> (a)",
}


def run_at(level, model, x, folder):
    """Output and the operators that run; sums are exact whatever the processor."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0], ops(onnx.load(folder / "optimized.onnx"))


@pytest.mark.parametrize("kernel", LAYERS)
def test_integer_kernels_pad_with_the_zero_of_the_grid(build, rough, draw, tmp_path, kernel):
    body = f"a = Conv (x, u)  b = {LAYERS[kernel]}  y = Conv (b, u)"
    model = build(
        f"g (float[N, 8, 9, 9] x) => (float[a, b, c, d] y) {{ {body} }}",
        u=np.eye(8, dtype=np.float32)[:, :, None, None], w=draw(8, 8, 3, 3), v=draw(8, 1, 3, 3),
    )  # fmt: skip
    name_nodes(model)
    x = draw(2, 8, 9, 9) + np.float32(0.5)
    quantized = rough(model, x)
    values = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    assert 50 < values["a_zero_point"] < 150
    level = onnxruntime.GraphOptimizationLevel
    (plain, _), (fused, found) = (
        run_at(each, quantized, x, tmp_path) for each in (level.ORT_DISABLE_ALL, level.ORT_ENABLE_ALL)
    )
    assert kernel.split()[0] in found and (found.count("QuantizeLinear"), found.count("DequantizeLinear")) == (1, 1)
    assert np.abs(fused - plain).max() < 1.01 * values["y_scale"]
    assert (np.abs(fused - plain) > 0).mean() < 0.01


def test_several_pads_in_a_row_all_go(build, run, draw):
    text = """g (float[N, 3, 8, 7] x) => (float[a, b, c, d] y) {
        p = Pad (x, pads) q = Pad (p, more) r = Pad (q, pads) y = Conv (r, w) }"""
    model = build(text, opset=18, w=draw(4, 3, 3, 3), pads=PADS, more=np.int64([0, 0, 0, 2, 0, 0, 1, 0]))
    name_nodes(model)
    spell_attributes(model)
    x = draw(2, 3, 8, 7)
    wanted = run(model, x)[0]
    assert fold_pads(model) == 3 and ops(model) == ["Conv"]
    np.testing.assert_allclose(run(model, x)[0], wanted, rtol=1e-5, atol=1e-5)
    assert attribute_of(last(model), "pads", None) == [2, 2, 5, 2]


def test_a_resize_that_extrapolates_may_give_negative_values(build, draw):
    """Beside what it reads, which has none: so a MaxPool behind it keeps its Pad."""
    text = """g (float[N, 3, 6, 6] x) => (float[a, b, c, d] y) {
        r = Relu (x) q = Resize <mode = "nearest", coordinate_transformation_mode = "tf_crop_and_resize",
        extrapolation_value = -5.0> (r, roi, scales)
        p = Pad (q, pads) y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (p) }"""
    roi = np.array([0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5], np.float32)
    model = build(text, opset=18, roi=roi, scales=np.array([1, 1, 2, 2], np.float32), pads=PADS)
    name_nodes(model)
    spell_attributes(model)
    assert fold_pads(model) == 0
