"""Where a quantized model loses: the layers in order of their harm, with reasons and lines that correct it."""

from __future__ import annotations

import json
import re
import tomllib

import numpy as np
import pytest
from onnx import TensorProto, helper, load, save
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.config import STAGES, load_config
from onnxcalib.data import open_calibration
from onnxcalib.graph.extract import extract
from onnxcalib.graph.index import Index
from onnxcalib.graph.inspect.quantized_layers import find_quantized_layers
from onnxcalib.graph.load import inputs_of
from onnxcalib.quantization import placement
from onnxcalib.quantization.output_parts import find_parts
from onnxcalib.quantization.prepared import SETTINGS_BYTES
from onnxcalib.validation import explain as explain_module
from onnxcalib.validation import survey
from onnxcalib.validation.explain import LIMITING, SETTINGS_KEY, WORST, explain
from onnxcalib.validation.survey import SAMPLES, joined_parts
from tests.small_models import change_constant

KEEP = "keep it as it is: its loss is small"

BODY = """{ [stem] c = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  [relu1] r = Relu (c)
    [inner] d = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)  [add] s = Add (d, r)  [relu2] t = Relu (s)
    [deep] e = Conv <pads = [1, 1, 1, 1]> (t, w3, b3)  [relu3] u = Relu (e)
    [mean] p = GlobalAveragePool (u)  [flat] f = Flatten (p)  [head] y = Gemm <transB = 1> (f, w4, b4) }"""


@pytest.fixture
def net(build, weigh):
    return build(
        f"g (float[N, 3, 8, 8] x) => (float[N, 5] y) {BODY}",
        w1=weigh(8, 3, 3, 3), w2=weigh(8, 8, 3, 3), w3=weigh(8, 8, 3, 3), w4=weigh(5, 8),
        b1=weigh(8), b2=weigh(8), b3=weigh(8), b4=weigh(5),
    )  # fmt: skip


@pytest.fixture
def images(draw):
    return draw(16, 3, 8, 8)


def explained(original, quantized, data):
    return explain(original, quantized, open_calibration(data, inputs_of(original)))


def first(original, quantized, data):
    return explained(original, quantized, data).layers[0]


@pytest.fixture
def every_layer(monkeypatch):
    """Layers are explained, and have lines for onnxcalib.toml, though they do not limit the outputs."""
    monkeypatch.setattr(explain_module, "LIMITING", np.inf)
    monkeypatch.setattr(explain_module, "HARMLESS", np.inf)


@pytest.fixture(autouse=True)
def keep_channels(monkeypatch):
    """Channels keep their ranges: with factors a 4-bit input leaves the outputs no more error than the last layer."""
    monkeypatch.setattr("onnxcalib.quantization.prepare.even_layers", lambda *_given, **_options: {})


def round_only(model, data, **settings):
    return quantize(model, data, QuantizeConfig(reconstruct=False, **settings)).model


# Which layer


@pytest.mark.usefixtures("every_layer")
@pytest.mark.parametrize(("layer", "weight"), [("stem", "w1"), ("inner", "w2"), ("deep", "w3"), ("head", "w4")])
@pytest.mark.parametrize("factor", [0.5, 3])
def test_the_layer_whose_scale_is_wrong_is_named_first(net, rough, images, layer, weight, factor):
    wrong = change_constant(rough(net, images), f"{weight}_scale", lambda scale: scale * factor)
    found = explained(net, wrong, images)
    worst, *others = found.layers
    assert worst.name == layer and worst.alone_db < 15 and worst.at_output_db < 25
    assert min(other.at_output_db for other in others) > worst.at_output_db + 10
    assert min(other.alone_db for other in others) > 25  # each alone: what lies before it does not count
    assert (found.samples, found.unmatched) == (16, ())


@pytest.mark.parametrize(("layer", "weight"), [("stem", "w1"), ("inner", "w2")])
def test_what_a_layer_does_at_the_output_is_what_it_does_in_the_whole_float_model(
    net, rough, run, images, layer, weight
):
    """Around a residual block: the shortcut keeps the float model's values behind the layer, not before it."""
    worst = first(net, change_constant(rough(net, images), f"{weight}_scale", lambda scale: scale * 3), images)
    (wanted,), (given,) = run(net, images), run(change_constant(net, weight, lambda value: value * 3), images)
    assert worst.name == layer
    assert worst.at_output_db == pytest.approx(
        10 * np.log10(np.sum(wanted**2) / np.sum((wanted - given) ** 2)), abs=0.3
    )


@pytest.mark.usefixtures("every_layer")
def test_all_before_holds_the_loss_of_the_layers_before(net, rough, images):
    wrong = change_constant(rough(net, images), "w1_scale", lambda scale: scale * 3)
    by_name = {layer.name: layer for layer in explained(net, wrong, images).layers}
    assert set(by_name) == {"stem", "inner", "deep", "head"}
    for name in ("inner", "deep", "head"):
        assert by_name[name].all_before_db < 15 < by_name[name].alone_db


def test_the_one_layer_of_4_bits_is_named_first(net, images):
    model = round_only(net, images, layers={"deep": {"weight_bits": 4, "activation_bits": 4}})
    worst = first(net, model, images)
    assert (worst.name, worst.op, worst.weight_bits, worst.activation_bits) == ("deep", "Conv", 4, 4)
    assert worst.remedy == "raise it to 8 bits"


@pytest.mark.parametrize("bits", [{"weight_bits": 4}, {"activation_bits": 4}])
def test_a_layer_is_raised_where_its_weights_or_its_input_have_4_bits(net, images, bits):
    worst = first(net, round_only(net, images, layers={"deep": bits}), images)
    assert (worst.name, worst.remedy) == ("deep", "raise it to 8 bits")
    assert {"weight_bits": worst.weight_bits, "activation_bits": worst.activation_bits} == (
        {"weight_bits": 8, "activation_bits": 8} | bits
    )


def test_a_layer_that_reads_float_is_raised_by_its_weights_alone(net, images):
    model = round_only(net, images, activation_bits=32, layers={"deep": {"weight_bits": 4}})
    worst = first(net, model, images)
    assert (worst.name, worst.remedy) == ("deep", "raise it to 8 bits")
    assert worst.toml == '[layers."deep"]\nweight_bits = 8'


@pytest.mark.usefixtures("every_layer")
def test_a_layer_that_harms_the_output_comes_before_one_that_is_worse_alone(build, rough, draw):
    """The path of the worse layer hardly counts at the output."""
    model = build(
        """g (float[N, 6] x) => (float[N, 6] y) {
            [loud] a = MatMul (x, w1)  [faint] b = MatMul (x, w2)  c = Mul (b, little)  y = Add (a, c) }""",
        w1=draw(6, 6), w2=draw(6, 6), little=np.float32(1e-3),
    )  # fmt: skip
    x = draw(40, 6)
    wrong = change_constant(rough(model, x), "w2_scale", lambda scale: scale * 4)
    wrong = change_constant(wrong, "w1_scale", lambda scale: scale * 1.3)
    loud, faint = explained(model, wrong, x).layers
    assert (loud.name, faint.name) == ("loud", "faint") and faint.alone_db < loud.alone_db - 10


def test_a_layer_that_gives_nan_is_named_first(net, rough, images):
    wrong = change_constant(rough(net, images), "w2_scale", lambda scale: scale * np.nan)
    assert first(net, wrong, images).name == "inner"


def test_no_more_layers_are_named_than_one_reads(build, rough, draw):
    count = WORST + 3
    text = " ".join(f"[layer{i}] t{i + 1} = MatMul (t{i}, w{i})" for i in range(count))
    weights = {f"w{i}": draw(6, 6) / np.float32(2.4) for i in range(count)}
    model = build(
        f"g (float[N, 6] x) => (float[N, 6] y) {{ [in] t0 = Relu (x) {text} [out] y = Relu (t{count}) }}", **weights
    )
    x = draw(40, 6)
    found = explained(model, rough(model, x), x)
    assert len(found.layers) == WORST
    assert sorted(layer.name for layer in (*found.layers, *found.others)) == sorted(f"layer{i}" for i in range(count))
    assert all(layer.reasons == () and layer.at_output_db is not None for layer in found.others)
    losses = [layer.at_output_db for layer in found.layers]
    assert losses == sorted(losses)


def test_no_more_samples_are_used_than_needed_and_both_models_stay_as_they_are(net, rough, images, draw):
    quantized = rough(net, images)
    before = [model.SerializeToString() for model in (net, quantized)]
    assert explained(net, quantized, draw(SAMPLES + 40, 3, 8, 8)).samples == SAMPLES
    assert [model.SerializeToString() for model in (net, quantized)] == before


def test_models_of_fixed_batch_are_explained(net, rough, images):
    net.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    wrong = change_constant(rough(net, images[:4]), "w3_scale", lambda scale: scale * 3)
    found = explained(net, wrong, images[:10])
    assert (found.layers[0].name, found.samples) == ("deep", 8)


def test_a_layer_of_two_outputs_counts_at_both(build, rough, draw):
    model = build(
        """g (float[N, 6] x) => (float[N, 6] y, float[N, 6] z) {
            [body] a = MatMul (x, w1)  r = Relu (a)  [left] y = MatMul (r, w2)  [right] z = MatMul (r, w3) }""",
        w1=draw(6, 6), w2=draw(6, 6), w3=draw(6, 6),
    )  # fmt: skip
    x = draw(40, 6)
    quantized = rough(model, x)
    for name, weight in (("left", "w2"), ("right", "w3"), ("body", "w1")):
        worst = first(model, change_constant(quantized, f"{weight}_scale", lambda scale: scale * 2), x)
        assert worst.name == name and worst.alone_db == pytest.approx(0, abs=0.5)
        # Half of the outputs is wrong, or all of them
        assert worst.at_output_db == pytest.approx(0 if name == "body" else 3, abs=0.5)


def test_an_output_that_is_no_tensor_or_no_float_is_left_out(build, rough, draw):
    model = build(
        """g (float[N, 6] x) => (int64[N, 1] best, float[N, 6] y) {
            [only] y = MatMul (x, w1)  best = ArgMax <axis = 1> (y) }""",
        w1=draw(6, 6),
    )  # fmt: skip
    x = draw(40, 6)
    assert first(model, change_constant(rough(model, x), "w1_scale", lambda scale: scale * 2), x).at_output_db < 1


def test_a_model_that_also_gives_a_sequence_is_explained(build, rough, draw):
    model = build(
        "g (float[N, 6] x) => (float[N, 6] y, seq(float[M, 6]) parts) { [only] y = MatMul (x, w1)  r = Relu (y)"
        "  parts = SequenceConstruct (r) }",
        w1=draw(6, 6),
    )
    x = draw(40, 6)
    quantized = round_only(model, x)
    assert first(model, change_constant(quantized, "w1_scale", lambda scale: scale * 2), x).name == "only"


def test_an_output_of_zeros_in_the_float_model_is_no_fault(build, rough, draw):
    model = build(
        """g (float[N, 6] x) => (float[N, 6] y, float[N, 6] z) {
            [only] a = MatMul (x, w1)  y = Relu (a)  b = Sub (a, far)  z = Relu (b) }""",
        w1=draw(6, 6), far=np.float32(100),
    )  # fmt: skip
    x = draw(40, 6)
    wrong = change_constant(rough(model, x), "w1_scale", lambda scale: scale * 1000)
    assert first(model, wrong, x).name == "only"


# How many layers


def test_a_layer_that_loses_nearly_all_is_named_alone(net, rough, images):
    found = explained(net, change_constant(rough(net, images), "w2_scale", lambda scale: scale * 3), images)
    assert [layer.name for layer in found.layers] == ["inner"]


def test_layers_are_named_up_to_nine_tenths_of_the_loss(net, rough, images, request):
    quantized = rough(net, images)
    some = explained(net, quantized, images).layers
    request.getfixturevalue("every_layer")
    every = explained(net, quantized, images).layers
    losses = [10 ** (-layer.at_output_db / 10) for layer in every]
    assert len(every) == 4 and [layer.name for layer in some] == [layer.name for layer in every][: len(some)]
    assert sum(losses[: len(some)]) >= LIMITING * sum(losses) > sum(losses[: len(some) - 1])


def test_all_layers_that_break_the_outputs_are_named(net, rough, images):
    wrong = change_constant(rough(net, images), "w2_scale", lambda scale: scale * np.nan)
    wrong = change_constant(wrong, "w3_scale", lambda scale: scale * np.nan)
    assert {layer.name for layer in explained(net, wrong, images).layers} == {"inner", "deep"}


def test_no_layer_is_named_where_none_loses_anything(build, draw):
    whole = {"w": np.int8([[3, 127], [-5, 7]]), "s": np.float32(0.25), "z": np.int8(0)}
    grid = {"sx": np.float32(0.5), "zx": np.uint8(128)}
    quantized = build(
        """g (float[N, 2] x) => (float[N, 2] y) { q = QuantizeLinear (x, sx, zx)  a = DequantizeLinear (q, sx, zx)
            v = DequantizeLinear (w, s, z)  [only] y = MatMul (a, v) }""",
        **whole, **grid,
    )  # fmt: skip
    model = build("g (float[N, 2] x) => (float[N, 2] y) { [only] y = MatMul (x, w) }", w=whole["w"] * np.float32(0.25))
    x = np.round(4 * draw(20, 2)) / np.float32(2)
    assert explained(model, quantized, x).layers == ()


def test_a_layer_of_8_bits_that_loses_next_to_nothing_is_not_left_in_float(net, rough, images, monkeypatch):
    quantized = rough(net, images)
    worst = first(net, quantized, images)
    for limit, remedy in ((worst.at_output_db + 1, "leave it in float"), (worst.at_output_db - 1, KEEP)):
        monkeypatch.setattr(explain_module, "HARMLESS", limit)
        layer = first(net, quantized, images)
        assert (layer.remedy, bool(layer.toml)) == (remedy, remedy != KEEP)
    assert all(layer.remedy == KEEP and not layer.toml for layer in explained(net, quantized, images).layers)


# What the two models do not share


def test_layers_of_other_names_are_listed_as_unmatched(net, rough, images):
    quantized = rough(net, images)
    for node in quantized.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name in ("u", "d"):
                    names[position] = f"{name}_renamed"
    found = explained(net, quantized, images)
    assert [layer.name for layer in found.layers if layer.name == "inner"] == []
    assert found.unmatched == ("inner: the float model has no tensor d_renamed, the layer's output",)


@pytest.mark.usefixtures("every_layer")
def test_a_layer_that_reads_an_unknown_tensor_is_listed_as_unmatched(net, rough, images):
    quantized = rough(net, images)
    for node in quantized.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == "t":
                    names[position] = "strange"
    found = explained(net, quantized, images)
    assert found.unmatched == ("deep: the float model has no tensor strange, the layer's input",)
    assert {layer.name for layer in found.layers} == {"stem", "inner", "head"}


def test_a_model_without_quantized_layers_has_none_to_explain_and_says_why(net, images):
    found = explained(net, net, images)
    assert (found.samples, found.layers) == (0, ())
    assert found.unmatched[0] == "stem (Conv): its weight is float" and len(found.unmatched) == 4


def test_nodes_without_names_and_in_another_order_are_explained(net, rough, images):
    wrong = change_constant(rough(net, images), "w3_scale", lambda scale: scale * 3)
    nodes = list(wrong.graph.node)[::-1]
    del wrong.graph.node[:]
    wrong.graph.node.extend(nodes)
    for node in (*wrong.graph.node, *net.graph.node):
        node.name = ""
    worst = first(net, wrong, images)
    assert worst.name and worst.op == "Conv" and worst.alone_db < 15


# Models that onnxruntime's quantization tool made


class Batches(CalibrationDataReader):
    def __init__(self, data):
        self.batches = iter([{"x": sample[None]} for sample in data])

    def get_next(self):
        return next(self.batches, None)


@pytest.fixture
def make_static(tmp_path):
    """The model as ``quantize_static`` makes it; ``ready``: after onnxruntime's own preparation, which folds norms."""

    def make(model, data, ready=False, **settings):
        path = tmp_path / "float.onnx"
        save(model, path)
        if ready:
            quant_pre_process(path, tmp_path / "ready.onnx", skip_symbolic_shape=True)
            path = tmp_path / "ready.onnx"
        quantize_static(path, tmp_path / "quantized.onnx", Batches(data), **settings)
        return load(tmp_path / "quantized.onnx")

    return make


CONVS = """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{ [one] a = Conv (x, w1) {0} [two] c = Conv ({1}, w2) {2}
    [three] y = Conv ({3}, w3) }}"""
CLIPPED = {
    "Conv and Relu": CONVS.format("b = Relu (a)", "b", "d = Relu (c)", "d"),
    "Conv and Clip": CONVS.format("b = Clip (a, low, high)", "b", "d = Clip (c, low, high)", "d"),
    "MatMul and Relu": CONVS.format("b = Relu (a)", "b", "d = Relu (c)", "d").replace("Conv", "MatMul"),
    "Conv, BatchNormalization and Relu": CONVS.format(
        "n = BatchNormalization (a, g, h, m, v) b = Relu (n)", "b",
        "k = BatchNormalization (c, g, h, m, v) d = Relu (k)", "d",
    ),
}  # fmt: skip


@pytest.fixture(params=CLIPPED)
def clipped(request, build, draw):
    """A float model whose activations the tool leaves to the grids behind the layers."""
    shape = (8, 8) if "MatMul" in request.param else (4, 4, 1, 1)
    weights = {f"w{i}": draw(*shape) / np.float32(2) for i in (1, 2, 3)}
    norm = {"g": np.abs(draw(4)) + 1, "h": draw(4) / 2, "m": draw(4) / 2, "v": np.abs(draw(4)) + 1}
    ends = {"low": np.float32(-0.3), "high": np.float32(1.2)}
    return build(CLIPPED[request.param], **weights, **norm, **ends)


ACTIVATIONS = [QuantType.QUInt8, QuantType.QInt8]


def layers_in(model):
    return [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_right_layer_whose_activation_its_grid_took_over_loses_what_its_bits_give(clipped, make_static, draw, kind):
    x = draw(24, 4, 8, 8)
    model = make_static(clipped, x, ready=True, activation_type=kind)
    assert {node.op_type for node in model.graph.node} == {
        "QuantizeLinear",
        "DequantizeLinear",
        layers_in(model)[0].op_type,
    }
    found = explained(clipped, model, x)
    assert {layer.name for layer in found.layers} == {"one", "two", "three"} and found.unmatched == ()
    for layer in found.layers:
        (reason,) = layer.reasons
        parts = [float(value) for value in re.findall(r"([\d.]+) dB", reason)]
        assert len(parts) == (2 if layer.name == "three" else 3)
        assert layer.alone_db == pytest.approx(-10 * np.log10(sum(10 ** (-part / 10) for part in parts)), abs=4)
        assert min(layer.alone_db, layer.all_before_db, layer.at_output_db) > 28


@pytest.mark.usefixtures("every_layer")
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_wrong_layer_whose_activation_its_grid_took_over_is_named_first(clipped, make_static, draw, place):
    x = draw(24, 4, 8, 8)
    model = make_static(clipped, x, ready=True)
    weight = Index(model.graph).producer[layers_in(model)[place].input[1]]
    worst, *others = explained(clipped, change_constant(model, weight.input[1], lambda scale: scale * 3), x).layers
    assert worst.name == ("one", "two", "three")[place] and worst.alone_db < 12
    assert min(other.alone_db for other in others) > 28


def test_a_grid_that_does_not_clip_where_the_float_model_does_is_a_loss(net, make_static, images):
    model = make_static(net, images, activation_type=QuantType.QUInt8)
    worst = first(net, set_grid(model, "u", -4, 4), images)
    assert worst.name == "deep" and worst.alone_db < 10
    assert explained(net, set_grid(model, "u", 0, 8), images).layers[0].alone_db > 25


def test_a_coarse_grid_behind_a_layer_is_told_from_products_that_cancel(net, make_static, images):
    model = make_static(net, images, activation_type=QuantType.QUInt8)
    reasons = reasons_of(net, set_grid(model, "u", 0, 300), images, "deep")
    assert "cancel" not in reasons and "the grid that clips its output " in reasons


UNNAMED = """g (float[N, 6] x) => (float[N, 6] y) { a = MatMul (x, w1)  s = Add (a, b1)  b = Relu (s)
    i = Identity (b)  c = MatMul (i, w2)  d = Relu (c)  e = Gemm (d, w3, b1)  [twin] f = Relu (e)  g = MatMul (f, w4)
    y = Identity (g) }"""


@pytest.fixture
def unnamed(build, draw):
    return build(UNNAMED, **{f"w{i}": draw(6, 6) / np.float32(2.4) for i in (1, 2, 3, 4)}, b1=draw(6))


def paste(layers, folder) -> QuantizeConfig:
    """The settings that layers' lines make, under 4 bits for all others."""
    lines = ["reconstruct = false", "weight_bits = 4", "activation_bits = 4", "first_last_bits = 4"]
    path = folder / "onnxcalib.toml"
    path.write_text("\n\n".join([*lines, *(layer.toml for layer in layers)]), encoding="utf-8")
    return load_config(path)


@pytest.mark.usefixtures("every_layer")
@pytest.mark.parametrize("ready", [False, True])
def test_the_lines_of_unnamed_nodes_raise_exactly_these_layers(unnamed, make_static, draw, tmp_path, ready):
    x = draw(60, 6)
    settings = {"weight_type": QuantType.QInt4, "extra_options": {"MatMulConstBOnly": True}}
    found = explained(unnamed, make_static(unnamed, x, ready=ready, **settings), x)
    assert {layer.remedy for layer in found.layers} == {"raise it to 8 bits"}
    assert {layer.name for layer in found.layers} == {"MatMul_a", "MatMul_c", "Gemm_e", "MatMul_y"}
    for some in (found.layers[:2], found.layers[2:]):
        model = quantize(unnamed, x, paste(some, tmp_path)).model
        bits = {layer.name: layer.weight_bits for layer in find_quantized_layers(model)}
        assert {name for name, width in bits.items() if width == 8} == {layer.name for layer in some}
        assert len(bits) == 4


@pytest.mark.usefixtures("every_layer")
def test_the_lines_of_unnamed_nodes_leave_exactly_these_layers_in_float(unnamed, make_static, draw, tmp_path):
    x = draw(60, 6)
    some = explained(unnamed, make_static(unnamed, x), x).layers[:2]
    model = quantize(unnamed, x, paste(some, tmp_path)).model
    left = {layer.name for layer in find_quantized_layers(model)}
    assert left == {"MatMul_a", "MatMul_c", "Gemm_e", "MatMul_y"} - {layer.name for layer in some}


def test_a_layer_that_no_float_layer_can_be_named_for_has_no_lines(build, rough, draw):
    weights = {f"w{i}": draw(6, 6) / np.float32(2.4) for i in (1, 2)}
    twice = build(
        "g (float[N, 6] x) => (float[N, 6] y) { [a] p = MatMul (x, w1)  [b] q = MatMul (x, w2)  y = Add (p, q) }",
        **weights,
    )
    once = build("g (float[N, 6] x) => (float[N, 6] y) { [ab] y = MatMul (x, w) }", w=weights["w1"] + weights["w2"])
    x = draw(40, 6)
    (layer,) = explained(twice, rough(once, x), x).layers
    assert (layer.name, layer.toml) == ("ab", "") and layer.alone_db > 25


# Reasons


@pytest.mark.parametrize(
    ("bits", "limit"),
    [
        ({"activation_bits": 4}, "its 4-bit input limits it: (.*) dB with the 4-bit input alone, .* 8-bit weights"),
        ({"weight_bits": 4}, "its 4-bit weights limit it: (.*) dB with the 4-bit weights alone, .* 8-bit input"),
    ],
)
def test_the_part_that_limits_a_layer_is_named_first_with_about_its_own_decibels(net, images, bits, limit):
    worst = first(net, round_only(net, images, layers={"deep": bits}), images)
    found = re.match(limit, worst.reasons[0])
    assert worst.name == "deep" and worst.alone_db == pytest.approx(float(found[1]), abs=2)


def test_an_input_whose_grid_is_not_known_limits_where_the_weights_do_not(build, draw):
    """The grid is not known where a constant rescales the input first."""
    weight, scale = draw(6, 6), np.float32(0.02)
    integers = np.round(weight / scale).clip(-127, 127).astype(np.int8)
    text = """g (float[N, 6] x) => (float[N, 6] y) { h = Mul (x, two)  q = QuantizeLinear (h, sx, zx)
        a = DequantizeLinear (q, sx, zx)  v = DequantizeLinear (w, s, z)  [only] y = MatMul (a, v) }"""
    model = build("g (float[N, 6] x) => (float[N, 6] y) { [only] y = MatMul (x, w) }", w=integers * scale)
    fixed = {"two": np.float32(2), "zx": np.uint8(128), "w": integers, "s": scale / 2, "z": np.int8(0)}
    x = draw(40, 6)
    for step, reason in (
        (0.5, r"its 8-bit input limits it: ([\d.]+) dB with both, [\d.]+ dB with the 8-bit weights alone"),
        (0.06, r"its 8-bit weights limit it: ([\d.]+) dB with the 8-bit weights alone"),
    ):
        (layer,) = explained(model, build(text, **fixed, sx=np.float32(step)), x).layers
        found = re.fullmatch(reason, layer.reasons[0])
        assert found and float(found[1]) == pytest.approx(layer.alone_db, abs=3.1)


def reasons_of(original, quantized, data, name):
    found = explained(original, quantized, data)
    return "; ".join(next(layer for layer in found.layers if layer.name == name).reasons)


def set_grid(model, tensor, low, high):
    """A copy of the model with a tensor on another grid of uint8."""
    scale = np.float32((high - low) / 255)
    model = change_constant(model, f"{tensor}_scale", lambda _: scale)
    return change_constant(model, f"{tensor}_zero_point", lambda _: np.clip(np.rint(-low / scale), 0, 255))


WIDE, SATURATE, UNLIKE, DEAD = (
    "times as wide as its bulk",
    "of its input saturate",
    "as far as the middle one",
    "are dead",
)


@pytest.mark.usefixtures("every_layer")
def test_a_right_layer_shows_the_decibels_of_its_weights_and_input_and_no_symptom(net, rough, images):
    for name in ("inner", "deep"):
        (reason,) = first_reasons(net, rough(net, images), images, name)
        assert re.fullmatch(
            r"its 8-bit (?:weights|input|weights and its 8-bit input) limits? it: [\d.]+ dB with the 8-bit (\w+) alone,"
            r" [\d.]+ dB with the 8-bit (?!\1)\w+ alone",
            reason,
        )


def first_reasons(original, quantized, data, name):
    found = explained(original, quantized, data)
    return next(layer for layer in found.layers if layer.name == name).reasons


def test_a_grid_far_wider_than_the_bulk_is_named_with_its_ends(net, rough, images):
    text = reasons_of(net, set_grid(rough(net, images), "r", 0, 100), images, "inner")
    assert WIDE in text and "its input's grid, 0 to 100, is" in text
    assert SATURATE not in text


def test_an_input_that_saturates_is_named_with_its_share(net, rough, images):
    text = reasons_of(net, set_grid(rough(net, images), "r", 0, 0.2), images, "inner")
    assert SATURATE in text and WIDE not in text
    share = float(text.split("%")[0].rsplit(" ", 1)[-1])
    assert 10 < share < 90


def spoil_channels(net, weight, bias, channels, factor):
    """The net with some output channels of a layer made much larger, or dead."""
    scale = np.ones(8, np.float32)
    scale[channels] = factor
    net = change_constant(net, weight, lambda value: value * scale.reshape(-1, 1, 1, 1))
    return change_constant(net, bias, lambda value: value * scale)


@pytest.mark.usefixtures("every_layer")
def test_dead_channels_of_the_input_are_named_with_their_share(net, rough, images):
    dead = spoil_channels(net, "w1", "b1", [0, 3], 0)
    text = reasons_of(dead, rough(dead, images), images, "inner")
    assert "25% of its input's channels are dead" in text
    assert DEAD not in reasons_of(net, rough(net, images), images, "inner")


def test_output_channels_without_weights_are_named(net, rough, images):
    dead = spoil_channels(net, "w3", "b3", [1, 2, 6], 0)
    assert "3 of its 8 output channels have weights of 0 alone" in reasons_of(dead, rough(dead, images), images, "deep")


@pytest.mark.usefixtures("every_layer")
def test_an_unlike_channel_of_the_input_is_named(net, rough, images):
    unlike = spoil_channels(net, "w1", "b1", [2], 40)
    text = reasons_of(unlike, rough(unlike, images), images, "inner")
    assert UNLIKE in text and "a channel of its input reaches" in text


def test_a_channel_of_a_matmul_is_its_last_axis(build, rough, draw):
    model = build(
        "g (float[N, 7, 6] x) => (float[N, 7, 6] y) { [only] a = MatMul (x, w1)  y = Relu (a) }", w1=draw(6, 6)
    )
    x = draw(30, 7, 6)
    x[..., 2] *= 40
    assert UNLIKE in reasons_of(model, rough(model, x), x, "only")
    x = draw(30, 7, 6)
    x[:, 2] *= 40
    assert UNLIKE not in reasons_of(model, rough(model, x), x, "only")


def test_unlike_channels_of_a_weight_on_one_scale_are_named(build, draw):
    weight = np.full((6, 6), 3, np.int8)
    weight[:, 2] = 120
    text = """g (float[N, 6] x) => (float[N, 6] y) {{
        q = QuantizeLinear (x, sx, zx)  a = DequantizeLinear (q, sx, zx)
        v = DequantizeLinear {axis} (w, sw, zw)  [only] y = MatMul (a, v) }}"""
    float_net = build(
        "g (float[N, 6] x) => (float[N, 6] y) { [only] y = MatMul (x, w) }",
        w=weight.astype(np.float32) * np.float32(0.01),
    )
    grid = {"sx": np.float32(0.05), "zx": np.uint8(128), "w": weight}
    one = build(text.format(axis=""), **grid, sw=np.float32(0.01), zw=np.int8(0))
    each = build(text.format(axis="<axis = 1>"), **grid, sw=np.full(6, 0.01, np.float32), zw=np.zeros(6, np.int8))
    x = draw(40, 6)
    named = "the ranges of its weight's channels are very unlike, on one scale"
    assert named in reasons_of(float_net, one, x, "only")
    assert named not in reasons_of(float_net, each, x, "only")


CONCAT = """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
    [left] a = Conv (x, w1)  [right] b = Conv (x, w2)  c = Concat <axis = 1> (a, b)  [joined] y = Conv (c, w3) }"""


@pytest.mark.parametrize(("factor", "named"), [(100, True), (1, False)])
def test_a_concat_of_unlike_ranges_is_named_with_its_parts(build, rough, draw, weigh, factor, named):
    model = build(CONCAT, w1=weigh(4, 4, 1, 1), w2=weigh(4, 4, 1, 1) * np.float32(factor), w3=weigh(4, 8, 1, 1))
    x = draw(24, 4, 6, 6)
    text = reasons_of(model, rough(model, x), x, "joined")
    assert ("a Concat joins a, up to" in text and "and b, up to" in text and "on one scale" in text) == named


def test_parts_are_found_through_operators_that_move_values_alone(build):
    text = "g (float[N, 4] x, float[N, 4] z) => (float[K] y) {{ a = Concat <axis = 1> (x, z, k)  {} }}"
    shape = {"k": np.ones((1, 4), np.float32), "s": np.array([-1], np.int64)}
    moved = build(text.format("b = Transpose (a)  y = Reshape (b, s)"), **shape)
    assert joined_parts(Index(moved.graph), "y") == ("x", "z")
    computed = build(text.format("b = Relu (a)  y = Reshape (b, s)"), **shape)
    assert joined_parts(Index(computed.graph), "y") == ()
    assert joined_parts(Index(computed.graph), "x") == ()


# Remedies


def read_toml(layer) -> QuantizeConfig:
    return QuantizeConfig(reconstruct=False, **tomllib.loads(layer.toml))


def test_the_lines_of_a_4_bit_layer_raise_it_and_mend_the_loss(net, images):
    bits = {"weight_bits": 4, "activation_bits": 4}
    before = round_only(net, images, layers={"deep": bits})
    worst = first(net, before, images)
    assert worst.name == "deep"
    config = read_toml(worst)
    assert config.layers["deep"].weight_bits == config.layers["deep"].activation_bits == 8
    found = explained(net, quantize(net, images, config).model, images)
    raised = next(layer for layer in found.layers if layer.name == "deep")
    assert (raised.weight_bits, raised.activation_bits) == (8, 8)
    assert raised.at_output_db > worst.at_output_db + 6


@pytest.mark.usefixtures("every_layer")
def test_the_lines_of_a_wide_layer_leave_it_in_float(net, rough, images):
    wrong = change_constant(rough(net, images), "w3_scale", lambda scale: scale * 3)
    worst = first(net, wrong, images)
    assert (worst.name, worst.remedy) == ("deep", "leave it in float")
    config = read_toml(worst)
    assert config.layers["deep"].exclude
    found = explained(net, quantize(net, images, config).model, images)
    assert found.unmatched == ("deep (Conv): its weight is float",)
    assert {layer.name for layer in found.layers} == {"stem", "inner", "head"}


@pytest.mark.parametrize(
    "name", ["/layer.1/conv (a|b)", 'the "best"', "back\\slash", "line\nbreak", "smile 😀", "tab\t"]
)
def test_the_lines_hold_whatever_name_a_layer_has(net, rough, images, name):
    next(node for node in net.graph.node if node.name == "deep").name = name
    wrong = change_constant(rough(net, images), "w3_scale", lambda scale: scale * 3)
    worst = first(net, wrong, images)
    assert worst.name == name
    assert list(read_toml(worst).layers) == [name]


# Notes


def test_a_model_that_was_rounded_only_is_told_to_be_reconstructed(net, rough, images):
    model = round_only(net, images)
    (note,) = explained(net, model, images).notes
    assert note.startswith("the weights of this model were rounded and not reconstructed; first quantize it with")
    entry = next(entry for entry in model.metadata_props if entry.key == SETTINGS_KEY)
    for text in (entry.value.replace("false", "true"), "{", "[1]", '"x"'):
        entry.value = text
        assert explained(net, model, images).notes == ()
    assert explained(net, rough(net, images), images).notes == ()


def test_the_file_says_which_stages_were_done_and_light_is_told_to_reconstruct(net, images):
    stages = {"light": ["statistics"], "default": ["reconstruct"]}
    for pipeline, done in stages.items():
        model = quantize(net, images, QuantizeConfig(pipeline=pipeline, steps=0)).model
        text = next(entry.value for entry in model.metadata_props if entry.key == SETTINGS_KEY)
        assert [name for name in STAGES if json.loads(text)[name]] == done
        assert len(text) == 4 * SETTINGS_BYTES  # whatever the stages: the size of a file may be planned
        assert len(explained(net, model, images).notes) == (pipeline == "light")


@pytest.mark.usefixtures("every_layer")
def test_layers_whose_effect_on_the_outputs_cannot_be_measured_are_ranked_by_their_own_sqnr_with_the_reason(
    net, rough, images, monkeypatch
):
    def extract_unknown(model, types, **ends):
        part = extract(model, types, **ends)
        if types and "w4" in {tensor.name for tensor in part.graph.initializer}:  # all that is behind deep
            part.graph.node[-1].op_type = "Unknown"
        return part

    monkeypatch.setattr(survey, "extract", extract_unknown)
    found = explained(net, rough(net, images), images)
    assert {layer.name: layer.at_output_db is None for layer in found.layers} == {
        "stem": True, "inner": True, "deep": True, "head": False,
    }  # fmt: skip
    assert re.match("some layers are ranked by the SQNR of their own output, .*Unknown", found.notes[-1])


@pytest.mark.parametrize(("factor", "gain"), [(-1, "-1"), (3, "3")])
def test_channels_that_are_a_multiple_of_the_float_ones_are_named_as_a_wrong_scale_or_sign(
    net, rough, images, factor, gain
):
    def spoil(scale):
        return np.where(np.arange(scale.size) == 2, factor, 1).reshape(scale.shape) * scale

    worst = first(net, change_constant(rough(net, images), "w2_scale", spoil), images)
    channels = net.graph.initializer[1].dims[0]
    text = f"1 of its {channels} output channels, number 2 first, are about {gain} times the float model's"
    assert worst.name == "inner" and any(reason.startswith(text) for reason in worst.reasons)
    assert not any("products cancel" in reason for reason in worst.reasons)


def test_a_right_model_has_no_such_channels(net, rough, images):
    found = explained(net, rough(net, images), images)
    assert not [reason for layer in found.layers for reason in layer.reasons if "times the float model" in reason]


def test_a_layer_without_a_finite_output_in_the_float_model_is_not_judged(build, weigh, draw):
    text = """g (float[N, 6] x) => (float[N, 6] y, float[N, 6] z)
        {{ [good] y = MatMul (x, v)  r = {} (x)  [odd] z = MatMul (r, w) }}"""
    weights = {"v": weigh(6, 6), "w": weigh(6, 6)}
    data = np.abs(draw(20, 6)) + 1
    one, sound = (build(text.format(op), **weights) for op in ("Sqrt", "Abs"))
    quantized = quantize(sound, data, QuantizeConfig(reconstruct=False)).model
    for node in quantized.graph.node:
        node.op_type = {"Abs": "Sqrt"}.get(node.op_type, node.op_type)
    found = explain(one, quantized, open_calibration(-data, inputs_of(one)))
    assert [each.name for each in found.layers] == ["good"]
    assert found.unmatched == ("odd: its output has another shape than in the float model, or no finite value there",)


def test_names_are_written_for_toml_without_characters_that_change_what_is_seen():
    name = 'a"b\\c\x7f\u202e\x85'
    assert tomllib.loads(f"[layers.{explain_module._quote(name)}]")["layers"] == {name: {}}
    assert explain_module._quote(name) == r'"a\"b\\c\u007f\u202e\u0085"'


# Products of activations

DISTANCES = """g (float[N, 12, 16] x) => (float[N, 12, 8] y) {
    [points] a0 = MatMul (x, w1)  a = Add (a0, offset)  at = Transpose <perm = [0, 2, 1]> (a)
    [product] ab = MatMul (a, at)  sq = Mul (a, a)  n1 = ReduceSum (sq, last)  n2 = Transpose <perm = [0, 2, 1]> (n1)
    m = Mul (ab, two)  d1 = Add (m, n1)  d2 = Add (d1, n2)  d = Neg (d2)  s = Softmax <axis = 2> (d)
    [head] y = MatMul (s, w2) }"""


@pytest.fixture
def distances(build, weigh, monkeypatch):
    """Distances of points far from the origin, whose product stays quantized."""
    monkeypatch.setattr(placement, "find_coarse_products", lambda *_: {})
    fixed = {"offset": np.float32(100), "two": np.float32(-2), "last": np.array([2])}
    return build(DISTANCES, w1=weigh(16, 3), w2=weigh(12, 8), **fixed)


def test_a_product_of_activations_is_named_with_a_line_that_quantize_takes(distances, draw):
    x = draw(20, 12, 16)
    product, *others = explained(distances, quantize(distances, x).model, x).layers
    assert (product.name, product.op, product.weight_bits, product.activation_bits) == ("product", "MatMul", None, 8)
    assert product.alone_db > 40 > 10 > product.at_output_db
    assert "8-bit left operand" in product.reasons[0]
    assert "8-bit right operand" in product.reasons[0]
    assert tomllib.loads(product.toml) == {"layers": {"product": {"exclude": True}}}
    mended = quantize(distances, x, QuantizeConfig(layers=tomllib.loads(product.toml)["layers"]))
    assert mended.report.outputs[0].sqnr_db > 30
    assert not any(other.toml for other in others)


def test_a_layer_that_was_solved_for_the_errors_of_a_worse_product_is_not_blamed(distances, draw):
    x = draw(20, 12, 16)
    head = next(layer for layer in explained(distances, quantize(distances, x).model, x).layers if layer.name == "head")
    assert "its weights were solved for an input with the errors of product" in head.reasons
    assert (head.remedy, head.toml) == ("mend product first", "")


@pytest.mark.usefixtures("every_layer")
def test_a_product_with_one_operand_in_float_loses_by_the_other_alone(build, draw):
    model = build(
        "g (float[N, 4, 8] x, float[N, 8, 4] z) => (float[N, 4, 4] y) {"
        " q = QuantizeLinear (x, s, o)  d = DequantizeLinear (q, s, o)  [product] y = MatMul (d, z) }",
        s=np.float32(0.05), o=np.uint8(128),
    )  # fmt: skip
    plain = build("g (float[N, 4, 8] x, float[N, 8, 4] z) => (float[N, 4, 4] y) { [product] y = MatMul (x, z) }")
    (found,) = explained(plain, model, {"x": draw(16, 4, 8), "z": draw(16, 8, 4)}).layers
    assert found.reasons[0].startswith("its 8-bit left operand limits it: ")


def test_a_layer_that_ruins_a_small_part_of_an_output_is_named_first(build, weigh, draw, rough, every_layer):
    model = build(
        """g (float[N, 8] x) => (float[N, 12] y) { [box] b = MatMul (x, wb)  [big] k = Mul (b, hundred)
        [cls] s = MatMul (x, ws)  [y] y = Concat <axis = 1> (k, s) }""",
        wb=weigh(8, 8), ws=weigh(8, 4), hundred=np.float32(100),
    )  # fmt: skip
    data = draw(16, 8)
    quantized = rough(model, data)
    (weight,) = (t.name for t in quantized.graph.initializer if t.data_type == TensorProto.INT8 and t.dims == [8, 4])
    spoiled = change_constant(quantized, weight, lambda value: value // 8 * 8)
    samples, parts = open_calibration(data, inputs_of(model)), find_parts(model, {"x": data})
    apart, whole = (explain(model, spoiled, samples, parts=each).layers for each in (parts, None))
    assert (apart[0].name, whole[0].name) == ("cls", "box")


@pytest.mark.usefixtures("every_layer")
def test_layers_that_a_model_spells_otherwise_are_explained_under_its_names(build, draw):
    model = build(
        "g (float[N, 4, 8] x) => (float[N, 4, 3] y) { [left] a = MatMul (w, x)  r = Relu (a)"
        ' [stack] s = Einsum <equation = "nti,ihd->nthd"> (r, v)  f = Relu (s)'
        ' [back] b = Einsum <equation = "nthd,hdi->nti"> (f, u)'
        ' [fused] y = com.microsoft.FusedMatMul <transB = 1> (b, z) }',
        w=draw(4, 4), v=draw(8, 2, 4), u=draw(2, 4, 8), z=draw(3, 8),
    )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    x = draw(16, 4, 8)
    found = explained(model, quantize(model, x).model, x)
    assert {layer.name for layer in found.layers} == {"left", "stack", "back", "fused"}
    assert found.unmatched == ()


# A gate that is folded into a layer, and a transposed convolution with its norm: quantize writes both otherwise.
DECODER = """g (float[N, 6, 8, 8] x) => (float[N, 4, 16, 16] y) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w1)  [relu] r = Relu (a)
    [pool] p = GlobalAveragePool (r)  [squeeze] g = Conv (p, w2)  [gate] h = HardSigmoid (g)  [mul] m = Mul (r, h)
    [up] u = ConvTranspose <strides = [2, 2], kernel_shape = [2, 2]> (m, w3)
    [norm] n = BatchNormalization (u, gamma, beta, mean, var)  [relu2] v = Relu (n)
    [out] y = Conv <pads = [1, 1, 1, 1]> (v, w4) }"""


@pytest.mark.parametrize("bits", [8, 32])
def test_layers_that_quantize_writes_otherwise_are_judged_under_their_names(build, weigh, draw, bits):
    norm = {"gamma": weigh(5), "beta": weigh(5), "mean": weigh(5), "var": np.abs(weigh(5)) + 0.5}
    net = build(DECODER, w1=weigh(8, 6, 3, 3), w2=weigh(8, 8, 1, 1), w3=weigh(8, 5, 2, 2), w4=weigh(4, 5, 3, 3), **norm)
    settings = QuantizeConfig(reconstruct=False, placement="all", activation_bits=bits, threads=1)
    images = draw(16, 6, 8, 8)
    found = explain(net, quantize(net, images, settings).model, open_calibration(images, inputs_of(net)))
    assert found.unmatched == ()
    assert {loss.name for loss in found.layers} <= {"stem", "squeeze", "up", "out"}
    assert all(loss.alone_db > 30 for loss in found.layers)


def test_an_lstm_is_judged_by_its_output_and_what_else_it_reads(build, draw):
    model = build(
        """g (float[7, 2, 3] x, float[1, 2, 6] h) => (float[7, 1, 2, 4] y) {
            [it] t = LSTM <hidden_size = 6> (x, w, r, , , h)  [head] y = MatMul (t, m) }""",
        w=draw(1, 24, 3), r=draw(1, 24, 6), m=draw(6, 4),
    )  # fmt: skip
    arrays = {"x": draw(7, 2, 3), "h": draw(1, 2, 6)}
    quantized = quantize(model, [arrays], QuantizeConfig(activations="dynamic", placement="all")).model
    samples = open_calibration([arrays], inputs_of(model))
    found = explain(model, quantized, samples)
    assert not found.unmatched
    losses = {loss.name: loss for loss in found.layers}
    assert losses["it"].op == "DynamicQuantizeLSTM" and losses["it"].activation_bits == 8
    assert 30 < losses["it"].alone_db < 60 and losses["it"].at_output_db > 25
