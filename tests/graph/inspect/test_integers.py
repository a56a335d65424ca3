"""Where a graph has integers, the graph opened at them, and grids that do not fit each other."""

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from onnxcalib.graph.inspect.integers import GIVEN, Integers, find_integers, find_mismatches, give_integers, open_at

U8, I8, U4, I4 = TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT4, TensorProto.INT4
U16, I16 = TensorProto.UINT16, TensorProto.INT16
RESIDUAL = """g (float[N, 3, 8, 8] image) => (float[N, 5] scores) {
    [stem] c1 = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)  [relu1] r1 = Relu (c1)
    [inner] c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)  [relu2] r2 = Relu (c2)
    [deep] c3 = Conv <pads = [1, 1, 1, 1]> (r2, w3)  [add] s = Add (c3, r1)
    [pool] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (s)  [tail] c4 = Conv (p, w4)
    [mean] m = GlobalAveragePool (c4)  [flat] f = Flatten (m)  [head] scores = Gemm <transB = 1> (f, w5, b5)
}"""
SHAPES = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "w4": (6, 8, 1, 1), "w5": (5, 6)}
EIGHT, RUNTIME, STANDARD = (
    {},
    {"weight_bits": 4, "activation_bits": 4},
    {"weight_bits": 4, "activation_bits": 4, "encoding": "standard"},
)


@pytest.fixture
def residual(build, weigh):
    weights = {name: weigh(*shape) for name, shape in SHAPES.items()}
    return build(RESIDUAL, opset=21, ir=10, b1=weigh(8), b2=weigh(8), b5=weigh(5), **weights)


@pytest.fixture
def execute(tmp_path):
    """Outputs by name, and how many of each operator onnxruntime ran."""

    def run(model, feeds, *, optimize=True):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_outputs()]
        outputs = session.run(None, {each.name: feeds[each.name] for each in session.get_inputs()})
        graph = onnx.load(tmp_path / "optimized.onnx").graph
        return dict(zip(names, outputs, strict=True)), Counter(node.op_type for node in graph.node)

    return run


def give(integers, outputs):
    """What the opened model reads, from the outputs of the model that gives."""
    return {f"{GIVEN}{each.tensor}": value for each, value in zip(integers, outputs.values(), strict=True)}


def types_of(model):
    return {each.tensor: each.type for each in find_integers(model)}


@pytest.mark.parametrize(("settings", "inner_type"), [(EIGHT, None), (RUNTIME, U8), (STANDARD, U4)])
def test_every_quantized_tensor_is_found_with_its_type_and_its_operator(residual, rough, draw, settings, inner_type):
    model = rough(residual, draw(4, 3, 8, 8), **settings)
    found = find_integers(model)
    inner = {"r1_requantized_quantized", "r2_quantized", "s_quantized", "p_quantized"} if inner_type else set()
    assert {each.tensor for each in found if each.type != U8} == (inner if inner_type == U4 else set())
    assert inner <= {each.tensor for each in found}
    ops = {each.tensor: each.op for each in found if "requantized" not in each.tensor}
    assert ops == {
        "image_quantized": "input", "r1_quantized": "Relu", "r2_quantized": "Relu", "c3_quantized": "Conv",
        "s_quantized": "Add", "p_quantized": "MaxPool", "c4_quantized": "Conv", "m_quantized": "GlobalAveragePool",
        "f_quantized": "Flatten",
    }  # fmt: skip
    assert list(ops)[:2] == ["image_quantized", "r1_quantized"]


@pytest.mark.parametrize("settings", [EIGHT, RUNTIME, STANDARD])
def test_the_opened_graph_gives_the_integers_of_the_whole_one(residual, rough, draw, execute, settings):
    x = draw(4, 3, 8, 8)
    model = rough(residual, x, **settings)
    integers = find_integers(model)
    wanted, _ = execute(give_integers(model, integers), {"image": x}, optimize=False)
    assert len(wanted) == len(integers) and all(value.dtype == np.uint8 for value in wanted.values())
    assert all(len(np.unique(value)) > 4 for value in wanted.values())
    opened = open_at(model, integers)
    for optimize in (False, True):
        given, _ = execute(opened, {"image": x} | give(integers, wanted), optimize=optimize)
        assert list(given) == list(wanted)
        for name, value in wanted.items():
            difference = np.abs(value.astype(int) - given[name])
            assert difference.max() <= (1 if optimize else 0) and np.mean(difference > 0) < 0.01, name


@pytest.mark.parametrize("settings", [EIGHT, RUNTIME, STANDARD])
def test_every_tensor_depends_on_the_integers_right_before_it_alone(residual, rough, draw, execute, settings):
    x = draw(2, 3, 8, 8)
    model = rough(residual, x, **settings)
    integers = find_integers(model)
    wanted, _ = execute(give_integers(model, integers), {"image": x}, optimize=False)
    names = dict(zip([each.tensor for each in integers], wanted, strict=True))
    fed = {"image": x} | give(integers, wanted)
    changed = "r2_quantized"
    top = 15 if settings else 255
    given, _ = execute(open_at(model, integers), fed | {f"{GIVEN}{changed}": top - wanted[names[changed]]})
    different = {name for name, value in wanted.items() if np.abs(value.astype(int) - given[name]).max() > 1}
    assert different == {names["c3_quantized"]}


@pytest.mark.parametrize(("settings", "tables"), [(EIGHT, 0), (RUNTIME, 1)])
def test_the_opened_graph_runs_on_the_kernels_of_the_whole_one(residual, rough, draw, execute, settings, tables):
    x = draw(4, 3, 8, 8)
    model = rough(residual, x, **settings)
    _, whole = execute(model, {"image": x})
    integers = find_integers(model)
    wanted, _ = execute(give_integers(model, integers), {"image": x})
    _, opened = execute(open_at(model, integers), {"image": x} | give(integers, wanted))
    kernels = {"QLinearConv": 4, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QLinearLeakyRelu": tables}
    for name, count in kernels.items():
        assert (whole[name], opened[name]) == (count, count), name
    assert not {"Conv", "FusedConv", "Add", "DequantizeLinear"} & opened.keys() and opened["QuantizeLinear"] == 1


@pytest.mark.parametrize("settings", [EIGHT, STANDARD])
def test_the_opened_graph_is_in_order(residual, rough, draw, settings):
    model = rough(residual, draw(2, 3, 8, 8), **settings)
    graph = open_at(model, find_integers(model)).graph
    known = {"", *(value.name for value in (*graph.input, *graph.initializer))}
    for node in graph.node:
        assert known >= set(node.input), node.name
        known.update(node.output)


@pytest.mark.parametrize("settings", [EIGHT, RUNTIME, STANDARD])
def test_the_model_is_left_as_it_was(residual, rough, draw, settings):
    model = rough(residual, draw(2, 3, 8, 8), **settings)
    before = model.SerializeToString()
    open_at(model, find_integers(model))
    assert model.SerializeToString() == before


@pytest.mark.parametrize("settings", [EIGHT, STANDARD])
def test_nodes_need_no_names(residual, rough, draw, execute, settings):
    x = draw(2, 3, 8, 8)
    model = rough(residual, x, **settings)
    for node in model.graph.node:
        node.ClearField("name")
    integers = find_integers(model)
    wanted, _ = execute(give_integers(model, integers), {"image": x}, optimize=False)
    zeros = {name: np.zeros_like(value) for name, value in give(integers, wanted).items()}
    given, _ = execute(open_at(model, integers), {"image": x} | zeros, optimize=False)
    np.testing.assert_array_equal(next(iter(given.values())), next(iter(wanted.values())))
    assert not any(np.array_equal(given[name], wanted[name]) for name in list(wanted)[1:])


def test_only_the_tensors_asked_for_are_cut(residual, rough, draw, execute):
    x = draw(2, 3, 8, 8)
    model = rough(residual, x)
    integers = [each for each in find_integers(model) if each.tensor in ("r1_quantized", "s_quantized")]
    opened = open_at(model, integers)
    assert [value.name for value in opened.graph.input] == ["image", "given:r1_quantized", "given:s_quantized"]
    assert [value.name for value in opened.graph.output] == ["r1_quantized", "s_quantized"]
    wanted, _ = execute(give_integers(model, integers), {"image": x}, optimize=False)
    given, _ = execute(opened, {"image": x} | give(integers, wanted), optimize=False)
    np.testing.assert_array_equal(given["s_quantized"], wanted["s_quantized"])


def quantize_by_hand(build, nodes, outputs="float[N, 4] y", opset=21, **constants):
    text = f"g (float[N, 4] x) => ({outputs}) {{ {nodes} }}"
    return build(text, opset=opset, ir=10, s=np.float32(0.1), t=np.float32(0.2), **constants)


def test_a_quantize_linear_without_a_zero_point_makes_uint8(build, draw, execute):
    model = quantize_by_hand(build, "q = QuantizeLinear (x, s) y = DequantizeLinear (q, s)")
    assert find_integers(model) == (Integers("q", U8, "input"),)
    x = draw(2, 4)
    wanted, _ = execute(give_integers(model, find_integers(model)), {"x": x})
    np.testing.assert_array_equal(wanted["q"], np.clip(np.rint(x / np.float32(0.1)), 0, 255))


@pytest.mark.parametrize("kind", [U8, I8, U4, I4])
def test_the_type_may_stand_in_an_attribute(build, draw, execute, kind):
    nodes = f"q = QuantizeLinear <output_dtype = {kind}> (x, s) y = DequantizeLinear (q, s)"
    model = quantize_by_hand(build, nodes)
    assert types_of(model) == {"q": kind}
    integers, x = find_integers(model), draw(2, 4)
    wanted, _ = execute(give_integers(model, integers), {"x": x}, optimize=False)
    low, high = {U8: (0, 255), I8: (-128, 127), U4: (0, 15), I4: (-8, 7)}[kind]
    np.testing.assert_array_equal(next(iter(wanted.values())), np.clip(np.rint(x / np.float32(0.1)), low, high))
    opened, _ = execute(open_at(model, integers), {"x": x} | give(integers, wanted), optimize=False)
    np.testing.assert_array_equal(next(iter(opened.values())), next(iter(wanted.values())))


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.int4])
def test_the_zero_point_may_come_from_a_node(build, draw, execute, dtype):
    model = quantize_by_hand(build, "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)")
    zero_point = numpy_helper.from_array(np.array(3).astype(dtype), "z")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["z"], value=zero_point))
    integers, x = find_integers(model), draw(2, 4)
    assert types_of(model) == {"q": I8 if dtype == np.int8 else I4}
    wanted, _ = execute(give_integers(model, integers), {"x": x}, optimize=False)
    assert next(iter(wanted.values())).min() < 0


@pytest.mark.parametrize("constant", ["initializer", "node"])
def test_weights_that_are_quantized_in_the_graph_are_no_integers_of_it(build, draw, execute, constant):
    nodes = """v = QuantizeLinear (w, s) d = DequantizeLinear (v, s)
               q = QuantizeLinear (x, s) e = DequantizeLinear (q, s) y = MatMul (e, d)"""
    weight = numpy_helper.from_array(draw(4, 4), "w")
    model = quantize_by_hand(build, nodes)
    if constant == "node":
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    else:
        model.graph.initializer.append(weight)
    assert list(types_of(model)) == ["q"]


def test_integers_of_other_operators_are_not_found(build):
    nodes = "c, d, e = DynamicQuantizeLinear (x) y = DequantizeLinear (c, d, e)"
    assert find_integers(quantize_by_hand(build, nodes)) == ()


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
@pytest.mark.parametrize(("dtype", "kind"), [(np.uint16, U16), (np.int16, I16), (np.uint8, U8)])
def test_both_domains_have_integers_of_8_and_16_bits(build, draw, execute, domain, dtype, kind):
    nodes = f"""q = {domain}QuantizeLinear (x, s, z) d = {domain}DequantizeLinear (q, s, z) n = Neg (d)
                r = {domain}QuantizeLinear (n, t, z) y = {domain}DequantizeLinear (r, t, z)"""
    model, x = quantize_by_hand(build, nodes, z=np.array(60, dtype)), draw(2, 4)
    integers = find_integers(model)
    assert integers == (Integers("q", kind, "input"), Integers("r", kind, "Neg"))
    wanted, _ = execute(give_integers(model, integers), {"x": x}, optimize=False)
    given, _ = execute(open_at(model, integers), {"x": 0 * x} | give(integers, wanted), optimize=False)
    assert {value.dtype for value in wanted.values()} == {np.dtype(dtype)}
    np.testing.assert_array_equal(given["r"], wanted["r"])
    np.testing.assert_array_equal(given["q"], np.full((2, 4), 60))


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
def test_grids_that_do_not_fit_are_found_in_both_domains(build, domain):
    nodes = f"q = {domain}QuantizeLinear (x, s, z) y = {domain}DequantizeLinear (q, s, o)"
    assert find_mismatches(quantize_by_hand(build, nodes, z=np.uint16(7), o=np.uint16(7))) == ()
    assert find_mismatches(quantize_by_hand(build, nodes, z=np.uint16(7), o=np.uint16(8))) == ("x",)


def test_signed_activations_are_opened_as_they_are(build, draw, execute):
    nodes = """[a] q = QuantizeLinear (x, s, z) [b] e = DequantizeLinear (q, s, z) [m] p = MatMul (e, w)
               [c] r = QuantizeLinear (p, t, z) [d] y = DequantizeLinear (r, t, z)"""
    model, x = quantize_by_hand(build, nodes, z=np.int8(-3), w=draw(4, 4)), draw(2, 4)
    integers = find_integers(model)
    assert integers == (Integers("q", I8, "input"), Integers("r", I8, "MatMul"))
    wanted, _ = execute(give_integers(model, integers), {"x": x}, optimize=False)
    given, _ = execute(open_at(model, integers), {"x": 0 * x} | give(integers, wanted), optimize=False)
    assert wanted["q"].dtype == np.int8 and wanted["q"].min() < -3
    np.testing.assert_array_equal(given["r"], wanted["r"])
    np.testing.assert_array_equal(given["q"], np.full((2, 4), -3))


def test_an_integer_tensor_that_is_an_output_too_is_given_once(build, draw, execute):
    nodes = "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)"
    outputs = "uint8[N, 4] q, float[N, 4] y"
    model, x = quantize_by_hand(build, nodes, outputs, z=np.uint8(9)), draw(2, 4)
    integers = find_integers(model)
    wanted, _ = execute(model, {"x": x})
    opened = open_at(model, integers)
    given, _ = execute(opened, {"x": x, "given:q": np.zeros((2, 4), np.uint8)})
    assert list(given) == ["q"]
    np.testing.assert_array_equal(given["q"], wanted["q"])


def test_a_tensor_that_nothing_reads_is_given_and_asks_for_no_input(build, draw, execute):
    nodes = "[a] q = QuantizeLinear (x, s, z)  [b] y = Relu (x)"
    model, x = quantize_by_hand(build, nodes, "float[N, 4] y, uint8[N, 4] q", z=np.uint8(9)), draw(2, 4)
    opened = open_at(model, find_integers(model))
    assert [value.name for value in opened.graph.input] == ["x"]
    given, _ = execute(opened, {"x": x})
    assert list(given) == ["q"]


@pytest.mark.parametrize("dtype", [np.uint8, ml_dtypes.uint4])
def test_bodies_read_what_is_given_too(build, draw, execute, dtype):
    nodes = """[a] q = QuantizeLinear (x, s, z)
        [if] e = If (flag) <then_branch = one () => (float[N, 4] u) { [d] u = DequantizeLinear (q, s, z) },
                            else_branch = two () => (float[N, 4] v) { [f] v = DequantizeLinear (q, t, z) }>
        [c] r = QuantizeLinear (e, t, z) [g] y = DequantizeLinear (r, t, z)"""
    model = quantize_by_hand(build, nodes, z=np.array(7).astype(dtype), flag=np.array(False))
    x, integers = draw(2, 4), find_integers(model)
    wanted, _ = execute(give_integers(model, integers), {"x": x}, optimize=False)
    given, _ = execute(open_at(model, integers), {"x": 0 * x} | give(integers, wanted), optimize=False)
    first, last = wanted
    assert not np.array_equal(given[first], wanted[first])
    np.testing.assert_array_equal(given[last], wanted[last])


class Samples(CalibrationDataReader):
    def __init__(self, *samples):
        self.samples = iter(samples)

    def get_next(self):
        return next(self.samples, None)


@pytest.fixture
def by_operators(residual, draw, tmp_path):
    """The model in the QOperator format of onnxruntime's own tool, by the type of its activations."""

    def make(activations):
        onnx.save(residual, tmp_path / "float.onnx")
        types = {"activation_type": activations, "weight_type": QuantType.QInt8}
        samples = Samples({"image": draw(4, 3, 8, 8)})
        quantize_static(
            tmp_path / "float.onnx", tmp_path / "q.onnx", samples, quant_format=QuantFormat.QOperator, **types
        )
        return onnx.load(tmp_path / "q.onnx")

    return make


@pytest.mark.parametrize("activations", [QuantType.QUInt8, QuantType.QInt8])
def test_models_of_integer_operators_are_opened_at_each_of_them(by_operators, draw, execute, activations):
    model, x = by_operators(activations), draw(4, 3, 8, 8)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["QLinearConv"] == 4 and operators["QGemm"] == 1
    integers = find_integers(model)
    made = Counter(each.op for each in integers)
    assert made.pop("input") == 1
    assert made == {name: n for name, n in operators.items() if name.startswith("QLinear") or name == "QGemm"}
    assert {each.type for each in integers} == {U8 if activations == QuantType.QUInt8 else I8}
    wanted, _ = execute(give_integers(model, integers), {"image": x}, optimize=False)
    given, ran = execute(open_at(model, integers), {"image": x} | give(integers, wanted))
    for name, value in wanted.items():
        assert np.abs(value.astype(int) - given[name]).max() <= 1
    assert ran["QLinearConv"] == 4


def test_a_dense_operator_that_gives_floats_makes_no_integers(build):
    model = quantize_by_hand(build, "q = QuantizeLinear (x, s, z) y = com.microsoft.QGemm (q, s, z, v, s, z, b)",
                             z=np.uint8(3), v=np.ones((4, 4), np.uint8), b=np.zeros(4, np.int32))  # fmt: skip
    assert list(types_of(model)) == ["q"]
    model.graph.node[-1].input.extend(["", ""])
    assert list(types_of(model)) == ["q"]


MOVED = {
    "nothing": "m = Identity (q)",
    "Clip": "m = Clip (q, low, high)",
    "MaxPool": "m = MaxPool <kernel_shape = [1], strides = [1]> (q)",
    "Reshape": "m = Reshape (q, shape)",
    "two": "n = Reshape (q, shape) m = Clip (n, low, high)",
}


def pair(build, own, other, between="nothing", **more):
    """x on a grid, read on another behind what only moves values: scale and zero point of both."""
    nodes = f"q = QuantizeLinear (x, s1, z1) {MOVED[between]} e = DequantizeLinear (m, s2, z2) y = Relu (e)"
    values = {"s1": own[0], "z1": own[1], "s2": other[0], "z2": other[1]}
    constants = {"low": np.uint8(0), "high": np.uint8(15), "shape": np.int64([1, -1, 4])}
    used = {name: value for name, value in constants.items() if f"{name}" in MOVED[between]}
    return quantize_by_hand(build, nodes, **values, **used, **more)


GRID = (np.float32(0.1), np.uint8(7))


@pytest.mark.parametrize("between", MOVED)
@pytest.mark.parametrize(
    ("other", "found"),
    [
        (GRID, ()),
        ((np.float32([0.1]), np.uint8([7])), ()),
        ((np.nextafter(np.float32(0.1), np.float32(1)), np.uint8(7)), ("x",)),
        ((np.float32(0.1), np.uint8(8)), ("x",)),
        ((np.float32([0.1] * 4), np.uint8([7] * 4)), ("x",)),
    ],
)
def test_another_grid_is_found_through_what_moves_values(build, between, other, found):
    assert find_mismatches(pair(build, GRID, other, between)) == found


def test_channels_are_compared_one_by_one(build):
    scales, zeros = np.float32([0.1, 0.2, 0.3, 0.4]), np.uint8([1, 2, 3, 4])
    assert find_mismatches(pair(build, (scales, zeros), (scales, zeros))) == ()
    assert find_mismatches(pair(build, (scales, zeros), (scales[[0, 1, 3, 2]], zeros))) == ("x",)


@pytest.mark.parametrize(("zero", "found"), [(0, ()), (3, ("x",))])
def test_a_zero_point_that_is_left_out_is_zero(build, zero, found):
    ends = [("(x, s, z)", "(q, s)"), ("(x, s)", "(q, s, z)")]
    for one, other in ends:
        model = quantize_by_hand(build, f"q = QuantizeLinear {one} y = DequantizeLinear {other}", z=np.uint8(zero))
        assert find_mismatches(model) == found


def test_a_tensor_with_many_readers_is_named_once(build):
    nodes = """q = QuantizeLinear (x, s) a = DequantizeLinear (q, t) b = DequantizeLinear (q, s)
               c = DequantizeLinear (q, t) d = Add (a, b) y = Add (c, d)"""
    assert find_mismatches(quantize_by_hand(build, nodes)) == ("x",)
    twice = """q = QuantizeLinear (x, s) a = DequantizeLinear (q, t)
               r = QuantizeLinear (x, s) b = DequantizeLinear (r, t) y = Add (a, b)"""
    assert find_mismatches(quantize_by_hand(build, twice)) == ("x",)


@pytest.mark.parametrize(
    ("zero", "reader", "found"),
    [
        ("z", "Add (b, k)", ()),
        ("o", "Add (b, k)", ("x",)),
        ("z", "Mul (b, k)", ("x",)),
        ("z", "Add (b, x)", ("x",)),
    ],
)
def test_a_tensor_may_be_read_on_a_multiple_of_its_grid_for_a_constant_to_be_added(build, zero, reader, found):
    nodes = f"""q = QuantizeLinear (x, s, z) a = DequantizeLinear (q, s, z) b = DequantizeLinear (q, t, {zero})
                k = DequantizeLinear (i, s) c = {reader} y = Mul (a, c)"""
    constants = {"z": np.uint8(7), "o": np.uint8(8), "i": np.uint8(255)}
    assert find_mismatches(quantize_by_hand(build, nodes, **constants)) == found
    alone = nodes.replace("a = DequantizeLinear (q, s, z)", "a = Abs (x)")
    assert find_mismatches(quantize_by_hand(build, alone, **constants)) == ("x",)


@pytest.mark.parametrize(
    ("times", "zero", "reader", "found"),
    [
        (8.0, "z", "Concat <axis = 0> (b, x)", ()),
        (3.0, "z", "Concat <axis = 0> (b, x)", ("x",)),
        (8.0, "o", "Concat <axis = 0> (b, x)", ("x",)),
        (8.0, "z", "Neg (b)", ("x",)),
    ],
)
def test_what_is_joined_may_be_read_on_a_power_of_two_times_its_scale(build, times, zero, reader, found):
    nodes = f"q = QuantizeLinear (x, s, z) b = DequantizeLinear (q, u, {zero}) y = {reader}"
    constants = {"z": np.uint8(7), "o": np.uint8(8), "u": np.float32(0.1) * np.float32(times)}
    assert find_mismatches(quantize_by_hand(build, nodes, **constants)) == found


def test_a_scale_that_is_computed_says_nothing(build):
    nodes = """k = Abs (s) q = QuantizeLinear (x, s) a = DequantizeLinear (q, k)
               r = QuantizeLinear (a, k) y = DequantizeLinear (r, t)"""
    assert find_mismatches(quantize_by_hand(build, nodes)) == ()


def test_what_another_operator_makes_has_a_grid_of_its_own(build):
    nodes = "q = QuantizeLinear (x, s, z) n = Not (b) m = Where (n, q, z) y = DequantizeLinear (m, t, z)"
    assert find_mismatches(quantize_by_hand(build, nodes, z=np.uint8(7), b=np.array(True))) == ()


@pytest.mark.parametrize("settings", [EIGHT, RUNTIME, STANDARD])
def test_what_is_written_here_has_no_mismatch(residual, rough, draw, settings):
    model = rough(residual, draw(2, 3, 8, 8), **settings)
    assert find_mismatches(model) == ()
    scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for name in sorted(scales):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        node = next(n for n in copy.graph.node if n.op_type == "QuantizeLinear" and n.input[1] == name)
        node.input[1] = f"{name}_other"
        copy.graph.initializer.append(numpy_helper.from_array(np.float32(0.7), f"{name}_other"))
        assert find_mismatches(copy) == (node.input[0],)


def test_four_bit_zero_points_are_compared_as_numbers(build):
    nodes = "q = QuantizeLinear (x, s, z4) w = Cast <to = 2> (q) y = DequantizeLinear (w, s, z8)"
    for eight, found in ((5, ()), (6, ("x",))):
        model = quantize_by_hand(build, nodes, z4=np.array(5).astype(ml_dtypes.uint4), z8=np.uint8(eight))
        assert find_mismatches(model) == found


def test_a_pair_in_a_body_is_compared_too(build):
    nodes = """y = If (flag) <then_branch = one () => (float[N, 4] u) { q = QuantizeLinear (x, s, z)
        u = DequantizeLinear (q, {}, z) }, else_branch = two () => (float[N, 4] v) { v = Neg (x) }>"""
    for scale, found in (("s", ()), ("t", ("x",))):
        model = quantize_by_hand(build, nodes.replace("{}", scale), z=np.uint8(7), flag=np.array(False))
        assert find_mismatches(model) == found
