"""The main job from Python, end to end on small models."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcalib
import onnxcalib.graph.load
from onnxcalib import DataError, ModelError, QuantizeConfig, quantize
from onnxcalib.report import Observer

SAMPLES = np.random.default_rng(3).normal(size=(24, 3, 8, 8)).astype(np.float32)
NET = """g (float[N, 3, 8, 8] image) => (float[N, 4] scores) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)  [relu1] r = Relu (a)
    [inner] c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)  [add] s = Add (c, r)  [relu2] t = Relu (s)
    [deep] d = Conv <pads = [1, 1, 1, 1], group = 8> (t, w3)  [clip] e = Clip (d, zero, six)
    [mean] m = GlobalAveragePool (e)  [flat] f = Flatten (m)  [head] scores = Gemm <transB = 1> (f, w4, b4)
}"""
LIMITS = {"zero": np.float32(0), "six": np.float32(6)}


@pytest.fixture
def net(build, weigh):
    weights = {"w1": weigh(8, 3, 3, 3), "w2": weigh(8, 8, 3, 3), "w3": weigh(8, 1, 3, 3), "w4": weigh(4, 8)}
    return build(NET, **weights, b1=weigh(8), b2=weigh(8), b4=weigh(4), **LIMITS)


def settings(**changes):
    return QuantizeConfig(**{"steps": 5} | changes)


BITS = [(8, 8, 35), (4, 8, 15), (4, 4, 10), (8, 4, 12)]


@pytest.mark.parametrize(("weight_bits", "activation_bits", "least"), BITS)
def test_every_pair_of_bits_gives_a_checked_model_near_the_float_one(net, weight_bits, activation_bits, least):
    result = quantize(net, SAMPLES, settings(weight_bits=weight_bits, activation_bits=activation_bits))
    onnx.checker.check_model(result.model, full_check=True)
    (output,) = result.report.outputs
    assert output.name == "scores" and output.sqnr_db > least and 0 <= output.agreement <= 1
    bits = {layer.name: (layer.weight_bits, layer.activation_bits) for layer in result.report.layers}
    assert bits == {
        "stem": (8, 8),
        "inner": (weight_bits, activation_bits),
        "deep": (weight_bits, activation_bits),
        "head": (8, 8),
    }


@pytest.mark.parametrize("activation_bits", [8, 4])
def test_both_encodings_give_the_same_numbers_without_optimizations(net, run_plain, activation_bits):
    given = []
    for encoding in ("runtime", "standard"):
        config = settings(weight_bits=4, activation_bits=activation_bits, encoding=encoding)
        given.append(run_plain(quantize(net, SAMPLES, config).model, SAMPLES))
    np.testing.assert_allclose(given[0], given[1], rtol=1e-5, atol=1e-6)


@pytest.fixture
def run_plain():
    from onnxcalib.runtime.session import Session

    return lambda model, x: Session(model, optimize=False).run({"image": x})["scores"]


def test_the_model_given_is_left_as_it_was(net):
    before = net.SerializeToString()
    quantize(net, SAMPLES, settings())
    assert net.SerializeToString() == before


def test_paths_arrays_and_dicts_give_the_same_file(net, tmp_path):
    onnx.save(net, tmp_path / "net.onnx")
    np.save(tmp_path / "samples.npy", SAMPLES)
    one = quantize(net, {"image": SAMPLES}, settings())
    two = quantize(tmp_path / "net.onnx", tmp_path / "samples.npy", settings())
    two.save(tmp_path / "out.onnx")
    assert one.model.SerializeToString() == onnx.load(tmp_path / "out.onnx").SerializeToString()


def test_the_file_says_how_it_was_made(net):
    entries = {e.key: e.value for e in quantize(net, SAMPLES, settings(weight_bits=4)).model.metadata_props}
    assert entries["onnxcalib.version"] == onnxcalib.__version__
    assert json.loads(entries["onnxcalib.settings"])["weight_bits"] == 4
    assert json.loads(entries["onnxcalib.bits"]) == {"stem": "W8A8", "inner": "W4A8", "deep": "W4A8", "head": "W8A8"}


def test_the_report_is_whole_and_serialises(net):
    report = json.loads(quantize(net, SAMPLES, settings()).report.to_json())
    assert report["samples"] == 24 and report["float_bytes"] > 0 and report["quantized_bytes"] > 0
    assert set(report["seconds"]) == {"prepare", "calibrate", "reconstruct", "verify"}
    assert [block["layers"] for block in report["blocks"]] == [["stem"], ["inner"], ["deep"], ["head"]]
    assert [entry["reason"] for entry in report["unfused"]] == ["entry of the graph"]
    assert len(report["outputs_unoptimized"]) == 1 and all(layer["sqnr_db"] for layer in report["layers"])


def test_without_reconstruction_weights_are_rounded_and_biases_kept(net):
    result = quantize(net, SAMPLES, settings(reconstruct=False))
    assert result.report.blocks == () and result.report.outputs[0].sqnr_db > 25
    values = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    wanted = next(numpy_helper.to_array(t) for t in net.graph.initializer if t.name == "b1")
    steps = values["b1_scale"]
    assert np.all(np.abs(values["b1_quantized"] * steps - wanted) <= 0.51 * steps)


def test_stages_are_heard_in_order(net):
    class Listener(Observer):
        def __init__(self):
            self.stages, self.notes = [], []

        def stage(self, name):
            self.stages.append(name)

        def note(self, text):
            self.notes.append(text)

    listener = Listener()
    quantize(net, SAMPLES, settings(), observer=listener)
    assert listener.stages == ["prepare", "calibrate", "reconstruct", "verify"]
    assert any(text.startswith("outputs unchanged by preparation to") for text in listener.notes)


def test_a_fixed_batch_and_an_old_opset_are_taken(build, weigh):
    text = """g (float[1, 1, 8, 8] x) => (float[1, 3] y) {
        c = Conv <auto_pad = "SAME_UPPER", kernel_shape = [3, 3]> (x, w1)  a = Add (c, b1)  r = Relu (a)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  f = Flatten (p)  m = MatMul (f, w2)  y = Add (m, b2)
    }"""
    weights = {"w1": weigh(4, 1, 3, 3), "b1": weigh(4, 1, 1), "w2": weigh(64, 3), "b2": weigh(1, 3)}
    result = quantize(build(text, opset=8, ir=3, **weights), SAMPLES[:, :1], settings())
    assert result.report.outputs[0].sqnr_db > 30 and len(result.report.layers) == 2


def test_two_inputs_a_transposed_convolution_and_a_matmul_of_rows(build, weigh, draw):
    text = """g (float[N, 4, 5, 5] x, float[N, 6, 8] rows) => (float[N, 3, 11, 11] image, float[N, 6, 5] z) {
        c = Conv (x, w1)  r = Relu (c)  image = ConvTranspose <strides = [2, 2]> (r, w2, b2)
        m = MatMul (rows, w3)  q = Relu (m)  z = MatMul (q, w4)
    }"""
    weights = {"w1": weigh(4, 4, 1, 1), "w2": weigh(4, 3, 3, 3), "b2": weigh(3), "w3": weigh(8, 8), "w4": weigh(8, 5)}
    data = {"x": draw(12, 4, 5, 5), "rows": draw(12, 6, 8)}
    result = quantize(build(text, **weights), data, settings(weight_bits=4, first_last_bits=4))
    assert len(result.report.layers) == 4 and all(output.sqnr_db > 10 for output in result.report.outputs)


def test_a_model_that_is_quantized_already_is_refused(net):
    with pytest.raises(ModelError, match="the model is quantized already; a float32 model is needed"):
        quantize(quantize(net, SAMPLES, settings(reconstruct=False)).model, SAMPLES, settings())


def test_a_model_without_layers_is_refused(build):
    with pytest.raises(ModelError, match="no quantizable layer"):
        quantize(build("g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Relu (x) }"), SAMPLES, settings())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (np.where(SAMPLES > 3, np.nan, SAMPLES), "image.*NaN"),
        (SAMPLES[:, :2], r"image.*found shape \(24, 2, 8, 8\)"),
        ({"imagee": SAMPLES}, "did you mean 'image'"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_any_work(net, data, text):
    listener = Observer()
    listener.note = lambda text: pytest.fail("work began")
    with pytest.raises(DataError, match=text):
        quantize(net, data, settings(), observer=listener)


def test_a_set_that_was_opened_for_another_model_is_refused(net, build, weigh):
    other = build("g (float[N, 2] x) => (float[N, 2] y) { y = MatMul (x, w) }", w=weigh(2, 2))
    samples = onnxcalib.open_calibration(np.ones((3, 2), np.float32), onnxcalib.graph.load.inputs_of(other))
    with pytest.raises(DataError, match="the set was opened for the inputs 'x'; the model's are 'image'"):
        quantize(net, samples, settings())


def test_what_a_body_reads_is_quantized_outside_of_it(build, weigh):
    text = """g (float[N, 3, 8, 8] image, bool[1] wide) => (float[N, 4, 8, 8] y) {
        c = Conv (image, w)  r = Relu (c)
        y = If (wide) <
            then_branch = one () => (float[N, 4, 8, 8] p) { p = Add (r, r) },
            else_branch = two () => (float[N, 4, 8, 8] q) { q = Identity (r) }
        >
    }"""
    model = build(text, w=weigh(4, 3, 1, 1))
    result = quantize(model, {"image": SAMPLES[:1], "wide": np.array([True])}, settings())
    assert result.report.outputs[0].sqnr_db > 30 and [layer.op for layer in result.report.layers] == ["Conv"]
