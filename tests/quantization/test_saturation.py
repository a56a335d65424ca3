"""Which kernels can saturate on x86 without VNNI, what the outputs are there, and what is advised."""

import re

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType

from onnxcalib.data import open_calibration
from onnxcalib.graph.load import inputs_of
from onnxcalib.quantization import saturation as module
from onnxcalib.quantization.output_tally import OutputTally
from onnxcalib.quantization.padding_mask import PaddingMask
from onnxcalib.quantization.saturation import LEAST_SAMPLES, MOST_SAMPLES, advise, measure_saturation
from onnxcalib.report import BoundRecord
from onnxcalib.runtime.optimized import optimize
from onnxcalib.runtime.session import Session, saturates

BODY = """{ [a] c = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  [b] r = Relu (c)
    [d] d = Conv <pads = [1, 1, 1, 1]> (r, w2, b1)  [e] s = Add (d, r)  [g] t = Relu (s)
    [m] p = GlobalAveragePool (t)  [f] f = Flatten (p)  [h] y = Gemm <transB = 1> (f, w3, b3) }"""
CHAIN = BODY.replace("[e] s = Add (d, r)  [g] t = Relu (s)", "[g] t = Relu (d)")
QDQ, QOPERATOR = QuantFormat.QDQ, QuantFormat.QOperator
U8, I8 = QuantType.QUInt8, QuantType.QInt8
FULL = 255 * 254


@pytest.fixture
def measure(draw):
    """The record of a quantized model, against its float model on arrays."""

    def run(original, quantized, x=None):
        shape = [dim.dim_value or 6 for dim in original.graph.input[0].type.tensor_type.shape.dim]
        samples = open_calibration(draw(*shape) if x is None else x, inputs_of(original))
        return measure_saturation(original, quantized, optimize(quantized)[1], samples, padding=PaddingMask(original))

    return run


@pytest.fixture
def model(build, weigh):
    return build(
        f"g (float[N, 4, 6, 6] x) => (float[N, 5] y) {BODY}",
        w1=weigh(4, 4, 3, 3), w2=weigh(4, 4, 3, 3), w3=weigh(5, 4), b1=weigh(4), b3=weigh(5),
    )  # fmt: skip


@pytest.fixture
def quantized(model, rough, draw):
    return rough(model, draw(16, 4, 6, 6))


@pytest.fixture
def fill_up(build):
    """The model of a body all of whose weights become 127."""
    shapes = {"w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "w3": (5, 4), "b1": (4,), "b3": (5,)}
    ones = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    return lambda body: build(f"g (float[N, 4, 6, 6] x) => (float[N, 5] y) {body}", **ones)


@pytest.fixture
def wide(fill_up):
    return fill_up(CHAIN)


def change(model, name, make):
    """A copy of the model with one initializer made anew."""
    changed = ModelProto.FromString(model.SerializeToString())
    tensor = next(t for t in changed.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(make(numpy_helper.to_array(tensor)), name))
    return changed


def fill(first, second, shape=(4, 4, 1, 1)):
    """Weight integers whose neighbours in the order of the kernel (channels last) are these two."""
    values = np.zeros(shape, np.int8)
    values[:, 0::2], values[:, 1::2] = first, second
    return values


def names_of(record):
    return [layer.name for layer in record.layers]


# Bounds


@pytest.mark.parametrize(
    ("first", "second", "bound"),
    [(64, 65, 129 * 255), (127, 127, 254 * 255), (-64, -65, 129 * 255), (127, -127, None), (64, 64, None)],
)
def test_neighbours_that_sum_above_128_can_saturate(build, rough, draw, weigh, measure, first, second, bound):
    text = "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { [a] c = Conv (x, w)  y = Relu (c) }"
    model = build(text, w=weigh(4, 4, 1, 1))
    found = measure(model, change(rough(model, draw(8, 4, 6, 6)), "w_quantized", lambda _: fill(first, second)))
    assert (found.kernels, found.layers) == (1, (BoundRecord("a", bound),) if bound else ())
    assert bool(found.outputs) == bool(found.samples) == bool(bound)
    assert (found.unread, found.reason) == ((), None)


def test_the_worst_layer_comes_first(model, quantized, measure):
    wide = change(quantized, "w1_quantized", lambda value: fill(70, 70, value.shape))
    wide = change(wide, "w2_quantized", lambda value: fill(120, 120, value.shape))
    found = measure(model, change(wide, "w3_quantized", lambda value: value // 4))
    assert (found.kernels, found.layers) == (3, (BoundRecord("d", 240 * 255), BoundRecord("a", 140 * 255)))


def test_4_bit_weights_cannot_saturate(build, rough, draw, measure):
    text = "g (float[N, 4, 6, 6] x) => (float[N, 4, 4, 4] y) { [a] c = Conv (x, w)  y = Relu (c) }"
    model = build(text, opset=21, ir=10, w=np.ones((4, 4, 3, 3), np.float32))
    for bits, count in ((8, 1), (4, 0)):
        quantized = rough(model, draw(8, 4, 6, 6), weight_bits=bits, first_last_bits=bits, pair_limits=False)
        found = measure(model, quantized)
        assert (found.kernels, len(found.layers)) == (1, count)


def test_4_bit_activations_are_too_small_to_saturate(build, rough, draw, measure):
    """Clipped at 15, that is; the first and the last layer read 8 bits whatever the others do."""
    ones = {name: np.ones((4, 4, 1, 1), np.float32) for name in ("w1", "w2", "w3")}
    model = build(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { [a] c = Conv (x, w1)  [b] r = Relu (c)
            [d] d = Conv (r, w2)  [e] t = Relu (d)  [f] y = Conv (t, w3) }""",
        opset=21, ir=10, **ones,
    )  # fmt: skip
    for bits, names in ((8, {"a", "d", "f"}), (4, {"a", "f"})):
        quantized = rough(model, draw(8, 4, 6, 6), activation_bits=bits, pair_limits=False)
        assert set(names_of(measure(model, quantized))) == names


def activation_types(graph):
    """Of what each integer operator with a weight reads, as onnxruntime runs it."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = ("QLinearConv", "QGemm", "QLinearMatMul")
    return [(node.op_type, types[node.input[2]]) for node in graph.node if node.op_type in kinds]


@pytest.mark.parametrize(("form", "activations"), [(QDQ, U8), (QDQ, I8), (QOPERATOR, U8)])
def test_layers_are_measured_in_the_form_that_onnxruntime_runs_them_in(wide, by_tool, measure, form, activations):
    quantized = by_tool(wide, form, activations)
    kinds = ["QLinearConv", "QLinearConv", "QGemm"]
    assert activation_types(optimize(quantized)[1]) == [(kind, TensorProto.UINT8) for kind in kinds]
    found = measure(wide, quantized)
    assert found.kernels == 3 and [layer.bound for layer in found.layers] == [FULL] * 3
    assert [output.name for output in found.outputs] == ["y"] and found.unread == ()


def test_a_matmul_of_signed_integers_is_run_on_unsigned_ones_too(build, by_tool, measure):
    model = build("g (float[N, 4] x) => (float[N, 4] y) { [m] y = MatMul (x, w) }", w=np.ones((4, 4), np.float32))
    quantized = by_tool(model, QDQ, I8)
    assert activation_types(optimize(quantized)[1]) == [("QLinearMatMul", TensorProto.UINT8)]
    assert measure(model, quantized).layers == (BoundRecord("m", FULL),)


def test_layers_that_onnxruntime_runs_in_float_cannot_saturate(fill_up, by_tool, measure):
    """It does not shift signed integers that two layers read, and keeps the layers around them in float."""
    model = fill_up(BODY)
    quantized = by_tool(model, QDQ, I8)
    assert [kind for kind, _ in activation_types(optimize(quantized)[1])] == ["QGemm"]
    found = measure(model, quantized)
    assert (found.kernels, names_of(found)) == (1, ["h"])


def test_operators_on_signed_integers_stay_so_and_are_exact(wide, by_tool, measure):
    """onnxruntime has a fast kernel of x86 for unsigned activations alone, and shifts those of pairs alone."""
    quantized = by_tool(wide, QOPERATOR, I8)
    assert {kind for _, kind in activation_types(optimize(quantized)[1])} == {TensorProto.INT8}
    found = measure(wide, quantized)
    assert (found.kernels, found.layers, found.outputs) == (3, (), ())


@pytest.mark.parametrize("form", [QDQ, QOPERATOR, "dynamic"])
def test_unsigned_weights_cannot_saturate(wide, by_tool, measure, form):
    found = measure(wide, by_tool(wide, form, U8, U8))
    assert (found.kernels, found.layers) == (3, ())


@pytest.mark.parametrize("form", [QDQ, QOPERATOR])
def test_weights_of_a_reduced_range_cannot_saturate(wide, by_tool, measure, form):
    found = measure(wide, by_tool(wide, form, narrow=True))
    assert (found.kernels, found.layers) == (3, ())


def test_a_dynamic_model_is_measured_by_its_matrices(wide, by_tool, measure):
    quantized = by_tool(wide, "dynamic")
    ops = [node.op_type for node in quantized.graph.node if node.op_type.endswith("Integer")]
    assert ops == ["ConvInteger", "ConvInteger", "MatMulInteger"]
    found = measure(wide, quantized)
    assert found.kernels == 3 and [layer.bound for layer in found.layers] == [FULL] and found.outputs


def test_float_models_have_no_integer_kernels(model, measure):
    found = measure(model, model)
    assert (found.kernels, found.layers, found.samples) == (0, (), 0)


ON_GRID = """q = QuantizeLinear (x, one, zero) e = DequantizeLinear (q, one, zero) {}
    [fc] c = MatMul (e, w) p = QuantizeLinear (c, step, zero) r = DequantizeLinear (p, step, zero)"""
PLAIN = ON_GRID.format("w = DequantizeLinear <axis = 1> (v, s, o)")
BOTH = """m = ReduceMax <keepdims = 0> (x) t = Greater (m, one) [choose] y = If (t) <
    then_branch = a () => (float[N, 8] r) {{ {} }}, else_branch = b () => (float[N, 8] u) {{ u = Identity (x) }} >"""
# How a weight of int8 gets to an integer kernel, and whether its saturation can be emulated.
FORMS = {
    "alone": (f"{PLAIN} y = Identity (r)", True),
    "a layer in float reads it too": (f"{PLAIN} l = Sin (x) k = MatMul (l, w) y = Add (r, k)", True),
    "a Gather reads it too": (f"{PLAIN} k = Gather (w, i) y = Add (r, k)", True),
    "transposed": (ON_GRID.format("d = DequantizeLinear (v, one, off) w = Transpose (d)") + " y = Identity (r)", False),
    "quantized in the graph": (
        ON_GRID.format("d = QuantizeLinear (f, one, off) w = DequantizeLinear (d, one, off)") + " y = Identity (r)",
        False,
    ),
    "quantized in the graph by channel": (
        ON_GRID.format("d = QuantizeLinear <axis = 1> (f, s, o) w = DequantizeLinear <axis = 1> (d, s, o)")
        + " y = Identity (r)",
        False,
    ),
    "behind an Identity": (
        ON_GRID.format("d = Identity (v) w = DequantizeLinear <axis = 1> (d, s, o)") + " y = Identity (r)",
        False,
    ),
    "behind a Reshape": (
        ON_GRID.format("d = Reshape (v, shape) w = DequantizeLinear <axis = 1> (d, s, o)") + " y = Identity (r)",
        False,
    ),
    "by integers that nothing quantizes": (
        PLAIN.replace("QuantizeLinear (x, one, zero)", "Cast <to = 2> (x)") + " y = Identity (r)",
        True,
    ),
    "by the integers of an operator on them": (
        PLAIN.replace("(q, one, zero)", "(h, one, zero)").replace(
            "e =", "[first] h = QLinearMatMul (q, one, zero, same, one, off, one, zero) e ="
        )
        + " y = Identity (r)",
        True,
    ),
    "in a body": (BOTH.format(PLAIN), True),
    "in a body, quantized there": (
        BOTH.format(ON_GRID.format("d = QuantizeLinear (f, one, off) w = DequantizeLinear (d, one, off)")),
        False,
    ),
}


@pytest.fixture
def formed(build):
    """A model whose layer has the largest weights there are, and the float model with these."""
    weight = np.full((8, 8), 127, np.int8)
    constants = {
        "one": np.float32(1), "zero": np.uint8(0), "step": np.float32(8 * 127), "s": np.ones(8, np.float32),
        "o": np.zeros(8, np.int8), "off": np.int8(0), "same": np.eye(8, dtype=np.int8), "i": np.array(1),
        "shape": np.int64([8, 8]), "v": weight, "f": weight.astype(np.float32),
    }  # fmt: skip
    original = build("g (float[N, 8] x) => (float[N, 8] y) { [fc] y = MatMul (x, f) }", f=constants["f"])
    return lambda nodes: (original, build(f"g (float[N, 8] x) => (float[N, 8] y) {{ {nodes} }}", **constants))


@pytest.mark.parametrize("form", FORMS)
def test_a_kernel_is_found_however_its_integers_get_there(formed, measure, form):
    nodes, emulated = FORMS[form]
    original, quantized = formed(nodes)
    x = np.full((20, 8), 255, np.float32)
    x[::2, 3] = 7
    found = measure(original, quantized, x)
    assert found.kernels == 1 + ("operator" in form) and found.layers == (BoundRecord("fc", FULL),)
    assert found.unread == (() if emulated else ("fc",)) and bool(found.outputs) == emulated
    (deployed,) = saturate_by(original, quantized, x)
    assert found.exact[0].sqnr_db > 20
    assert not emulated or found.outputs[0].sqnr_db < 20
    if saturates():
        assert deployed.sqnr_db < 10
        assert not emulated or found.outputs[0].sqnr_db == pytest.approx(deployed.sqnr_db, abs=0.01)


def test_a_weight_that_onnxruntime_leaves_in_float_has_no_kernel(formed, measure):
    found = measure(*formed("w = DequantizeLinear <axis = 1> (v, s, o) [fc] y = MatMul (x, w)"), np.ones((4, 8)))
    assert (found.kernels, found.layers) == (0, ())


def test_the_weights_of_a_large_kernel_are_read_from_beside_the_graph(build, measure):
    """onnxruntime writes constants of 1 kB or more into a file of their own, those of bodies too."""
    constants = {"one": np.float32(1), "zero": np.uint8(0), "step": np.float32(64 * 127), "off": np.int8(0)}
    weight = np.full((64, 64), 127, np.int8)
    layer = ON_GRID.format("w = DequantizeLinear (v, one, off)")
    for nodes in (f"{layer} y = Identity (r)", BOTH.format(layer)):
        text = f"g (float[N, 64] x) => (float[N, 64] y) {{ {nodes} }}".replace("[N, 8]", "[N, 64]")
        model = build(text, **constants, v=weight)
        if "If" in nodes:
            branch = next(a.g for a in model.graph.node[2].attribute if a.name == "then_branch")
            branch.initializer.append(model.graph.initializer.pop())
        assert measure(model, model, np.ones((4, 64))).layers == (BoundRecord("fc", FULL),)


def test_nodes_without_names_are_told_apart(formed, measure):
    more = """h = QuantizeLinear (r, one, zero) k = DequantizeLinear (h, one, zero)
        z = DequantizeLinear <axis = 1> (same, s, o) a = MatMul (k, z)
        n = QuantizeLinear (a, step, zero) y = DequantizeLinear (n, step, zero)"""
    original, quantized = formed(f"{PLAIN.replace('[fc]', '')} {more}")
    found = measure(original, quantized, np.full((4, 8), 255, np.float32))
    assert (found.kernels, names_of(found), found.unread, len(found.outputs)) == (2, ["MatMul_c"], (), 1)


# Outputs


def saturate_by(model, quantized, x):
    """What is found of a deployed session's outputs."""
    tally = OutputTally()
    tally.add(*(Session(each, deployed=True).run({"x": x}) for each in (model, quantized)), len(x))
    return tally.records()


@pytest.mark.parametrize("form", [QDQ, QOPERATOR, "dynamic"])
def test_the_outputs_are_those_of_a_processor_that_saturates(build, weigh, by_tool, measure, draw, form):
    shapes = {"w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "w3": (5, 4), "b1": (4,), "b3": (5,)}
    weights = {name: 1 + np.abs(weigh(*shape)) for name, shape in shapes.items()}
    model, x = build(f"g (float[N, 4, 6, 6] x) => (float[N, 5] y) {CHAIN}", **weights), np.abs(draw(16, 4, 6, 6))
    quantized = by_tool(model, form, data=x[:8])
    found = measure(model, quantized, x)
    (record,), (exact,), (deployed,) = found.outputs, found.exact, saturate_by(model, quantized, x)
    assert (found.samples, found.reason, record.name, exact.name) == (16, None, "y", "y")
    assert exact.sqnr_db > record.sqnr_db + 2
    if saturates():
        assert record.sqnr_db == pytest.approx(deployed.sqnr_db, abs=0.2)
    else:
        assert exact == deployed


def test_a_model_of_few_pairs_at_risk_is_run_on_more_samples(build, rough, draw, measure, weigh):
    model = build("g (float[N, 64] x) => (float[N, 4] y) { [m] y = MatMul (x, w) }", w=weigh(64, 4))
    quantized, x = rough(model, draw(8, 64)), draw(2 * MOST_SAMPLES, 64)
    one = change(quantized, "w_quantized", lambda value: np.where(np.arange(64)[:, None] < 2, np.eye(4)[0], 0) * 127)
    one = change(one, "w_quantized", lambda value: value.astype(np.int8))
    assert measure(model, one, x).samples == MOST_SAMPLES
    full = change(quantized, "w_quantized", lambda value: np.full_like(value, 127))
    assert measure(model, full, x).samples == LEAST_SAMPLES
    assert measure(model, full, x[:5]).samples == 5


def test_a_fixed_batch_is_kept_to(build, rough, draw, measure, weigh):
    model = build("g (float[12, 16] x) => (float[12, 4] y) { [m] y = MatMul (x, w) }", w=weigh(16, 4))
    quantized = change(rough(model, draw(12, 16)), "w_quantized", lambda value: np.full_like(value, 127))
    assert measure(model, quantized, draw(60, 16)).samples == 24


def test_batches_are_smaller_where_products_take_memory(build, rough, draw, measure, weigh, monkeypatch):
    sizes = []

    class Spy(Session):
        def run(self, feeds, outputs=None):
            sizes.append(len(feeds["x"]))
            return super().run(feeds, outputs)

    model = build("g (float[N, 16] x) => (float[N, 4] y) { [m] y = MatMul (x, w) }", w=weigh(16, 4))
    quantized = change(rough(model, draw(12, 16)), "w_quantized", lambda value: np.full_like(value, 127))
    monkeypatch.setattr(module, "Session", Spy)
    size = module.batch_size
    monkeypatch.setattr(module, "batch_size", lambda *given: size(*given[:2], limit=3 * 4 * (4 * 8 + 4)))
    assert measure(model, quantized, draw(60, 16)).samples == 18
    assert sizes == [1, *[3, 3, 3] * 6]


def test_operators_that_cannot_be_rewritten_are_named(build, draw, measure):
    constants = {
        "w": np.full((4, 12), 127, np.int8), "b": np.zeros(12, np.float32), "s": np.float32(0.01), "z": np.uint8(9),
        "o": np.int8(0), "v": np.full((4, 4), 127, np.int8),
    }  # fmt: skip
    text = """g (float[1, 3, 4] x) => (float[1, 3, 4] y) {{ q = QuantizeLinear (x, s, z)
        [attend] a = com.microsoft.QAttention <num_heads = 2> (q, w, b, s, s, , z, o) {} }}"""
    rest = "p = QuantizeLinear (a, s, z) [fc] r = QLinearMatMul (p, s, z, v, s, o, s, z) y = DequantizeLinear (r, s, z)"
    alone, beside = (build(text.format(nodes), **constants) for nodes in ("y = Relu (a)", rest))
    for model in (alone, beside):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    found = measure(alone, alone, draw(4, 3, 4))
    assert (found.kernels, names_of(found), found.unread) == (1, ["attend"], ("attend",))
    assert (found.samples, found.outputs, found.reason) == (4, (), None) and len(found.exact) == 1
    found = measure(beside, beside, draw(4, 3, 4))
    assert (found.kernels, found.unread, len(found.outputs)) == (2, ("attend",), 1)


def test_a_model_that_cannot_be_run_so_says_why(build, rough, draw, measure, weigh, monkeypatch):
    model = build("g (float[N, 16] x) => (float[N, 4] y) { [m] y = MatMul (x, w) }", w=weigh(16, 4))
    quantized = change(rough(model, draw(12, 16)), "w_quantized", lambda value: np.full_like(value, 127))
    real = module.saturate

    def spoil(*given):
        found = real(*given)
        found.model.graph.node[-1].op_type = "Unknown"
        return found

    monkeypatch.setattr(module, "saturate", spoil)
    found = measure(model, quantized)
    assert names_of(found) == ["m"] and (found.samples, found.outputs) == (0, ())
    assert found.reason.startswith("onnxruntime cannot load the model with saturating sums: ")


def test_the_models_stay_as_they_are(wide, by_tool, measure):
    models = wide, by_tool(wide, QDQ)
    before = [model.SerializeToString() for model in models]
    measure(*models)
    assert [model.SerializeToString() for model in models] == before


# Advice


SAMPLES = np.ones((2, 4, 6, 6), np.float32)


def test_what_is_advised_helps_with_a_file_of_another_tool(wide, by_tool, measure):
    quantized = by_tool(wide, QDQ)
    (text,) = advise(measure(wide, quantized), quantized, open_calibration(SAMPLES, inputs_of(wide)))
    assert text == (
        f"3 of 3 integer kernels can saturate on x86 without VNNI (in a sums of two products reach {FULL:,}, int16 ends"
        " at 32,767); quantize again by onnxcalib, or with weights of 7 bits (reduce_range) or fewer, or set"
        " onnxruntime's session.x64quantprecision to 1 there"
    )


def test_an_option_that_does_not_take_the_file_is_not_advised(wide, by_tool, measure):
    quantized = by_tool(wide, QDQ)
    first, *_ = zeros = [t.name for t in quantized.graph.initializer if re.fullmatch(r"w\d_zero_point", t.name)]
    for node in quantized.graph.node:
        node.input[:] = [first if name in zeros else name for name in node.input]
    (text,) = advise(measure(wide, quantized), quantized, open_calibration(SAMPLES, inputs_of(wide)))
    assert text.endswith(
        "with weights of 7 bits (reduce_range) or fewer (onnxruntime's session.x64quantprecision = 1 cannot run this"
        " file)"
    )


def test_files_of_onnxcalib_have_a_setting_that_helps(wide, by_tool, measure):
    quantized = by_tool(wide, QDQ)
    quantized.metadata_props.add(key="onnxcalib.version", value="1")
    (text,) = advise(measure(wide, quantized), quantized, open_calibration(SAMPLES, inputs_of(wide)))
    assert "; quantize again with --weight-range bounded, or set onnxruntime's" in text


def test_nothing_is_advised_where_nothing_can_saturate(wide, by_tool, measure):
    quantized = by_tool(wide, QDQ, narrow=True)
    assert advise(measure(wide, quantized), quantized, open_calibration(SAMPLES, inputs_of(wide))) == []
