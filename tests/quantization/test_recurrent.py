"""Recurrent layers that are solved: on which moments, and what a whole run makes of them."""

import numpy as np
import onnx
import pytest
import torch

from onnxcalib import QuantizeConfig, quantize, validate
from onnxcalib.errors import ConfigError, ModelError
from onnxcalib.graph.index import Index
from onnxcalib.graph.load import is_quantized
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.quantization import recurrent
from onnxcalib.quantization.recurrent import _Cell
from onnxcalib.spec import Requirements

# Its last states alone are read.
NET = """g (float[N, 12, 5] x) => (float[N, 4] y) {
    [turn] t = Transpose <perm = [1, 0, 2]> (x)
    [it] , h = LSTM <hidden_size = 8, direction = "bidirectional"> (t, w, r, b)
    [back] s = Transpose <perm = [1, 0, 2]> (h)  [flat] f = Flatten (s)  [head] y = MatMul (f, m)
}"""


@pytest.fixture
def net(build, draw):
    shapes = {"w": (2, 32, 5), "r": (2, 32, 8), "b": (2, 64), "m": (16, 4)}
    return build(NET, **{name: draw(*shape) / np.float32(2) for name, shape in shapes.items()})


def settle(**settings):
    return QuantizeConfig(activations="dynamic", placement="all", **settings)


def find_sqnr(report, name):
    return next(layer.sqnr_db for layer in report.layers if layer.name == name)


def test_solved_weights_are_nearer_to_float_than_rounded_ones(net, draw):
    x = 2 + draw(48, 12, 5) / 8  # values far from 0, whose mean the rounding of a row moves
    solved, rounded = (quantize(net, x, settle(reconstruct=each)) for each in (True, False))
    (record,) = (layer for layer in solved.report.layers if layer.name == "it")
    assert (record.op, record.weight_bits, record.activation_bits, record.dynamic) == ("LSTM", 8, 8, True)
    assert find_sqnr(solved.report, "it") > find_sqnr(rounded.report, "it") + 6
    assert not solved.report.in_float and not solved.report.left_out
    (node,) = (node for node in solved.model.graph.node if node.name == "it")
    assert (node.op_type, list(node.output)) == ("DynamicQuantizeLSTM", ["", "h"])
    bits = {entry.key: entry.value for entry in solved.model.metadata_props}["onnxcalib.bits"]
    assert '"it": "W8A8"' in bits


def test_a_file_whose_only_integers_are_of_recurrent_layers_is_a_quantized_one(build, draw, recwarn):
    text = "g (float[T, N, 5] x) => (float[T, 1, N, 8] y) { [it] y = GRU <hidden_size = 8> (x, w, r) }"
    net, values = build(text, w=draw(1, 24, 5), r=draw(1, 24, 8)), [draw(6, 1, 5) for _ in range(12)]
    quantized = quantize(net, values, QuantizeConfig(pipeline="light")).model
    assert is_quantized(quantized) and not is_quantized(net)
    recwarn.clear()
    validate(net, quantized, values)
    assert not [each for each in recwarn if "two float models are compared" in str(each.message)]
    with pytest.raises(ModelError, match="models: the first is quantized and the second is not"):
        validate(quantized, net, values)
    with pytest.raises(ModelError, match="node it: found a weight of integers times scales, so the model is quantized"):
        quantize(quantized, values)


def test_a_run_that_goes_on_writes_the_same_lstm_and_does_not_solve_it_again(net, draw, tmp_path, monkeypatch):
    x = draw(24, 12, 5)
    first = quantize(net, x, settle(), output=tmp_path / "o.onnx").model  # whose file is not written
    monkeypatch.setattr(recurrent, "solve_on_states", None)
    again = quantize(net, x, settle(), output=tmp_path / "o.onnx").model
    assert first.SerializeToString() == again.SerializeToString()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"placement": "cost"}, "with 8 hidden values DynamicQuantizeLSTM is slower than float"),
        ({"encoding": "standard"}, "encoding 'standard' has operators of ONNX alone"),
    ],
)
def test_an_lstm_that_does_not_round_as_it_runs_has_its_reason_in_the_report(net, draw, settings, reason):
    settings = {"activations": "dynamic", "placement": "all", **settings}
    report = quantize(net, draw(8, 12, 5), QuantizeConfig(**settings)).report
    (found,) = (each for each in report.left_out if each.what == "dynamic activations of it")
    assert found.reason.startswith(reason) and found.reason.endswith("its weights alone are quantized")
    assert next(str(each.activation_bits) for each in report.layers if each.name == "it") == "32"
    assert not report.in_float


def test_a_model_of_an_lstm_alone_is_taken_and_its_name_selects_it(build, draw):
    text = "g (float[N, 12, 5] x) => (float[1, N, 8] c) {{ t = Transpose <perm = [1, 0, 2]> (x) {} }}"
    model = build(
        text.format("[it] , , c = LSTM <hidden_size = 8> (t, w, r)"), w=draw(1, 32, 5) / 2, r=draw(1, 32, 8) / 2
    )
    x = draw(8, 12, 5)
    named = QuantizeConfig(activations="dynamic", layers={"it": {"weight_bits": 8}})  # which is slower, but named
    own = QuantizeConfig(layers={"op:LSTM": {"activations": "dynamic"}})
    for config, bits in ((settle(), 8), (named, 8), (own, 8), (QuantizeConfig(), 32)):
        (record,) = quantize(model, x, config).report.layers
        assert record.name == "it" and record.sqnr_db > 30 and record.activation_bits == bits
    with pytest.raises(ConfigError, match="exclude: no layer is left to quantize"):
        quantize(model, x, settle(exclude=["it"]))


CELLS = """g (float[N, 12, 5] x) => (float[N, 4] y) {{
    [turn] t = Transpose <perm = [1, 0, 2]> (x)
    [it] s = {op} <hidden_size = 8, direction = "bidirectional"{more}> (t, w, r, b)
    [take] l = Gather <axis = 0> (s, last) [back] u = Transpose <perm = [1, 0, 2]> (l)
    [flat] f = Flatten (u)  [head] y = MatMul (f, m)
}}"""


@pytest.mark.parametrize(("op", "more"), [("LSTM", ""), ("GRU", ""), ("GRU", ", linear_before_reset = 1"), ("RNN", "")])
def test_solved_weights_of_each_kind_lose_less_than_rounded_ones(build, draw, op, more):
    rows = {"LSTM": 32, "GRU": 24, "RNN": 8}[op]
    shapes = {"w": (2, rows, 5), "r": (2, rows, 8), "b": (2, 2 * rows), "m": (16, 4)}
    weights = {name: draw(*shape) / np.float32(3) for name, shape in shapes.items()}
    model = build(CELLS.format(op=op, more=more), opset=21, last=np.array(11), **weights)
    x = 1 + draw(48, 12, 5) / 4
    config = {"activation_bits": 32, "weight_bits": 4, "first_last_bits": 4, "block_size": "column"}
    reports = [quantize(model, x, QuantizeConfig(reconstruct=each, **config)).report for each in (True, False)]
    assert find_sqnr(reports[0], "it") > find_sqnr(reports[1], "it") + 2
    assert not reports[0].in_float and not reports[0].left_out


def test_the_weights_of_new_values_of_a_gru_are_solved_on_the_states_that_its_reset_gate_lets_through(build, draw, run):
    text = """g (float[6, 2, 3] x, float[2, 2, 5] h) => (float[6, 2, 2, 5] y) {
        [it] y = GRU <hidden_size = 5, direction = "bidirectional"> (x, w, r, b, , h)
    }"""
    weights = {"w": draw(2, 15, 3), "r": draw(2, 15, 5), "b": draw(2, 30)}
    model, feeds = build(text, **weights), {"x": draw(6, 2, 3), "h": draw(2, 2, 5)}
    (layer,) = make_scheme(model).recurrent
    own = _Cell(layer, Index(model.graph))
    feeds["y"] = run(model, *feeds.values())[0]
    before = torch.from_numpy(own._shift(feeds, np.array([6, 6])))
    passed = before * own._open_reset_gate(torch.from_numpy(feeds["x"])[None], before)

    def gate(source, states, rows):  # of each direction, by the definition
        b = np.split(weights["b"], 2, axis=1)
        sums = [source @ weights["w"][d, rows].T + states[d] @ weights["r"][d, rows].T for d in range(2)]
        return np.stack(sums) + (b[0] + b[1])[:, None, None, rows]

    update = 1 / (1 + np.exp(-gate(feeds["x"], before.numpy(), slice(0, 5))))
    new = np.tanh(gate(feeds["x"], passed.numpy(), slice(10, 15)))
    y = (1 - update) * new + update * before.numpy()
    np.testing.assert_allclose(y.swapaxes(0, 1), feeds["y"], atol=1e-5)


def test_a_gru_with_another_gate_has_its_new_values_rounded(build, draw, run):
    text = """g (float[6, 2, 3] x) => (float[6, 1, 2, 5] y) {
        [it] y = GRU <hidden_size = 5, activations = ["HardSigmoid", "Tanh"]> (x, w, r)
    }"""
    model, x = build(text, w=draw(1, 15, 3), r=draw(1, 15, 5)), draw(6, 2, 3)
    (layer,) = make_scheme(model).recurrent
    own = _Cell(layer, Index(model.graph))
    own.add({"x": x, "y": run(model, x)[0]}, np.array([False, True]), None)
    assert [each.solve(1) is None for each in own.states] == [False, True]
    rounded, solved = own.make_params(), own.solve(1)
    np.testing.assert_array_equal(rounded.states.integers[:, 10:], solved.states.integers[:, 10:])


@pytest.fixture
def lstm(build, draw):
    """An LSTM of both directions with lengths and first states."""
    text = """g (float[4, 2, 3] x, int32[2] n, float[2, 2, 5] h) => (float[4, 2, 2, 5] y) {
        [it] y = LSTM <hidden_size = 5, direction = "bidirectional"> (x, w, r, , n, h)
    }"""
    model = build(text, w=draw(2, 20, 3), r=draw(2, 20, 5))
    (layer,) = make_scheme(model, dynamic=True, requirements=Requirements(recurrent=True)).recurrent
    return model, _Cell(layer, Index(model.graph))


def test_states_are_those_in_front_of_each_step(lstm, draw, run):
    model, own = lstm
    feeds = {"x": draw(4, 2, 3), "n": np.array([4, 2], np.int32), "h": draw(2, 2, 5)}
    feeds["y"] = y = run(model, *feeds.values())[0]
    forward, backward = own._shift(feeds, feeds["n"])
    np.testing.assert_array_equal(forward, np.concatenate((feeds["h"][:1], y[:-1, 0])))
    np.testing.assert_array_equal(backward[:, 0], np.concatenate((y[1:, 1, 0], feeds["h"][1:, 0])))
    np.testing.assert_array_equal(backward[:2, 1], np.stack((y[1, 1, 1], feeds["h"][1, 1])))


def test_steps_behind_the_end_of_a_sequence_are_not_read(lstm, draw, run):
    model, own = lstm
    feeds = {"x": draw(4, 2, 3), "n": np.array([4, 2], np.int32), "h": draw(2, 2, 5)}
    feeds["y"] = run(model, *feeds.values())[0]
    own.add(feeds, np.array([False, True]), None)
    columns = [[total.columns for total in sums.sums] for sums in (own.inputs, *own.states)]
    assert columns == [[4, 2], [4, 2]]  # of the sample that is fitted, and of the one held out


def test_a_solved_file_is_checked_and_its_sums_cannot_saturate(net, draw):
    result = quantize(net, draw(24, 12, 5), settle())
    onnx.checker.check_model(result.model)
    assert result.report.saturation.kernels == 3 and not result.report.saturation.layers


SHARED = """g (float[5, N, 16] x) => (float[5, 1, N, 16] y, float[5, 1, N, 16] z) {
    [one] y = OP <hidden_size = 16> (x, w, r, b)
    [turn] t = Squeeze (y, axis)
    [two] z = OP <hidden_size = 16> (t, w, r, b)
}"""


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
@pytest.mark.parametrize("reconstruct", [True, False])
def test_weights_that_two_layers_read_are_stored_once(build, draw, run, op, reconstruct):
    rows = {"GRU": 48, "LSTM": 64}[op]
    weights = {"w": draw(1, rows, 16), "r": draw(1, rows, 16), "b": draw(1, 2 * rows)}
    model = build(SHARED.replace("OP", op), axis=np.array([1]), **weights)
    x = draw(5, 16, 16)
    samples = [{"x": x[:, [number]]} for number in range(16)]
    result = quantize(model, samples, QuantizeConfig(reconstruct=reconstruct, effort="fast", threads=1))
    stored = [t for t in result.model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert sorted(tuple(t.dims) for t in stored) == [(1, rows, 16)] * 2
    assert {record.name for record in result.report.layers} == {"one", "two"}
    for wanted, given in zip(run(model, x), run(result.model, x), strict=True):
        assert np.square(wanted - given).sum() < 1e-3 * np.square(wanted).sum()
