"""Where grids stand if they are in front of layers alone. ``conv(x, 1)`` keeps 4 channels and the size of a tensor."""

from __future__ import annotations

import re

import numpy as np
import pytest

from onnxcalib.graph.names import Selection
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.targets import load_target

CONV = "Conv <kernel_shape = [3, 3], strides = [1, 1], pads = [1, 1, 1, 1], dilations = [1, 1], group = 1>"
TENSORRT = load_target("tensorrt").requirements


@pytest.fixture
def model_of(build, draw):
    """The model of a body, its weights drawn."""

    def make(body, outputs="float[N, a, h, w] y", **weights):
        body = re.sub(r"(\w+) = conv ?\((\w+), (\d)\)", rf"[conv\3] \1 = {CONV} (\2, w\3, b\3)", body)
        numbers = sorted(set(re.findall(r"\bw(\d)\b", body)))
        drawn = {f"{kind}{i}": draw(*shape) for i in numbers for kind, shape in (("w", (4, 4, 3, 3)), ("b", (4,)))}
        return build(f"g (float[N, 4, 8, 8] x) => ({outputs}) {{ {body} }}", opset=19, **{**drawn, **weights})

    return make


def place(model, **settings):
    scheme = make_scheme(model, requirements=TENSORRT, **settings)
    return list(scheme.activations), {t: set(names) for t, names in scheme.float_reads.items()}


def test_what_a_layer_gives_at_the_end_is_float(model_of):
    assert place(model_of("c = conv(x, 1) r = Relu (c) d = conv(r, 2) y = Relu (d)")) == (["x", "r"], {})


def test_an_output_that_a_layer_reads_as_well_is_float_for_the_user(model_of):
    found = place(model_of("y = conv(x, 1) z = conv(y, 2)", "float[N, a, h, w] y, float[N, a, h, w] z"))
    assert found == (["x", "y"], {"y": set()})


def test_of_two_operands_the_one_that_the_convolution_did_not_make_is_quantized(model_of):
    model = model_of("c = conv(x, 1) r = Relu (c) d = conv(r, 2) s = Add (d, r) t = Relu (s) y = conv(t, 3)")
    assert place(model) == (["x", "r", "t"], {})


def test_of_two_convolutions_the_one_on_the_shorter_way_is_quantized(model_of):
    model = model_of("c = conv(x, 1) r = Relu (c) d = conv(r, 2) e = conv(x, 3) y = Add (e, d)")
    assert place(model) == (["x", "r", "e"], {})


def test_an_add_of_what_no_convolution_makes_stays_in_float(model_of):
    assert place(model_of("c = conv(x, 1) r = Relu (c) q = Sigmoid (c) y = Add (r, q)")) == (["x"], {})


def test_a_pool_behind_a_layer_reads_integers_and_a_max_pool_gives_them_on(model_of):
    body = """c = conv(x, 1) m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c) d = conv(m, 2)
              y = GlobalAveragePool (d)"""
    scheme = make_scheme(model_of(body), requirements=TENSORRT)
    assert list(scheme.activations) == ["x", "c", "m", "d"] and scheme.shared == (("c", "m"),)


def test_a_pool_of_what_float_operators_make_stays_in_float(model_of):
    body = "e = Exp (x) m = MaxPool <kernel_shape = [1, 1]> (e) l = Log (m) y = conv(l, 1)"
    assert place(model_of(body)) == (["l"], {})


def test_what_a_float_operator_makes_is_float_for_others(model_of):
    body = "e = Exp (x) [other] s = Sin (e) c = conv(e, 1) y = Mul (c, s)"
    assert place(model_of(body)) == (["e"], {"e": {"other"}})


def test_what_a_layer_makes_is_read_on_its_grid_by_all(model_of):
    body = "c = conv(x, 1) r = Relu (c) s = Sin (r) d = conv(r, 2) y = Mul (d, s)"
    assert place(model_of(body)) == (["x", "r"], {})


def test_a_layer_in_float_reads_float(model_of):
    model = model_of("c = conv(x, 1) r = Relu (c) d = conv(r, 2) e = conv(r, 3) y = Mul (d, e)")
    assert place(model, selection=Selection(frozenset({"conv3"}))) == (["x", "r"], {"r": {"conv3"}})


def test_members_of_a_concat_that_it_alone_reads_have_its_grid(model_of, draw):
    body = "c = conv(x, 1) d = conv(x, 2) k = Concat <axis = 1> (c, d) y = conv(k, 3)"
    scheme = make_scheme(model_of(body, w3=draw(4, 8, 3, 3)), requirements=TENSORRT)
    assert list(scheme.activations) == ["x", "c", "d", "k"] and scheme.shared == (("c", "d", "k"),)


@pytest.mark.parametrize("other", ["q = Relu (d)", "q = Exp (d)"])
def test_unlike_members_of_a_concat_are_rounded_once_behind_it(model_of, draw, other):
    body = f"c = conv(x, 1) d = conv(x, 2) {other} k = Concat <axis = 1> (c, q) y = conv(k, 3)"
    assert place(model_of(body, w3=draw(4, 8, 3, 3))) == (["x", "k"], {})


def test_both_operands_of_a_product_of_activations_are_quantized_and_softmax_is_float(attention):
    scheme = make_scheme(attention, requirements=TENSORRT)
    assert list(scheme.activations) == ["h", "q", "v", "kt", "p", "o"]
    assert scheme.float_reads == {"h": frozenset({"join"})}


def test_what_is_excluded_reads_float(model_of):
    model = model_of("c = conv(x, 1) m = MaxPool <kernel_shape = [1, 1]> (c) d = conv(m, 2) [add] y = Add (d, m)")
    chosen = Selection(frozenset({"conv1", "add"}))
    assert place(model, selection=chosen) == (["m"], {"m": {"add"}})


def test_a_clip_is_kept_for_those_that_read_its_result_in_float(model_of, rough, run, draw):
    body = "[e] e = Exp (x) [q] q = Clip (e, zero, six) [s] s = Sin (q) c = conv(q, 1) [y] y = Mul (c, s)"
    model = model_of(body, zero=np.float32(0), six=np.float32(0.1))
    x = draw(1, 4, 8, 8)
    quantized = rough(model, x)
    assert [node.op_type for node in quantized.graph.node].count("Clip") == 1
    assert np.allclose(run(quantized, x)[0], run(model, x)[0], atol=0.02)
