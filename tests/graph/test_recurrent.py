"""LSTM, GRU and RNN whose weights are integers: which there are, and what is written and computed of them."""

import numpy as np
import pytest
from onnx import TensorProto, checker

from onnxcalib.config import LayerConfig
from onnxcalib.errors import ConfigError, ModelError
from onnxcalib.graph.emit import emit_qdq
from onnxcalib.graph.index import Index
from onnxcalib.graph.inspect.quantized_layers import find_quantized_layers
from onnxcalib.graph.names import Selection
from onnxcalib.graph.recurrent import zeros_of_recurrent
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.quantization.recurrent import round_recurrent
from onnxcalib.spec import Grids, Requirements
from onnxcalib.targets import load_target
from tests.small_models import change_constant

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def make(build, draw, op="GRU", attributes="", inputs="x, w, r, b", *, directions=1, opset=21):
    """A model of one recurrent layer of 40 inputs and 6 hidden values."""
    text = (
        f"g (float[9, 3, 40] x, int32[3] n, float[{directions}, 3, 6] h) => (float[9, {directions}, 3, 6] y) {{"
        f" [it] y = {op} <hidden_size = 6{attributes}> ({inputs}) }}"
    )
    rows = GATES[op] * 6
    shapes = {"w": (directions, rows, 40), "r": (directions, rows, 6), "b": (directions, 2 * rows)}
    used = {name: draw(*shape) / 4 for name, shape in shapes.items() if name in inputs.split(", ")}
    return build(text, opset=opset, **used)


def emit(model, **options):
    """The scheme of a model, its rounded weights, and the file of them."""
    scheme = make_scheme(model, first_last_bits=options.get("weight_bits", 8), **options)
    params = round_recurrent(Index(model.graph), scheme)
    return scheme, params["it"], emit_qdq(model, scheme, Grids({}, {}), params)


def multiply(params):
    """The weight of integers and scales."""
    scale, integers = params.grid.scale, params.integers.astype(np.float32)
    if params.grid.spec.block is None:
        return integers * scale[..., None]
    return integers * scale.repeat(params.grid.spec.block, 2)[..., : integers.shape[2]]


@pytest.mark.parametrize(
    ("op", "attributes", "inputs"),
    [
        ("LSTM", "", "x, w, r, b"),
        ("GRU", ', direction = "bidirectional"', "x, w, r, b, n, h"),
        ("GRU", ", linear_before_reset = 1", "x, w, r"),
        ("RNN", ', direction = "reverse", activations = ["Relu"], clip = 3.0', "x, w, r, , n, h"),
    ],
)
@pytest.mark.parametrize(("bits", "size"), [(8, None), (4, None), (4, "column"), (8, 16), (2, None)])
def test_a_file_gives_what_integers_times_scales_give(build, draw, run, op, attributes, inputs, bits, size):
    directions = 2 if "bidirectional" in attributes else 1
    model = make(build, draw, op, attributes, inputs, directions=directions, opset=25 if bits == 2 else 21)
    scheme, params, quantized = emit(model, weight_bits=bits, block_size=size)
    checker.check_model(quantized)
    (layer,) = scheme.recurrent
    assert (layer.op, layer.reads_float, layer.dynamic) == (op, True, False)
    kinds = [t.data_type for t in quantized.graph.initializer if t.name.endswith("_quantized")]
    assert kinds == [{8: TensorProto.INT8, 4: TensorProto.INT4, 2: TensorProto.INT2}[bits]] * 2
    assert {"w", "r"}.isdisjoint(t.name for t in quantized.graph.initializer)
    feeds = [draw(9, 3, 40), np.array([9, 2, 5], np.int32), draw(directions, 3, 6)]
    other = change_constant(
        change_constant(model, "w", lambda _: multiply(params)), "r", lambda _: multiply(params.states)
    )
    np.testing.assert_array_equal(run(quantized, *feeds)[0], run(other, *feeds)[0])
    (found,) = find_quantized_layers(quantized)
    assert (found.op, found.weight_bits, found.activation_bits, found.axis) == (op, bits, 32, 1)
    np.testing.assert_array_equal(found.integers.astype(np.float32) * found.scale, multiply(params))


def test_placeholders_take_as_many_bytes_as_the_file(build, draw):
    model = make(build, draw, directions=2, attributes=', direction = "bidirectional"')
    scheme, _, quantized = emit(model, weight_bits=4)
    zeros = {"it": zeros_of_recurrent(scheme.recurrent[0], Index(model.graph))}
    assert emit_qdq(model, scheme, Grids({}, {}), zeros).ByteSize() == quantized.ByteSize()


def test_bits_are_those_of_the_settings_and_of_ends(build, draw):
    text = """g (float[9, 3, 40] x) => (float[9, 1, 3, 6] y) {
        [one] a = GRU <hidden_size = 6> (x, w, r) [flat] f = Squeeze (a, axis)
        [two] b = GRU <hidden_size = 6> (f, v, r) [too] g = Squeeze (b, axis)
        [three] y = GRU <hidden_size = 6> (g, v, r)
    }"""
    weights = {"w": draw(1, 18, 40), "v": draw(1, 18, 6), "r": draw(1, 18, 6), "axis": np.array([1])}
    model = build(text, opset=21, **weights)
    bits = [str(layer.bits) for layer in make_scheme(model, weight_bits=4, first_last_bits=8).recurrent]
    assert bits == ["W8A32", "W4A32g32", "W8A32"]
    own = Selection(frozenset({"one"}), (("two", LayerConfig(weight_bits=8, block_size=16)),))
    found = make_scheme(model, weight_bits=4, first_last_bits=4, selection=own).recurrent
    assert [(layer.name, str(layer.bits)) for layer in found] == [("two", "W8A32g16"), ("three", "W4A32g32")]
    assert all(layer.weight_spec.symmetric for layer in found)


@pytest.mark.parametrize(
    ("own", "text"),
    [
        ({"activation_bits": 8}, "activation_bits: found 8; this GRU has 32, as it reads float"),
        ({"activations": "dynamic"}, "activations: found 'dynamic'; an LSTM has it, and all layers together"),
    ],
)
def test_settings_that_a_gru_cannot_have_are_refused(build, draw, own, text):
    selection = Selection(frozenset(), (("it", LayerConfig(**own)),))
    with pytest.raises(ConfigError, match=f"layers: 'it': {text}"):
        make_scheme(make(build, draw), selection=selection, requirements=Requirements(recurrent=True))


def test_other_targets_have_none(build, draw):
    taken = {name: load_target(name).requirements.recurrent_weights for name in ("onnxruntime", "tensorrt", "qnn")}
    assert taken == {"onnxruntime": True, "tensorrt": False, "qnn": False}
    with pytest.raises(
        ModelError, match="1 of its 1 weights is read by GRU: a recurrent layer, which files for onnxru"
    ):
        make_scheme(make(build, draw), requirements=load_target("qnn").requirements)
