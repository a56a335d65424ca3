"""Weights alone that onnxruntime multiplies by their scales when it loads the file."""

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcalib.graph.emit import emit_qdq
from onnxcalib.graph.index import Index
from onnxcalib.graph.inspect.quantized_layers import find_quantized_layers
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.quantization.recurrent import round_recurrent
from onnxcalib.spec import Grids
from onnxcalib.targets import load_target


@pytest.fixture
def convolutions(build, weigh):
    text = "g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { [one] c = Conv (x, w)  [two] y = ConvTranspose (c, v) }"
    return build(text, opset=21, ir=10, w=weigh(6, 3, 1, 1), v=weigh(6, 4, 1, 1))


def list_loaded(model, path):
    """Operators of a file as onnxruntime has loaded it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(path / "o.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path / "o.onnx").graph.node]


@pytest.mark.parametrize("bits", [8, 4])
def test_onnxruntime_multiplies_once_as_it_loads_the_file(convolutions, build, draw, rough, tmp_path, bits):
    quantized = rough(convolutions, draw(2, 3, 8, 8), activation_bits=32, weight_bits=bits, first_last_bits=bits)
    loaded = list_loaded(quantized, tmp_path)  # the Conv in a layout of its own, on any processor that has that
    assert {"Conv", "ConvTranspose"} <= {*loaded} and {"Cast", "Mul"}.isdisjoint(loaded)
    text = "g (float[4, 1, 32] x) => (float y) { [it] y = GRU <hidden_size = 8> (x, w, r) }"
    model = build(text, opset=21, ir=10, w=draw(1, 24, 32), r=draw(1, 24, 8))
    scheme = make_scheme(model, weight_bits=bits, first_last_bits=bits)
    params = round_recurrent(Index(model.graph), scheme)
    assert list_loaded(emit_qdq(model, scheme, Grids({}, {}), params), tmp_path) == ["GRU"]


@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_gives_what_a_dequantizelinear_gives_and_its_layers_are_read_as_of_that(
    convolutions, draw, rough, run, bits
):
    x = draw(2, 3, 8, 8)
    settings = {"activation_bits": 32, "weight_bits": bits, "first_last_bits": bits}
    found, plain = (rough(convolutions, x, encoding=encoding, **settings) for encoding in ("runtime", "standard"))
    counts = [[node.op_type for node in each.graph.node].count("DequantizeLinear") for each in (found, plain)]
    assert counts == [0, 2]
    np.testing.assert_allclose(run(found, x)[0], run(plain, x)[0], atol=1e-5, rtol=0)
    for given, wanted in zip(find_quantized_layers(found), find_quantized_layers(plain), strict=True):
        assert (given.name, given.weight_bits, given.axis) == (wanted.name, wanted.weight_bits, wanted.axis)
        assert given.activation_bits == wanted.activation_bits == 32
        np.testing.assert_array_equal(given.integers * given.scale, wanted.integers * wanted.scale)


def test_other_targets_have_a_dequantizelinear(convolutions, draw, rough):
    requirements = load_target("openvino").requirements
    quantized = rough(convolutions, draw(2, 3, 8, 8), activation_bits=32, requirements=requirements)
    assert [node.op_type for node in quantized.graph.node].count("DequantizeLinear") == 2
