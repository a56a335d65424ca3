import re

import numpy as np
import onnx.parser
import pytest

from onnxcalib.graph import patterns
from onnxcalib.graph.passes.normalise import normalise
from onnxcalib.graph.patterns import (
    GELU,
    HARD_SIGMOID,
    HARD_SWISH,
    INSTANCE_NORM,
    LAYER_NORM,
    RMS_NORM,
    SIGMOID,
    SOFTMAX,
    SWISH,
    find_patterns,
    whole_nodes,
)

CONSTANTS = """float e = {0.00001}, float zero = {0}, float half = {0.5}, float one = {1}, float two = {2},
float three = {3}, float six = {6}, float five = {0.2}, float root = {1.4142135}, float inverse = {0.70710677},
float cubic = {0.044715}, float pi = {0.7978846}, float quick = {1.702}, float four = {4}, float minus = {-0.5},
int64[1] last = {-1}, float[4] g = {1.5, 0.5, -2, 3}, float[4] b = {0.25, -1, 0, 2},
float[3, 1, 1] gc = {1.5, 0.5, -2}, float[3, 1, 1] bc = {0.5, 0, 1}"""


def make(nodes, shape="N, 6, 4", opset=13, output="y"):
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{shape}] x) => (float[{shape}] {output}) <{CONSTANTS}>'
    )
    model = onnx.parser.parse_model(f"{text} {{ {nodes} }}")
    normalise(model)
    return model


def mean(name, of, axes="-1"):
    return f"{name} = ReduceMean <axes = [{axes}]> ({of})\n"


CENTRE = mean("m", "x") + "d = Sub(x, m)\n"
LAYER_NORMS = {
    "Pow, Div": CENTRE
    + "p = Pow(d, two)"
    + mean("\nv", "p")
    + "w = Add(v, e) s = Sqrt(w) n = Div(d, s) k = Mul(n, g) y = Add(k, b)",
    "Mul, epsilon and scale in front": CENTRE
    + "p = Mul(d, d)"
    + mean("\nv", "p")
    + "w = Add(e, v) s = Sqrt(w) n = Div(d, s) k = Mul(g, n) y = Add(b, k)",
    "Reciprocal": CENTRE
    + "p = Pow(d, two)"
    + mean("\nv", "p")
    + "w = Add(v, e) s = Sqrt(w) r = Reciprocal(s) n = Mul(d, r) k = Mul(n, g) y = Add(k, b)",
    "one over the root": CENTRE
    + "p = Mul(d, d)"
    + mean("\nv", "p")
    + "w = Add(v, e) s = Sqrt(w) r = Div(one, s) n = Mul(d, r) k = Mul(n, g) y = Add(k, b)",
    "a power of -0.5": CENTRE
    + "p = Mul(d, d)"
    + mean("\nv", "p")
    + "w = Add(v, e) r = Pow(w, minus) n = Mul(d, r) k = Mul(n, g) y = Add(k, b)",
    "two differences": mean("m", "x")
    + "d = Sub(x, m) c = Sub(x, m) p = Pow(c, two)"
    + mean("\nv", "p")
    + "w = Add(v, e) s = Sqrt(w) n = Div(d, s) k = Mul(n, g) y = Add(k, b)",
    "with Casts": CENTRE
    + "f = Cast <to = 1> (d) p = Pow(f, two)"
    + mean("\nv", "p")
    + "w = Add(v, e) s = Sqrt(w) n = Div(d, s) t = Cast <to = 1> (n) k = Mul(t, g) y = Add(k, b)",
    "as a batch normalisation": CENTRE
    + "p = Mul(d, d)"
    + mean("\nv", "p")
    + "w = Add(v, e) s = Sqrt(w) r = Reciprocal(s) k = Mul(r, g) h = Mul(x, k)"
    " i = Mul(m, k) j = Sub(b, i) y = Add(h, j)",
    "sums": "t = ReduceSum(x, last) m = Div(t, four) d = Sub(x, m) p = Mul(d, d) u = ReduceSum(p, last)"
    " v = Div(u, four) w = Add(v, e) s = Sqrt(w) n = Div(d, s) k = Mul(n, g) y = Add(k, b)",
}
POINTWISE = {
    "Gelu, half first": (GELU, "h = Mul(x, half) a = Div(x, root) t = Erf(a) u = Add(t, one) y = Mul(h, u)"),
    "Gelu, half last": (GELU, "a = Mul(inverse, x) t = Erf(a) u = Add(one, t) h = Mul(u, x) y = Div(h, two)"),
    "Gelu, half inside": (GELU, "a = Mul(x, inverse) t = Erf(a) u = Add(t, one) h = Mul(u, half) y = Mul(x, h)"),
    "Gelu by Tanh": (
        GELU,
        "p = Pow(x, three) a = Mul(cubic, p) s = Add(x, a) t = Mul(s, pi) h = Tanh(t) u = Add(h, one)"
        " k = Mul(x, half) y = Mul(k, u)",
    ),
    "Gelu by Tanh of a product": (
        GELU,
        "i = Mul(x, pi) j = Mul(x, cubic) l = Mul(j, x) o = Add(l, one) t = Mul(i, o) h = Tanh(t) u = Add(h, one)"
        " k = Mul(x, half) y = Mul(k, u)",
    ),
    "quick Gelu": (SWISH, "a = Mul(x, quick) t = Sigmoid(a) y = Mul(t, x)"),
    "Swish": (SWISH, "t = Sigmoid(x) y = Mul(x, t)"),
    "Swish by Exp": (SWISH, "a = Neg(x) t = Exp(a) u = Add(one, t) y = Div(x, u)"),
    "Sigmoid by Exp": (SIGMOID, "a = Neg(x) t = Exp(a) u = Add(one, t) y = Reciprocal(u)"),
    "Sigmoid by Tanh": (SIGMOID, "a = Mul(x, half) t = Tanh(a) h = Mul(t, half) y = Add(h, half)"),
    "HardSwish, Div last": (HARD_SWISH, "a = Add(x, three) c = Clip(a, zero, six) h = Mul(x, c) y = Div(h, six)"),
    "HardSwish, Div inside": (HARD_SWISH, "a = Add(three, x) c = Clip(a, zero, six) h = Div(c, six) y = Mul(h, x)"),
    "HardSwish by Min and Max": (
        HARD_SWISH,
        "a = Add(x, three) r = Max(a, zero) c = Min(r, six) h = Div(c, six) y = Mul(h, x)",
    ),
    "HardSigmoid": (HARD_SIGMOID, "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)"),
    "HardSigmoid of Keras": (HARD_SIGMOID, "a = Mul(x, five) r = Add(a, half) y = Clip(r, zero, one)"),
}


@pytest.mark.parametrize("nodes", LAYER_NORMS.values(), ids=LAYER_NORMS)
def test_a_layer_norm_is_found_in_every_spelling(nodes):
    (pattern,) = find_patterns(make(nodes))
    function = pattern.function
    assert (function.kind, function.axes, pattern.source, pattern.output) == (LAYER_NORM, (-1,), "x", "y")
    assert pattern.closed and function.epsilon == np.float32(1e-5)
    assert np.array_equal(function.scale, np.float32([1.5, 0.5, -2, 3]))
    assert np.allclose(function.bias, [0.25, -1, 0, 2], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("kind", "nodes"), POINTWISE.values(), ids=POINTWISE)
def test_a_function_of_single_values_is_found_in_every_spelling(kind, nodes):
    (pattern,) = find_patterns(make(nodes))
    assert (pattern.function.kind, pattern.source, pattern.output) == (kind, "x", "y")


def test_the_form_of_a_gelu_and_the_factor_of_a_swish_are_read():
    found = {name: find_patterns(make(nodes))[0].function for name, (_, nodes) in POINTWISE.items()}
    assert found["Gelu, half last"].approximate == "none"
    assert found["Gelu by Tanh of a product"].approximate == "tanh"
    assert (found["quick Gelu"].alpha, found["Swish"].alpha) == (np.float32(1.702), 1)
    assert (found["HardSigmoid"].alpha, found["HardSigmoid of Keras"].alpha) == (1 / 6, 0.2)


@pytest.mark.parametrize("root", ["n = Div(x, s)", "r = Reciprocal(s) n = Mul(x, r)", "r = Div(one, s) n = Mul(x, r)"])
def test_an_rms_norm_is_found(root):
    (pattern,) = find_patterns(
        make("p = Pow(x, two)" + mean("\nv", "p") + f"w = Add(v, e) s = Sqrt(w) {root} y = Mul(n, g)")
    )
    assert (pattern.function.kind, pattern.function.epsilon) == (RMS_NORM, np.float32(1e-5))
    assert np.array_equal(pattern.function.scale, np.float32([1.5, 0.5, -2, 3])) and not pattern.function.bias.any()


@pytest.mark.parametrize("scale", ["y = Div(d, s)", "n = Div(d, s) k = Mul(n, gc) y = Add(k, bc)"])
def test_an_instance_norm_is_found_by_its_channels(scale):
    nodes = mean("m", "x", "2, 3") + "d = Sub(x, m) p = Pow(d, two)" + mean("\nv", "p", "2, 3")
    (pattern,) = find_patterns(make(nodes + f"w = Add(v, e) s = Sqrt(w) {scale}", "N, 3, 40, 50"))
    assert pattern.function.kind == INSTANCE_NORM and pattern.function.axes == (-2, -1)
    assert np.array_equal(pattern.function.scale, np.float32([1.5, 0.5, -2] if "gc" in scale else [1, 1, 1]))


def test_a_norm_over_the_channels_of_images_is_found():
    nodes = mean("m", "x", "1") + "d = Sub(x, m) p = Pow(d, two)" + mean("\nv", "p", "1")
    (pattern,) = find_patterns(
        make(nodes + "w = Add(v, e) s = Sqrt(w) n = Div(d, s) k = Mul(n, gc) y = Add(k, bc)", "N, 3, 40, 50")
    )
    assert (pattern.function.kind, pattern.function.axes) == (LAYER_NORM, (-3,))


def test_a_softmax_is_found():
    nodes = "m = ReduceMax <axes = [-1]> (x) d = Sub(x, m) t = Exp(d) s = ReduceSum(t, last) y = Div(t, s)"
    (pattern,) = find_patterns(make(nodes))
    assert (pattern.function.kind, pattern.function.axes) == (SOFTMAX, (-1,))


def test_two_norms_of_one_tensor_are_two_patterns():
    one, other = LAYER_NORMS["Pow, Div"], re.sub(r"\b([mdpvwsnky])\b", r"\1_2", LAYER_NORMS["Pow, Div"])
    patterns = find_patterns(make(f"{one} {other} z = Mul(y, y_2)", output="z"))
    assert [(pattern.output, pattern.closed) for pattern in patterns] == [("y", True), ("y_2", True)]


@pytest.mark.parametrize(
    "nodes",
    [
        "t = Sigmoid(x) y = Add(x, t)",
        "a = Div(x, root) t = Erf(a) u = Add(t, one) y = Mul(x, u)",
        "a = Add(x, two) c = Clip(a, zero, six) h = Mul(x, c) y = Div(h, six)",
        CENTRE + "p = Pow(d, two)" + mean("\nv", "p") + "s = Sqrt(v) w = Add(s, e) y = Div(d, w)",
        "p = Pow(x, two) v = ReduceSum(p, last) s = Sqrt(v) w = Max(s, e) y = Div(x, w)",
        "a = Clip(x, zero, six) y = Div(a, six)",
    ],
)
def test_what_computes_something_else_is_no_pattern(nodes):
    assert not find_patterns(make(nodes))


def test_a_value_in_between_that_others_read_leaves_the_pattern_open():
    (pattern,) = find_patterns(make(LAYER_NORMS["Pow, Div"] + " z = Add(y, d)", output="z"))
    assert pattern.output == "y" and not pattern.closed and not pattern.is_fused


def test_functions_with_integer_kernels_are_not_kept_whole():
    assert whole_nodes(make(POINTWISE["Gelu, half last"][1])) and whole_nodes(make(POINTWISE["quick Gelu"][1]))
    assert not whole_nodes(make(POINTWISE["Swish"][1])) and not whole_nodes(make(POINTWISE["HardSwish, Div last"][1]))


def test_sizes_that_are_not_known_leave_a_norm_without_scale():
    nodes = CENTRE + "p = Pow(d, two)" + mean("\nv", "p") + "w = Add(v, e) s = Sqrt(w) y = Div(d, s)"
    (known,), (unknown,) = find_patterns(make(nodes)), find_patterns(make(nodes, "N, 6, M"))
    assert np.array_equal(known.function.scale, np.ones(4)) and unknown.function.scale is None


def test_a_function_is_read_once_and_again_where_a_constant_or_a_shape_differs(monkeypatch):
    nodes = LAYER_NORMS["Pow, Div"]
    (first,) = find_patterns(make(nodes))
    scaled = make(nodes)
    gain = next(tensor for tensor in scaled.graph.initializer if tensor.name == "g")
    gain.CopyFrom(onnx.numpy_helper.from_array(np.float32([1, 2, 3, 4]), "g"))
    (second,) = find_patterns(scaled)
    assert np.allclose(first.function.scale, [1.5, 0.5, -2, 3]) and np.allclose(second.function.scale, [1, 2, 3, 4])
    assert not find_patterns(make(nodes.replace("Add(v, e)", "Add(v, half)")))  # which is no epsilon
    monkeypatch.setattr(patterns, "compute", None)
    (again,) = find_patterns(make(nodes))
    assert again.function is first.function and again.nodes == first.nodes
