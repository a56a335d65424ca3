"""Kernel consistency: what graph optimizations move, layer by layer, and what other machines would."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType

from onnxcalib.data import open_calibration
from onnxcalib.graph.inspect.integers import GIVEN
from onnxcalib.graph.load import inputs_of
from onnxcalib.runtime.optimized import optimize
from onnxcalib.runtime.session import Session
from onnxcalib.validation import kernel_consistency as module
from onnxcalib.validation.kernel_consistency import SAMPLES, check_consistency, find_risks

BODY = """{ [a] c = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  [b] r = Relu (c)
    [d] d = Conv <pads = [1, 1, 1, 1]> (r, w2, b1)  [e] s = Add (d, r)  [g] t = Relu (s)
    [m] p = GlobalAveragePool (t)  [f] f = Flatten (p)  [h] y = Gemm <transB = 1> (f, w3, b3) }"""


@pytest.fixture
def model(build, weigh):
    return build(
        f"g (float[N, 4, 6, 6] x) => (float[N, 5] y) {BODY}",
        w1=weigh(4, 4, 3, 3), w2=weigh(4, 4, 3, 3), w3=weigh(5, 4), b1=weigh(4), b3=weigh(5),
    )  # fmt: skip


@pytest.fixture
def quantized(model, rough, draw):
    return rough(model, draw(16, 4, 6, 6))


QDQ = QuantFormat.QDQ
U16, I16 = QuantType.QUInt16, QuantType.QInt16


def samples_of(model, array):
    return open_calibration(array, inputs_of(model))


def change(model, name, make):
    """A copy of the model with one initializer made anew."""
    changed = ModelProto.FromString(model.SerializeToString())
    tensor = next(t for t in changed.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(make(numpy_helper.to_array(tensor)), name))
    return changed


def retouch(model, make, *, tensor, place):
    """A copy in which the DequantizeLinear of a tensor alone reads a changed scale (1) or zero point (2)."""
    changed = ModelProto.FromString(model.SerializeToString())
    node = next(n for n in changed.graph.node if n.op_type == "DequantizeLinear" and n.output[0] == tensor)
    given = next(t for t in changed.graph.initializer if t.name == node.input[place])
    value = numpy_helper.to_array(given)
    changed.graph.initializer.append(numpy_helper.from_array(np.asarray(make(value), value.dtype), "retouched"))
    node.input[place] = "retouched"
    return changed


def test_a_right_model_is_moved_by_one_step_at_most_in_every_tensor(quantized, draw):
    before = quantized.SerializeToString()
    found = check_consistency(quantized, samples_of(quantized, draw(20, 4, 6, 6)))
    assert found.steps <= 1 and found.mismatched == () and found.samples == 20
    wanted = {node.output[0] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    assert {record.tensor for record in found.tensors} == wanted and len(wanted) > 5
    ops = {record.tensor: record.op for record in found.tensors}
    assert (ops["x_quantized"], ops["r_quantized"], ops["d_quantized"]) == ("input", "Relu", "Conv")
    assert all(record.share < 0.02 for record in found.tensors)
    assert quantized.SerializeToString() == before


@pytest.mark.parametrize("encoding", ["runtime", "standard"])
def test_a_right_model_of_4_bits_keeps_the_contract_too(model, rough, draw, encoding):
    model.opset_import[0].version, model.ir_version = 21, 10
    four = rough(model, draw(16, 4, 6, 6), encoding=encoding, weight_bits=4, activation_bits=4)
    found = check_consistency(four, samples_of(four, draw(20, 4, 6, 6)))
    assert found.steps <= 1 and found.mismatched == () and len(found.tensors) > 5


@pytest.mark.parametrize(
    ("place", "make"), [(1, lambda scale: scale * np.float32(1.01)), (2, lambda zero_point: zero_point + 1)]
)
def test_a_dequantizer_on_another_grid_is_listed_by_its_tensor(quantized, draw, place, make):
    wrong = retouch(quantized, make, tensor="r_dequantized", place=place)
    assert check_consistency(wrong, samples_of(wrong, draw(4, 4, 6, 6))).mismatched == ("r",)


@pytest.fixture
def bend(monkeypatch):
    """Lets optimized sessions give other integers for one tensor: call it with tensor and function."""

    def install(tensor, make):
        class Bent(Session):
            def __init__(self, model, *, optimize=True, **more):
                super().__init__(model, optimize=optimize, **more)
                self.bent = optimize

            def run(self, feeds, outputs=None):
                values = super().run(feeds, outputs)
                if self.bent and tensor in values:
                    values[tensor] = make(values[tensor])
                return values

        monkeypatch.setattr(module, "Session", Bent)

    return install


def spread(value):
    """Integers away from the ends of the type, so that a change of 3 is one of 3."""
    return np.where(value < 128, value + 3, value - 3).astype(value.dtype)


def test_a_session_that_gives_other_integers_is_found_at_its_tensor(quantized, draw, bend):
    bend("t_quantized", spread)
    found = check_consistency(quantized, samples_of(quantized, draw(6, 4, 6, 6)))
    worst, *others = found.tensors
    assert (worst.tensor, worst.op, worst.steps, worst.share) == ("t_quantized", "Relu", 3, 1.0)
    assert found.steps == 3 and max(record.steps for record in others) <= 1


@pytest.mark.parametrize(
    ("kind", "ends"),
    [(np.uint8, (0, 255)), (np.int8, (-128, 127)), (np.uint16, (0, 65535)), (np.int16, (-32768, 32767))],
)
def test_a_difference_from_end_to_end_of_the_type_is_not_wrapped(build, draw, bend, kind, ends):
    model = build(
        "g (float[N, 3] x) => (float[N, 3] y) {"
        " q = QuantizeLinear (x, scale, zero)  y = DequantizeLinear (q, scale, zero) }",
        opset=21, ir=10, scale=np.float32(1e-6), zero=np.array(0, kind),
    )  # fmt: skip
    bend("q", lambda value: np.full_like(value, ends[0]))
    (record,) = check_consistency(model, samples_of(model, np.abs(draw(4, 3)) + 1)).tensors
    assert (record.steps, record.share, record.op) == (ends[1] - ends[0], 1.0, "input")


def test_a_difference_in_one_sample_alone_is_found_and_its_share_is_of_all_values(quantized, draw, bend):
    calls = []

    def second(value):
        calls.append(len(value))
        return spread(value) if len(calls) == 2 else value

    bend("t_quantized", second)
    samples = open_calibration(draw(12, 4, 6, 6), inputs_of(change_batch(quantized, 4)))
    found = check_consistency(quantized, samples)
    assert calls == [4, 4, 4] and found.samples == 12
    assert (found.tensors[0].tensor, found.tensors[0].steps) == ("t_quantized", 3)
    assert found.tensors[0].share == pytest.approx(1 / 3, abs=0.02)


def change_batch(model, batch):
    changed = ModelProto.FromString(model.SerializeToString())
    changed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    return changed


def test_every_layer_starts_from_the_integers_of_the_session_without_optimizations(quantized, draw, monkeypatch):
    """So that a difference cannot spread to the layers behind it."""
    seen = []

    class Spy(Session):
        def run(self, feeds, outputs=None):
            values = super().run(feeds, outputs)
            seen.append((self.inputs, feeds, values))
            return values

    monkeypatch.setattr(module, "Session", Spy)
    found = check_consistency(quantized, samples_of(quantized, draw(4, 4, 6, 6)))
    (*_, plain), _, (inputs, feeds, _) = seen[-3:]
    tensors = {record.tensor for record in found.tensors}
    assert set(plain) == tensors | {"y"}
    for tensor in tensors:
        np.testing.assert_array_equal(feeds[f"{GIVEN}{tensor}"], plain[tensor])
    read = {name for node in quantized.graph.node for name in node.input}
    assert {f"{GIVEN}{tensor}" for tensor in tensors & read} <= set(inputs)


def test_no_more_samples_are_looked_at_than_needed(quantized, draw):
    assert check_consistency(quantized, samples_of(quantized, draw(SAMPLES + 20, 4, 6, 6))).samples == SAMPLES
    fixed = change_batch(quantized, 12)
    assert check_consistency(fixed, samples_of(fixed, draw(60, 4, 6, 6))).samples == 36


def test_a_float_model_is_judged_by_its_outputs_alone(model, draw):
    found = check_consistency(model, samples_of(model, draw(4, 4, 6, 6)))
    assert (found.samples, found.tensors, found.mismatched, found.steps) == (4, (), (), 0)
    assert found.sqnr_db > 100


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
@pytest.mark.parametrize(("activations", "kind"), [(U16, TensorProto.UINT16), (I16, TensorProto.INT16)])
def test_tensors_of_16_bits_are_compared_in_both_domains(model, by_tool, draw, domain, activations, kind):
    sixteen = by_tool(model, QDQ, activations, UseQDQContribOps=bool(domain))
    nodes = {node.input[0]: node for node in sixteen.graph.node if node.op_type == "QuantizeLinear"}
    types = {tensor.name: tensor.data_type for tensor in sixteen.graph.initializer}
    assert {(node.domain, types[node.input[2]]) for node in nodes.values()} == {(domain, kind)}
    found = check_consistency(sixteen, samples_of(sixteen, draw(20, 4, 6, 6)))
    assert {record.tensor for record in found.tensors} == {node.output[0] for node in nodes.values()}
    assert len(found.tensors) > 5 and found.steps <= 1 and found.mismatched == () and found.sqnr_db > 60
    wrong = retouch(sixteen, lambda zero: zero ^ 1, tensor=reader_of(sixteen, nodes["r"].output[0]), place=2)
    assert check_consistency(wrong, samples_of(wrong, draw(2, 4, 6, 6))).mismatched == ("r",)


def reader_of(model, tensor):
    return next(node.output[0] for node in model.graph.node if tensor in node.input)


# The outputs of the whole model


@pytest.mark.parametrize("form", ["dynamic", "weights alone"])
def test_models_without_integer_tensors_are_compared_at_their_outputs(model, weight_only, by_tool, draw, form):
    quantized = by_tool(model, form) if form == "dynamic" else weight_only
    x = draw(SAMPLES + 9, 4, 6, 6) if form == "dynamic" else draw(SAMPLES + 9, 64)
    found = check_consistency(quantized, samples_of(quantized, x))
    assert (found.samples, found.tensors) == (SAMPLES, ())
    off, on = (Session(quantized, optimize=on).run({"x": x[:SAMPLES]})["y"] for on in (False, True))
    error = np.sum(np.square(on - off, dtype=np.float64)) / np.sum(np.square(off, dtype=np.float64))
    assert found.sqnr_db == (pytest.approx(-10 * np.log10(error), abs=1e-3) if error else np.inf)
    if form == "weights alone":  # MatMulNBits rounds its input to 8 bits
        assert 30 < found.sqnr_db < 60


def two_outputs(build, kind="float"):
    text = f"g (float[N, 3] x) => ({kind}[N, 3] y, {kind}[N, 3] z) {{ "
    if kind == "float":
        return build(f"{text} y = Relu (x)  z = Neg (x) }}")
    return build(f"{text} y = Cast <to = 7> (x)  z = Neg (y) }}")


def test_the_error_is_the_mean_of_the_outputs_own_ones(build, draw, bend):
    model = two_outputs(build)
    assert check_consistency(model, samples_of(model, draw(8, 3))).sqnr_db == np.inf
    bend("y", lambda value: value * np.float32(1.1))
    assert check_consistency(model, samples_of(model, draw(8, 3))).sqnr_db == pytest.approx(
        20 + 10 * np.log10(2), abs=1e-3
    )


def test_all_batches_count(build, draw, bend):
    model = change_batch(two_outputs(build), 4)
    calls = []

    def last(value):
        calls.append(len(value))
        return value * np.float32(1.1) if len(calls) == 3 else value

    bend("z", last)
    x = draw(4, 3)
    found = check_consistency(model, samples_of(model, np.concatenate([x, x, x])))
    assert calls == [4, 4, 4] and found.sqnr_db == pytest.approx(20 + 10 * np.log10(6), abs=1e-3)


def test_outputs_of_another_shape_are_as_far_apart_as_can_be(build, draw, bend):
    model = two_outputs(build)
    bend("y", lambda value: value[:, :2])
    assert check_consistency(model, samples_of(model, draw(8, 3))).sqnr_db == -np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_finite_in_one_session_alone_is_as_far_apart_as_can_be(build, draw, bend, value):
    model = two_outputs(build)
    bend("y", lambda given: np.where(given > 0, np.float32(value), given))
    assert check_consistency(model, samples_of(model, draw(8, 3))).sqnr_db == -np.inf


def test_what_is_finite_in_neither_session_is_left_out(build, draw):
    text = "g (float[N, 3] x) => (float[N, 3] y{}) {{ r = Relu (x)  y = Div (r, r) {} }}"
    x = draw(8, 3)

    def check(model, values):
        return check_consistency(model, samples_of(model, values))

    some = check(build(text.format(", float[N, 3] z", "z = Neg (x)")), x)
    assert some.sqnr_db == np.inf
    none = check(build(text.format("", "")), -np.abs(x))
    assert none.sqnr_db is None


def test_whole_numbers_have_no_error_in_decibels(build, draw):
    model = two_outputs(build, "int64")
    found = check_consistency(model, samples_of(model, draw(8, 3)))
    assert (found.sqnr_db, found.samples) == (None, 8)


def test_an_integer_tensor_that_is_an_output_is_compared_as_integers(build, draw):
    text = (
        "g (float[N, 3] x) => (uint8[N, 3] q, float[N, 3] y) { q = QuantizeLinear (x, s)  y = DequantizeLinear (q, s) }"
    )
    model = build(text, s=np.float32(0.01))
    found = check_consistency(model, samples_of(model, draw(8, 3)))
    assert ([record.tensor for record in found.tensors], found.sqnr_db) == (["q"], np.inf)


def test_a_model_without_a_batch_axis_and_names_of_nodes_is_compared(build, draw):
    model = build(
        """g (float[3, 4] x, float[4] z) => (float[3, 4] y) {
            q = QuantizeLinear (x, scale, zero)  a = DequantizeLinear (q, scale, zero)
            b = Add (a, z)  p = QuantizeLinear (b, scale, zero)  y = DequantizeLinear (p, scale, zero) }""",
        scale=np.float32(0.05), zero=np.uint8(128),
    )  # fmt: skip
    samples = samples_of(model, {"x": draw(5, 3, 4), "z": draw(5, 4)})
    found = check_consistency(model, samples)
    assert found.samples == 5 and {record.tensor for record in found.tensors} == {"q", "p"} and found.steps <= 1


# Risks


@pytest.fixture
def weight_only(build, draw):
    """A MatMul with float activations and 4-bit weights in blocks, which onnxruntime makes a MatMulNBits."""
    return build(
        """g (float[N, 64] x) => (float[N, 32] y) {
            w = DequantizeLinear <axis = 0, block_size = 32> (q, s, z)  [project] y = MatMul (x, w) }""",
        opset=21, ir=10,
        q=np.clip(np.rint(3 * draw(64, 32)), -8, 7).astype(ml_dtypes.int4),
        s=np.full((2, 32), 0.05, np.float32),
        z=np.zeros((2, 32), ml_dtypes.int4),
    )  # fmt: skip


def test_float_activations_that_onnxruntime_quantizes_are_warned_of(weight_only):
    (text,) = find_risks(optimize(weight_only)[1], weight_only)
    wanted = (
        r"MatMulNBits: 1 with weights of few bits and float input \(.* first\) quantize that input to 8"
        r" bits, which the file does not say; set onnxruntime's session option"
        r" session.qdq_matmulnbits_accuracy_level to 1 for float activations"
    )
    assert re.fullmatch(wanted, text)


def test_float_activations_that_stay_float_are_not_warned_of(weight_only):
    graph = optimize(weight_only)[1]
    (node,) = [n for n in graph.node if n.op_type == "MatMulNBits"]
    (level,) = [a for a in node.attribute if a.name == "accuracy_level"]
    level.i = 1
    assert find_risks(graph, weight_only) == []


def test_a_file_that_says_itself_that_it_quantizes_them_is_not_warned_of_where_a_bias_is_fused(build, draw):
    model = build(
        """g (float[N, 2, 32] x) => (float[N, 2, 16] y) { [project] t = com.microsoft.MatMulNBits
            <K = 32, N = 16, bits = 4, block_size = 32, accuracy_level = 4> (x, w, s)  [add] y = Add (t, b) }""",
        w=np.zeros((16, 1, 16), np.uint8), s=np.ones(16, np.float32), b=draw(16),
    )  # fmt: skip
    graph = optimize(model)[1]
    assert [(node.op_type, list(node.output)) for node in graph.node] == [("MatMulNBits", ["y"])]
    assert find_risks(graph, model) == []


def test_a_model_of_integer_activations_has_no_risks(quantized):
    assert find_risks(optimize(quantized)[1], quantized) == []


def test_what_the_file_itself_says_is_no_risk(weight_only, tmp_path):
    graph = optimize(weight_only)[1]
    own = ModelProto(opset_import=weight_only.opset_import, graph=graph)
    assert find_risks(graph, own) == []
