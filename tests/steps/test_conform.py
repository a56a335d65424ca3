"""The numerics contract: what graph optimizations move, layer by layer, and what other machines would."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxcalib.data import open_calibration
from onnxcalib.graph.integers import GIVEN
from onnxcalib.graph.load import inputs_of
from onnxcalib.runtime.session import Session
from onnxcalib.steps import conform as module
from onnxcalib.steps.conform import SAMPLES, conform, find_risks
from onnxcalib.steps.verify import optimize

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
    found = conform(quantized, samples_of(quantized, draw(20, 4, 6, 6)))
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
    narrow = rough(model, draw(16, 4, 6, 6), encoding=encoding, weight_bits=4, activation_bits=4)
    found = conform(narrow, samples_of(narrow, draw(20, 4, 6, 6)))
    assert found.steps <= 1 and found.mismatched == () and len(found.tensors) > 5


@pytest.mark.parametrize(
    ("place", "make"), [(1, lambda scale: scale * np.float32(1.01)), (2, lambda zero_point: zero_point + 1)]
)
def test_a_dequantizer_on_another_grid_is_listed_by_its_tensor(quantized, draw, place, make):
    wrong = retouch(quantized, make, tensor="r_dequantized", place=place)
    assert conform(wrong, samples_of(wrong, draw(4, 4, 6, 6))).mismatched == ("r",)


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
                if self.bent:
                    values[tensor] = make(values[tensor])
                return values

        monkeypatch.setattr(module, "Session", Bent)

    return install


def spread(value):
    """Integers away from the ends of the type, so that a change of 3 is one of 3."""
    return np.where(value < 128, value + 3, value - 3).astype(value.dtype)


def test_a_session_that_gives_other_integers_is_found_at_its_tensor(quantized, draw, bend):
    bend("t_quantized", spread)
    found = conform(quantized, samples_of(quantized, draw(6, 4, 6, 6)))
    worst, *others = found.tensors
    assert (worst.tensor, worst.op, worst.steps, worst.share) == ("t_quantized", "Relu", 3, 1.0)
    assert found.steps == 3 and max(record.steps for record in others) <= 1


@pytest.mark.parametrize(("kind", "ends"), [(np.uint8, (0, 255)), (np.int8, (-128, 127))])
def test_a_difference_from_end_to_end_of_the_type_is_not_wrapped(build, draw, bend, kind, ends):
    model = build(
        "g (float[N, 3] x) => (float[N, 3] y) {"
        " q = QuantizeLinear (x, scale, zero)  y = DequantizeLinear (q, scale, zero) }",
        scale=np.float32(1e-6), zero=np.array(0, kind),
    )  # fmt: skip
    bend("q", lambda value: np.full_like(value, ends[0]))
    (record,) = conform(model, samples_of(model, np.abs(draw(4, 3)) + 1)).tensors
    assert (record.steps, record.share, record.op) == (ends[1] - ends[0], 1.0, "input")


def test_a_difference_in_one_sample_alone_is_found_and_its_share_is_of_all_values(quantized, draw, bend):
    calls = []

    def second(value):
        calls.append(len(value))
        return spread(value) if len(calls) == 2 else value

    bend("t_quantized", second)
    samples = open_calibration(draw(12, 4, 6, 6), inputs_of(change_batch(quantized, 4)))
    found = conform(quantized, samples)
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
    found = conform(quantized, samples_of(quantized, draw(4, 4, 6, 6)))
    (*_, plain), (inputs, feeds, _) = seen[-2:]
    assert set(plain) == {record.tensor for record in found.tensors}
    for tensor, value in plain.items():
        np.testing.assert_array_equal(feeds[f"{GIVEN}{tensor}"], value)
    read = {name for node in quantized.graph.node for name in node.input}
    assert {f"{GIVEN}{tensor}" for tensor in plain.keys() & read} <= set(inputs)


def test_no_more_samples_are_looked_at_than_needed(quantized, draw):
    assert conform(quantized, samples_of(quantized, draw(SAMPLES + 20, 4, 6, 6))).samples == SAMPLES
    fixed = change_batch(quantized, 12)
    assert conform(fixed, samples_of(fixed, draw(60, 4, 6, 6))).samples == 36


def test_a_float_model_has_nothing_to_compare(model, draw):
    found = conform(model, samples_of(model, draw(4, 4, 6, 6)))
    assert (found.samples, found.tensors, found.mismatched, found.steps) == (0, (), (), 0)


def test_a_model_without_a_batch_axis_and_names_of_nodes_is_compared(build, draw):
    model = build(
        """g (float[3, 4] x, float[4] z) => (float[3, 4] y) {
            q = QuantizeLinear (x, scale, zero)  a = DequantizeLinear (q, scale, zero)
            b = Add (a, z)  p = QuantizeLinear (b, scale, zero)  y = DequantizeLinear (p, scale, zero) }""",
        scale=np.float32(0.05), zero=np.uint8(128),
    )  # fmt: skip
    samples = samples_of(model, {"x": draw(5, 3, 4), "z": draw(5, 4)})
    found = conform(model, samples)
    assert found.samples == 5 and {record.tensor for record in found.tensors} == {"q", "p"} and found.steps <= 1


# Risks


def risks_of(model):
    return find_risks(model, optimize(model)[1])


def fill(first, second, shape=(4, 4, 1, 1)):
    """Weight integers whose neighbours in the order of the kernel (channels last) are these two."""
    values = np.zeros(shape, np.int8)
    values[:, 0::2], values[:, 1::2] = first, second
    return values


@pytest.mark.parametrize(
    ("first", "second", "bound"),
    [(64, 65, 129 * 255), (127, 127, 254 * 255), (-64, -65, 129 * 255), (127, -127, None), (64, 64, None)],
)
def test_neighbours_that_sum_above_128_are_warned_of(build, rough, draw, weigh, first, second, bound):
    model = build(
        "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { [a] c = Conv (x, w)  y = Relu (c) }", w=weigh(4, 4, 1, 1)
    )
    quantized = change(rough(model, draw(8, 4, 6, 6)), "w_quantized", lambda _: fill(first, second))
    text = (
        f"1 of 1 layers can saturate on x86 without VNNI (in a sums of two products reach {bound or 0:,}, int16"
        " ends at 32,767); there set onnxruntime's session.x64quantprecision to 1, or give these layers 4-bit weights"
    )
    assert risks_of(quantized) == ([text] if bound else [])


def test_the_worst_layer_is_named_and_all_are_counted(quantized):
    wide = change(quantized, "w1_quantized", lambda value: fill(70, 70, value.shape))
    wide = change(wide, "w2_quantized", lambda value: fill(120, 120, value.shape))
    (text,) = risks_of(change(wide, "w3_quantized", lambda value: value // 4))
    assert text.startswith("2 of 3 layers can saturate") and f"(in d sums of two products reach {240 * 255:,}" in text


def test_4_bit_weights_cannot_saturate(build, rough, draw):
    weight = np.ones((4, 4, 3, 3), np.float32)
    for bits, count in ((8, 1), (4, 0)):
        model = build(
            "g (float[N, 4, 6, 6] x) => (float[N, 4, 4, 4] y) { [a] c = Conv (x, w)  y = Relu (c) }",
            opset=21, ir=10, w=weight,
        )  # fmt: skip
        assert len(risks_of(rough(model, draw(8, 4, 6, 6), weight_bits=bits, first_last_bits=bits))) == count


def test_4_bit_activations_are_too_small_to_saturate(build, rough, draw):
    """Clipped at 15, that is; the first and the last layer read 8 bits whatever the others do."""
    ones = {name: np.ones((4, 4, 1, 1), np.float32) for name in ("w1", "w2", "w3")}
    model = build(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { [a] c = Conv (x, w1)  [b] r = Relu (c)
            [d] d = Conv (r, w2)  [e] t = Relu (d)  [f] y = Conv (t, w3) }""",
        opset=21, ir=10, **ones,
    )  # fmt: skip
    for bits, count in ((8, 3), (4, 2)):
        (text,) = risks_of(rough(model, draw(8, 4, 6, 6), activation_bits=bits))
        assert text.startswith(f"{count} of 3 layers can saturate")


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
    (text,) = risks_of(weight_only)
    wanted = (
        r"MatMuls with 4-bit weights \(1 of them, .* first\) quantize the activations that they read to 8"
        r" bits, which the file does not say; set onnxruntime's session.qdq_matmulnbits_accuracy_level to 1"
        r" for float activations"
    )
    assert re.fullmatch(wanted, text)


def test_float_activations_that_stay_float_are_not_warned_of(weight_only):
    graph = optimize(weight_only)[1]
    (node,) = [n for n in graph.node if n.op_type == "MatMulNBits"]
    (level,) = [a for a in node.attribute if a.name == "accuracy_level"]
    level.i = 1
    assert find_risks(weight_only, graph) == []


def test_a_right_model_of_small_weights_has_no_risks(quantized):
    for name in ("w1_quantized", "w2_quantized", "w3_quantized"):
        quantized = change(quantized, name, lambda value: value // 2)
    assert risks_of(quantized) == []
