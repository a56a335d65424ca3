import re

import numpy as np
import onnx.parser
import pytest

from onnxcalib.graph.passes.duplicates import merge_duplicates
from onnxcalib.graph.passes.normalise import normalise
from onnxcalib.graph.passes.pool import globalise_pools
from onnxcalib.graph.passes.written_out import write_patterns
from onnxcalib.graph.patterns import find_patterns
from onnxcalib.runtime.session import Session

CONSTANTS = """float e = {0.001}, float zero = {0}, float half = {0.5}, float one = {1}, float two = {2},
float three = {3}, float six = {6}, float root = {1.4142135}, float pi = {0.7978846}, float cubic = {0.044715},
float quick = {1.702}, float[4] g = {1.5, 0.5, -2, 3}, float[4] b = {0.25, -1, 0, 2},
float[6, 1] gc = {1.5, 0.5, -2, 3, 1, 1}, int64[1] last = {-1}"""
NORM = "m = {mean}(x{axes}) d = Sub(x, m) p = Mul(d, d) v = {mean}(p{axes}) w = Add(v, e) s = Sqrt(w) r = Reciprocal(s)"
OLD = {"mean": "ReduceMean <axes = [-1]> ", "axes": ""}
NEW = {"mean": "ReduceMean ", "axes": ", last"}
RMS = "p = Mul(x, x) v = {mean}(p{axes}) w = Add(v, e) s = Sqrt(w) r = Reciprocal(s) n = Mul(x, r) y = Mul(n, g)"
GELU = "a = Div(x, root) t = Erf(a) u = Add(t, one) h = Mul(u, half) y = Mul(x, h)"
TANH = (
    "q = Mul(x, x) c = Mul(q, x) a = Mul(cubic, c) s = Add(x, a) t = Mul(s, pi) h = Tanh(t) u = Add(h, one)"
    " k = Mul(x, half) y = Mul(k, u)"
)
SPELLED_NORM = ["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"]
CASES = {
    "a norm at opset 13": (13, NORM.format(**OLD) + "n = Mul(d, r) k = Mul(n, g) y = Add(k, b)", SPELLED_NORM),
    "a norm at opset 17": (17, NORM.format(**OLD) + "n = Mul(d, r) y = Mul(n, g)", ["LayerNormalization"]),
    "a norm at opset 18": (18, NORM.format(**NEW) + "y = Mul(d, r)", ["LayerNormalization"]),
    "a norm by token": (13, NORM.format(**OLD) + "n = Mul(d, r) y = Mul(n, gc)", ["InstanceNormalization"]),
    "an RMS norm": (13, RMS.format(**OLD), ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]),
    "an RMS norm at opset 18": (18, RMS.format(**NEW), ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]),
    "an RMS norm at opset 23": (23, RMS.format(**NEW), ["RMSNormalization"]),
    "a shifted RMS norm": (23, RMS.format(**NEW).replace("y =", "k =") + "y = Add(k, b)", ["RMSNormalization", "Add"]),
    "Gelu at opset 13": (13, GELU, ["Div", "Erf", "Add", "Mul", "Mul"]),
    "Gelu at opset 20": (20, GELU, ["Gelu"]),
    "Gelu by Tanh at opset 20": (20, TANH, ["Gelu"]),
    "quick Gelu": (13, "a = Mul(x, quick) t = Sigmoid(a) y = Mul(t, x)", ["Mul", "Sigmoid", "Mul"]),
    "Swish by Exp": (13, "a = Neg(x) t = Exp(a) u = Add(t, one) y = Div(x, u)", ["Sigmoid", "Mul"]),
    "Sigmoid by Exp": (13, "a = Neg(x) t = Exp(a) u = Add(t, one) y = Div(one, u)", ["Sigmoid"]),
    "HardSwish": (13, "a = Add(x, three) c = Clip(a, zero, six) h = Mul(x, c) y = Div(h, six)", ["HardSigmoid", "Mul"]),
    "HardSigmoid": (13, "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)", ["HardSigmoid"]),
    "Softmax": (
        13,
        "m = ReduceMax <axes = [-1]> (x) d = Sub(x, m) t = Exp(d) s = ReduceSum(t, last) y = Div(t, s)",
        ["Softmax"],
    ),
}


def make(nodes, opset=13, output="y", shape="N, 6, 4"):
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{shape}] x) => (float[{shape}] {output})'
    text = f"{head} <{CONSTANTS}>"
    model = onnx.parser.parse_model(f"{text} {{ {nodes} }}")
    normalise(model)
    return model


def run(model, **options):
    x = np.random.default_rng(0).normal(0.2, 2, (3, 6, 4)) * np.array([1, 0.1, 0.01])[:, None, None]
    return next(iter(Session(model, threads=1, **options).run({"x": x.astype(np.float32)}).values()))


def optimized_ops(model, path):
    Session(model, threads=1, dump=path)
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize(("opset", "nodes", "operators"), CASES.values(), ids=CASES)
def test_a_function_becomes_its_operator_or_the_spelling_that_is_fused(opset, nodes, operators):
    model = make(nodes, opset)
    wanted, last = run(model, optimize=False), model.graph.node[-1].name
    assert write_patterns(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == operators
    assert (model.graph.node[-1].name, model.graph.node[-1].output[0]) == (last, "y")
    assert np.allclose(run(model, optimize=False), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("a norm at opset 13", ["LayerNormalization"]),
        ("an RMS norm", ["SimplifiedLayerNormalization"]),
        ("an RMS norm at opset 18", ["SimplifiedLayerNormalization"]),
        ("Gelu at opset 13", ["Gelu"]),
        ("quick Gelu", ["QuickGelu"]),
        ("Swish by Exp", ["QuickGelu"]),
    ],
)
def test_what_is_written_out_again_becomes_one_kernel(name, fused, tmp_path):
    opset, nodes, _ = CASES[name]
    model = make(nodes, opset)
    write_patterns(model)
    assert optimized_ops(model, tmp_path / "optimized.onnx") == fused


@pytest.mark.parametrize(
    "nodes",
    [TANH, "t = Sigmoid(x) y = Mul(x, t)", "t = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(x, t)"],
)
def test_what_nothing_is_faster_for_stays(nodes):
    model = make(nodes)
    before = list(model.graph.node)
    assert write_patterns(model) == 0 and list(model.graph.node) == before


def test_a_norm_whose_size_is_unknown_stays():
    assert write_patterns(make(NORM.format(**OLD) + "y = Mul(d, r)", shape="N, 6, M")) == 0


def test_a_value_that_others_read_is_kept_for_them():
    model = make(NORM.format(**OLD) + "n = Mul(d, r) k = Mul(n, g) y = Add(k, b) z = Add(y, d)", 17, "z")
    wanted = run(model)
    assert write_patterns(model) == 1
    assert [node.op_type for node in model.graph.node] == ["ReduceMean", "Sub", "LayerNormalization", "Add"]
    assert np.allclose(run(model), wanted, atol=1e-5)


def test_other_passes_leave_the_parts_of_norms_together():
    first = NORM.format(**OLD) + "n = Mul(d, r) k = Mul(n, g) y = Add(k, b)"
    second = re.sub(r"\b([mdpvwsrnky])\b", r"\1_2", first).replace("g)", "b)")
    model = make(f"{first} {second} z = Mul(y, y_2)", output="z")
    assert write_patterns(model) == 2
    assert globalise_pools(model) == 0 and merge_duplicates(model) == 0
    assert [pattern.closed for pattern in find_patterns(model)] == [True, True]
