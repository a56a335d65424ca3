"""Which float tensor and name a quantized layer stands for, and why other nodes with a weight have none."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import load, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from onnxcalib import QuantizeConfig
from onnxcalib.graph.index import Index
from onnxcalib.graph.passes.normalise import tidy
from onnxcalib.quantization.rewrite import rewrite
from onnxcalib.validation.pair import MOST_LINES, list_unread, name_float_nodes, pair_layers

IO = "g (float[N, 6] x) => (float[N, 6] y)"


def pair(original, quantized):
    original, names = name_float_nodes(original)
    return pair_layers(original, tidy(quantized), names)


def unread(model):
    return list_unread(tidy(model), set())


# Names


def test_nodes_have_the_names_that_quantize_gives_them(build, draw):
    """Unnamed nodes, twins, an Identity that a graph output's name passes over, a MatMul and Add that become a Gemm."""
    text = f"""{IO} {{ a = MatMul (x, w1)  b = Add (a, b1)  [twin] c = Relu (b)  i = Identity (c)  [twin] d = Relu (i)
        e = MatMul (d, w2)  n = BatchNormalization (e, b2, b1, b1, b2)  f = Dropout (n)  k = MatMul (f, w1)
        y = Identity (k) }}"""
    model = build(text, w1=draw(6, 6), w2=draw(6, 6), b1=draw(6), b2=np.abs(draw(6)) + 1)
    before = model.SerializeToString()
    tidied, names = name_float_nodes(model)
    assert model.SerializeToString() == before
    prepared = Index(rewrite(model, QuantizeConfig()).model.graph).position
    layers = [node for node in tidied.graph.node if node.op_type == "MatMul"]
    assert [names[node.name] for node in layers] == ["MatMul_a", "MatMul_e", "MatMul_y"]
    assert {names[node.name] for node in layers} <= set(prepared)
    assert {names[node.name] for node in tidied.graph.node if node.op_type == "Relu"} == {"twin", "twin_1"}
    assert not {node.name for node in tidied.graph.node if node.op_type in ("Identity", "Dropout")} & set(names)


@pytest.mark.parametrize(
    ("behind", "path"),
    [
        ("y = Relu (c)", 2),
        ("n = BatchNormalization (c, b2, b1, b1, b2)  y = Relu (n)", 2),
        ("k = Relu (c)  y = Identity (k)", 2),
        ("z = Sub (b1, b1)  y = Max (c, z)", 2),
        ("y = BatchNormalization (c, b2, b1, b1, b2)", 0),
        ("z = Unsqueeze (b1, zero)  y = Add (c, z)", 0),
        ("y = LeakyRelu (c)", 0),
    ],
)
@pytest.mark.parametrize("name", ["y_QuantizeLinear_Input", "y"])
def test_a_layer_is_judged_behind_its_grid_where_the_float_model_clips(build, draw, behind, path, name):
    constants = {"b1": draw(6), "b2": np.abs(draw(6)) + 1, "zero": np.array([0], np.int64)}
    float_net = build(f"{IO} {{ [layer] c = MatMul (x, w) {behind} }}", w=draw(6, 6), **constants)
    end, io = ("y", IO) if name != "y" else ("end", IO.replace("y)", "end)"))
    quantized = build(
        f"""{io} {{ v = DequantizeLinear (w, s, z)  [other] {name} = MatMul (x, v)
            q = QuantizeLinear ({name}, s, z)  {end} = DequantizeLinear (q, s, z) }}""",
        w=np.ones((6, 6), np.int8), s=np.float32(0.1), z=np.int8(0),
    )  # fmt: skip
    (found,), unmatched = pair(float_net, quantized)
    assert (found.name, found.output, len(found.path), unmatched) == ("layer", "y", path, ())
    assert [node.op_type for node in found.path] == ["QuantizeLinear", "DequantizeLinear"][:path]


GRID = {"w": np.ones((6, 6), np.int8), "s": np.float32(0.1), "z": np.int8(0)}


@pytest.mark.parametrize(
    "behind",
    [
        "y = Sigmoid (r)",
        "q = QuantizeLinear (r, s, z)  d = DequantizeLinear (q, s, z)  y = Add (d, r)",
        "q = QuantizeLinear (r, s, z)  y = Cast <to = 1> (q)",
    ],
)
def test_a_layer_that_something_reads_as_it_is_is_judged_as_it_is(build, draw, behind):
    float_net = build(f"{IO} {{ [layer] c = MatMul (x, w)  r = Relu (c)  y = Sigmoid (r) }}", w=draw(6, 6))
    quantized = build(f"{IO} {{ v = DequantizeLinear (w, s, z)  r = MatMul (x, v)  {behind} }}", **GRID)
    (found,), _ = pair(float_net, quantized)
    assert (found.output, found.path) == ("r", ())


def test_a_layer_that_is_a_graph_output_is_judged_as_it_is(build, draw):
    float_net = build(f"{IO} {{ [layer] c = MatMul (x, w)  y = Relu (c) }}", w=draw(6, 6))
    quantized = build(
        f"{IO[:-1]}, float[N, 6] e) {{ v = DequantizeLinear (w, s, z)  y = MatMul (x, v)"
        "  q = QuantizeLinear (y, s, z)  e = DequantizeLinear (q, s, z) }",
        **GRID,
    )
    (found,), _ = pair(float_net, quantized)
    assert found.path == ()


def test_a_clip_that_is_left_is_part_of_what_is_judged(build, draw):
    text = "{} {{ [layer] {} = MatMul (x, {})  r = Clip ({}, low, high)  y = Sigmoid (r) {}}}"
    ends = {"low": np.float32(0), "high": np.float32(6)}
    float_net = build(text.format(IO, "c", "w", "c", ""), w=draw(6, 6), **ends)
    quantized = build(text.format(IO, "t", "v", "t", "v = DequantizeLinear (w, s, z)"), **GRID, **ends)
    (found,), _ = pair(float_net, quantized)
    assert found.output == "r" and [node.op_type for node in found.path] == ["Clip"]


# Nodes with a weight that no layer is read from


class Batches(CalibrationDataReader):
    def __init__(self, data):
        self.batches = iter([{"x": data}])

    def get_next(self):
        return next(self.batches, None)


@pytest.fixture
def net(build, draw):
    return build(
        """g (float[N, 4, 8, 8] x) => (float[N, 6] y) { [conv] a = Conv (x, w1)  b = Relu (a)  [mul] c = MatMul (b, w2)
            d = GlobalAveragePool (c)  e = Flatten (d)  [gemm] y = Gemm (e, w3, b3) }""",
        w1=draw(4, 4, 3, 3), w2=draw(6, 6), w3=draw(4, 6), b3=draw(6),
    )  # fmt: skip


def test_operators_on_integers_are_listed(net, draw, tmp_path):
    path = tmp_path / "quantized.onnx"
    quantize_static(net, path, Batches(draw(8, 4, 8, 8)), quant_format=QuantFormat.QOperator)
    pairs, unmatched = pair(net, load(path))
    why = "it computes on integers alone, in QOperator format; layers are judged in Q/DQ format"
    assert pairs == [] and unmatched == (
        f"conv_quant (QLinearConv): {why}",
        f"mul_quant (QLinearMatMul): {why}",
        f"gemm_quant (QGemm): {why}",
    )


def test_products_whose_input_is_quantized_at_run_time_are_paired_and_convolutions_listed(net, tmp_path):
    path = tmp_path / "quantized.onnx"
    quantize_dynamic(net, path, weight_type=QuantType.QInt8)
    pairs, unmatched = pair(net, load(path))
    why = "its input is quantized at run time, without a grid in the file"
    assert [(each.name, each.layer.op, each.layer.source, each.output) for each in pairs] == [
        ("mul", "MatMulInteger", "b", "c"),
        ("gemm", "MatMulInteger", "e", "y"),
    ]
    assert [line.partition("(")[2] for line in unmatched] == [f"ConvInteger): {why}"]


@pytest.mark.parametrize(
    ("op", "why"),
    [
        ("DynamicQuantizeMatMul", "its input is quantized at run time, without a grid in the file"),
        ("MatMulIntegerToFloat", "its input is quantized at run time, without a grid in the file"),
        ("QAttention", "its input is quantized at run time, without a grid in the file"),
        ("MatMulNBits", "its weight is packed in a format that is not read"),
        ("MatMulBnb4", "its weight is packed in a format that is not read"),
        ("FusedMatMul", "layers of this operator are not judged"),
    ],
)
def test_operators_of_onnxruntime_are_listed(build, op, why):
    model = build(f"{IO} {{ [layer] y = com.microsoft.{op} (x, w) }}", w=np.ones((6, 6), np.uint8))
    assert unread(model) == (f"layer ({op}): {why}",)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        ("", "its weight is float"),
        (
            "q = QuantizeLinear (f, s, z)  v = DequantizeLinear (q, s, z)",
            "its weight is quantized in the graph, not stored as integers",
        ),
        (
            "q = DequantizeLinear (w, s, z)  v = Transpose (q)",
            "its weight is made by Transpose, not by the DequantizeLinear of stored integers",
        ),
    ],
)
def test_layers_without_stored_integers_are_listed(build, draw, make, why):
    weights = {**GRID, "f": draw(6, 6)} | ({} if make else {"v": draw(6, 6)})
    assert unread(build(f"{IO} {{ {make} [layer] y = MatMul (x, v) }}", **weights)) == (f"layer (MatMul): {why}",)


def test_layers_that_are_read_and_products_of_activations_are_not_listed(build):
    model = build(
        f"""{IO} {{ v = DequantizeLinear (w, s, z)  [layer] a = MatMul (x, v)  t = Transpose (a)
            p = MatMul (a, t)  y = MatMul (p, a) }}""",
        **GRID,
    )
    assert list_unread(tidy(model), {"layer"}) == ()
    assert unread(model) != ()


def test_a_layer_without_a_name_is_listed_by_its_output(build, draw):
    model = build(f"{IO} {{ y = MatMul (x, w) }}", w=draw(6, 6))
    assert unread(model) == ("MatMul_y (MatMul): its weight is float",)


def chain(build, draw, count):
    text = " ".join(f"[n{i}] t{i + 1} = MatMul (t{i}, w)" for i in range(count))
    text = f"{IO} {{ t0 = Relu (x) {text} [last] y = Gemm (t{count}, w) }}"
    return build(text, w=draw(6, 6))


def test_many_of_a_kind_are_one_line(build, draw):
    model = chain(build, draw, MOST_LINES)
    assert unread(model) == (
        f"{MOST_LINES} nodes, n0, n1, n2... (MatMul): its weight is float",
        "last (Gemm): its weight is float",
    )
    assert len(unread(chain(build, draw, MOST_LINES - 1))) == MOST_LINES


def test_other_operators_with_constants_are_not_taken_for_layers(build, draw):
    assert unread(build(f"{IO} {{ a = Mul (x, w)  y = com.microsoft.Strange (a, w) }}", w=draw(6, 6))) == ()


# Rescaled inputs


RESCALED = """{ p = Pad (x, pads)  m = Mul (p, factor)  a = Add (m, shift)
    q = QuantizeLinear (a, s, z)  [d] u = DequantizeLinear (q, s, z)  v = DequantizeLinear (w, s, z)
    [layer] y = Conv (u, v) }"""
CONSTANTS = {
    "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "factor": np.float32([[[2]], [[3]]]), "s": np.float32(0.1),
    "shift": np.float32([[[1]], [[5]]]), "z": np.int8(0), "w": np.ones((2, 2, 3, 3), np.int8),
}  # fmt: skip
PICTURE = "g (float[N, 2, 6, 6] x) => (float[N, 2, 6, 6] y)"


def test_a_layer_whose_input_is_rescaled_stands_for_the_one_that_reads_it_plainly(build, draw):
    float_net = build(f"{PICTURE} {{ [layer] y = Conv <pads = [1, 1, 1, 1]> (x, w) }}", w=draw(2, 2, 3, 3))
    quantized = build(f"{PICTURE} {RESCALED}", **CONSTANTS)
    (found,), unmatched = pair(float_net, quantized)
    assert (found.name, found.layer.source, found.output, unmatched) == ("layer", "x", "y", ())
    assert found.layer.grid is None  # in other units
    readers = [node.name for node in Index(tidy(quantized).graph).readers("x")]
    assert readers == [*found.layer.entries]


@pytest.mark.parametrize("change", [("Mul (p, factor)", "Mul (p, p)"), ("Add (m, shift)", "Max (m, shift)")])
def test_what_is_more_than_rescaled_has_no_pair(build, draw, change):
    float_net = build(f"{PICTURE} {{ [layer] y = Conv <pads = [1, 1, 1, 1]> (x, w) }}", w=draw(2, 2, 3, 3))
    pairs, (line,) = pair(float_net, build(f"{PICTURE} {RESCALED.replace(*change)}", **CONSTANTS))
    assert pairs == [] and line == "layer: the float model has no tensor a, the layer's input"


def test_an_lstm_of_which_onnxruntime_quantized_the_weights_is_paired(build, draw, tmp_path):
    model = build(
        """g (float[7, 2, 3] x, float[2, 2, 4] h, float[2, 2, 4] c) => (float[7, 2, 2, 4] y) {
            [it] y = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r, b, , h, c) }""",
        w=draw(2, 16, 3), r=draw(2, 16, 4), b=draw(2, 32),
    )  # fmt: skip
    path = tmp_path / "quantized.onnx"
    for per_channel in (False, True):
        quantize_dynamic(model, path, weight_type=QuantType.QInt8, per_channel=per_channel)
        ((found,), unmatched) = pair(model, load(path))
        layer = found.layer
        assert (found.name, layer.op, found.output, unmatched) == ("it", "DynamicQuantizeLSTM", "y", ())
        assert [operand.source for operand in layer.operands] == ["x", "h", "c"]
        weight = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w")).transpose(0, 2, 1)
        assert np.abs(layer.integers * layer.scale - weight).max() <= layer.scale.max() / 2 * 1.001
