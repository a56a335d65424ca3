"""LSTMs on integers: which there are, and what is written and computed of them."""

import numpy as np
import pytest
from onnx import TensorProto, checker

from onnxcalib.config import LayerConfig
from onnxcalib.errors import ConfigError
from onnxcalib.graph.dynamic_lstm import explain_slow
from onnxcalib.graph.emit import emit_qdq
from onnxcalib.graph.index import Index, known_constant
from onnxcalib.graph.layer_params import LayerParams
from onnxcalib.graph.names import Selection
from onnxcalib.graph.recurrent import explain_all_float
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.spec import Grids, QParams, Requirements
from onnxcalib.targets import load_target

NEEDS = Requirements(recurrent=True)
INPUTS = "float[9, 3, 5] x, int32[3] n, float[{d}, 3, 6] h, float[{d}, 3, 6] c"
OUTPUTS = "float[9, {d}, 3, 6] y, float[{d}, 3, 6] yh, float[{d}, 3, 6] yc"


def make(build, draw, attributes="", inputs="x, w, r, b", *, directions=1):
    """A model of one LSTM of 5 inputs and 6 hidden values."""
    given, made = INPUTS.format(d=directions), OUTPUTS.format(d=directions)
    text = f"g ({given}) => ({made}) {{ [it] y, yh, yc = LSTM <hidden_size = 6{attributes}> ({inputs}) }}"
    shapes = {"w": (directions, 24, 5), "r": (directions, 24, 6), "b": (directions, 48), "p": (directions, 18)}
    used = {name: draw(*shape) / 2 for name, shape in shapes.items() if name in inputs.replace(" ", "").split(",")}
    return build(text, **used)


def round_lstm(model, layer):
    """Parameters of the LSTM with both weights rounded."""
    index = Index(model.graph)
    node, found = index.nodes[layer.name], None
    directions, channels, _ = index.initializers[layer.weight].dims
    bias = known_constant(index, layer.bias) if layer.bias else np.zeros((directions, 2 * channels), np.float32)
    for name in (node.input[2], node.input[1]):
        weight = known_constant(index, name)
        scale = np.abs(weight).max(2) / np.float32(127)
        grid = QParams(scale, np.zeros(scale.shape, np.int32), layer.weight_spec)
        found = LayerParams(np.rint(weight / scale[..., None]).astype(np.int8), grid, bias, states=found)
    return found


def choose(**settings):
    return Selection(frozenset(), (("it", LayerConfig(**settings)),))


def emit(model):
    scheme = make_scheme(model, dynamic=True, requirements=NEEDS)
    return emit_qdq(model, scheme, Grids({}, {}), {k.name: round_lstm(model, k) for k in scheme.recurrent})


@pytest.mark.parametrize(
    ("attributes", "inputs"),
    [
        ("", "x, w, r, b"),
        ("", "x, w, r"),
        (', direction = "reverse"', "x, w, r, b, n"),
        (', direction = "bidirectional"', "x, w, r, b, n, h, c, p"),
        (", clip = 0.4", "x, w, r, b"),
        (", input_forget = 1", "x, w, r, b, , , , p"),
        (', activations = ["Sigmoid", "Relu", "Softsign"]', "x, w, r, b, , h, c"),
        (', activations = ["HardSigmoid", "Tanh", "Tanh"], activation_alpha = [0.3]', "x, w, r, b"),
    ],
)
def test_the_operator_does_what_the_lstm_does_in_all_its_forms(build, draw, run, attributes, inputs):
    directions = 2 if "bidirectional" in attributes else 1
    model = make(build, draw, attributes, inputs, directions=directions)
    quantized = emit(model)
    checker.check_model(quantized)
    (node,) = quantized.graph.node
    assert (node.op_type, node.domain, node.name) == ("DynamicQuantizeLSTM", "com.microsoft", "it")
    stored = {t.name: t.data_type for t in quantized.graph.initializer}
    assert [stored[node.input[number]] for number in (1, 2, 9, 11)] == [TensorProto.INT8] * 4
    assert {"w", "r", "b"}.isdisjoint(stored)
    lengths, states = np.array([9, 2, 5], np.int32), [draw(directions, 3, 6) / 2 for _ in "hc"]
    feeds = [draw(9, 3, 5), lengths, *states]
    for wanted, given in zip(run(model, *feeds), run(quantized, *feeds), strict=True):
        error = np.square(wanted - given).sum()
        assert 0 < error < np.square(wanted).sum() / 10**3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[it] y = LSTM <hidden_size = 2, layout = 1> (x, w, r)", "it has layout 1"),
        ("v = Abs (w) s = Abs (x) [it] y = LSTM <hidden_size = 2> (x, v, r)", "its weights are computed, not stored"),
        ("[it] y = LSTM <hidden_size = 2> (w, w, r)", "its input is a constant"),
        ("d = Cast <to = 11> (x) [it] y = LSTM <hidden_size = 2> (d, wd, rd)", "its weights are not of type float"),
    ],
)
def test_an_lstm_that_the_operator_cannot_stand_for_has_a_reason(build, draw, text, reason):
    weights = {
        "w": draw(1, 8, 3),
        "r": draw(1, 8, 2),
        "m": draw(3, 4),
        "wd": np.ones((1, 8, 3)),
        "rd": np.ones((1, 8, 2)),
    }
    used = {name: value for name, value in weights.items() if f"{name}," in text or f"{name})" in text or name == "m"}
    model = build(f"g (float[5, 1, 3] x) => (float y, float z) {{ {text} z = MatMul (x, m) }}", **used)
    (found,) = explain_all_float(model, Index(model.graph)).items()
    assert found[0] == "it" and found[1].startswith(reason)
    assert make_scheme(model, dynamic=True, requirements=NEEDS).recurrent == ()


def test_only_dynamic_files_for_onnxruntime_have_such_lstms(build, draw):
    model = make(build, draw)
    (layer,) = make_scheme(model, dynamic=True, requirements=NEEDS).recurrent
    assert (layer.name, layer.op, layer.weight_spec.bits, layer.dynamic) == ("it", "LSTM", 8, True)
    assert layer.weight_spec.pair_limit == 32767 // 255
    free = make_scheme(model, dynamic=True, requirements=NEEDS, pair_limits=False).recurrent[0]
    assert free.weight_spec.pair_limit is None
    for options in ({"dynamic": True}, {"requirements": NEEDS}):
        (layer,) = make_scheme(model, **options).recurrent
        assert not layer.dynamic and layer.reads_float
    targets = [load_target(name).requirements.recurrent for name in ("onnxruntime", "tensorrt", "openvino", "qnn")]
    assert targets == [True, False, False, False]


def test_its_bits_are_eight_and_it_can_be_excluded(build, draw):
    model = make(build, draw)
    for setting, text in (("weight_bits", "an LSTM has 8 bits beside"), ("activation_bits", "this LSTM has 8 beside")):
        with pytest.raises(ConfigError, match=f"layers: 'it': {setting}: found 4; {text}"):
            make_scheme(model, dynamic=True, requirements=NEEDS, selection=choose(**{setting: 4}))
    with pytest.raises(ConfigError, match="exclude: no layer is left to quantize"):
        make_scheme(model, dynamic=True, requirements=NEEDS, selection=Selection(frozenset({"it"})))


def test_few_hidden_values_are_slower_on_integers(build, draw):
    model = make(build, draw)
    (layer,) = make_scheme(model, dynamic=True, requirements=NEEDS).recurrent
    assert explain_slow(layer, Index(model.graph)).startswith("with 6 hidden values DynamicQuantizeLSTM is slower")


def test_a_layer_chooses_for_itself(build, draw):
    model = make(build, draw)
    for dynamic, own in ((False, {"activations": "dynamic"}), (True, {})):
        (layer,) = make_scheme(model, dynamic=dynamic, requirements=NEEDS, selection=choose(**own)).recurrent
        assert layer.dynamic and str(layer.bits) == "W8A8"
    for own in ({"activations": "static", "weight_bits": 4}, {"activation_bits": 32, "weight_bits": 4}):
        scheme = make_scheme(model, dynamic=True, requirements=NEEDS, selection=choose(**own), first_last_bits=8)
        assert str(scheme.recurrent[0].bits) == "W4A32g32"
    with pytest.raises(ConfigError, match="layers: 'it': activations: found 'dynamic'; that is for files for onnxrunt"):
        make_scheme(model, selection=choose(activations="dynamic"))
