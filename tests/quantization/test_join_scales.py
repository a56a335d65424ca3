"""Tensors of unlike ranges in front of a Concat."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.data import open_calibration
from onnxcalib.graph.index import Index
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.quantization.join_scales import even_joins

MAKERS = """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
    [first] f = Conv (x, w0) [act] h = Relu (f) [small] s = Conv (h, ws) [large] l = Conv (h, wl)
    [srelu] a = Relu (s) [lrelu] b = Relu (l)"""
SIMPLE = "[join] c = Concat <axis = 1> (a, b) [last] y = Conv (c, w) }"
JOINS = {
    "directly": SIMPLE,
    "signed": "[join] c = Concat <axis = 1> (s, l) [last] y = Conv (c, w) }",
    "through a pool": """[join] c = Concat <axis = 1> (a, b)
        [pool] p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c) [last] y = Conv (p, w) }""",
    "through a Relu": "[join] c = Concat <axis = 1> (s, l) [relu] r = Relu (c) [last] y = Conv (r, w) }",
    "with another reader": """[join] c = Concat <axis = 1> (a, b) [other] o = Conv (a, wo) [last] d = Conv (c, w)
        [sum] y = Add (o, d) }""",
    "through gates": """[join] c = Concat <axis = 1> (a, b) [og] o = Conv (h, w16) [gate] t = Sigmoid (o)
        [times] m = Mul (c, t) [last] y = Conv (m, w) }""",
    "after a Sigmoid": "[gate] t = Sigmoid (s) [join] c = Concat <axis = 1> (t, b) [last] y = Conv (c, w) }",
}


@pytest.fixture
def make(build, weigh):
    """A net that joins something to what is so many times as large; its weights bring both to one scale."""
    weights = {"w0": weigh(8, 4, 1, 1), "ws": weigh(8, 8, 1, 1), "wl": weigh(8, 8, 1, 1), "wo": weigh(4, 8, 1, 1)}
    weights["w16"] = weigh(16, 8, 1, 1)

    def net(join, ratio=1.0, last=None, **others):
        scaled = weights | {"wl": (weights["wl"] * ratio).astype(np.float32)}
        last = weigh(4, 16, 1, 1) if last is None else last.copy()
        last[:, 8:16] /= ratio
        names = {"w": last} | {k: v for k, v in (scaled | others).items() if k in MAKERS + join}
        return build(MAKERS + join, **names)

    return net


def even(net, samples):
    return even_joins(net, make_scheme(net), open_calibration(samples, inputs_of(net)), 1)


def measure(net, draw):
    """The SQNR in dB, the number of Concats that were evened, and that of operators that are not on integers."""
    report = quantize(
        net, draw(48, 4, 8, 8), QuantizeConfig(placement="all", pipeline="light", threads=1), test=draw(16, 4, 8, 8)
    ).report
    return report.outputs[0].sqnr_db, report.passes.get("even_joins", 0), len(report.unfused), report.in_float


@pytest.mark.parametrize("join", JOINS.values(), ids=JOINS)
@pytest.mark.parametrize("ratio", [32.0, 1000.0])
def test_unlike_ranges_cost_no_more_than_like_ones_and_all_stays_on_integers(make, draw, weigh, join, ratio):
    last = weigh(4, 16, 1, 1)
    usual, _, unfused, _ = measure(make(join, 1.0, last), draw)
    unlike, evened, as_many, in_float = measure(make(join, ratio, last), draw)
    assert (evened, as_many, len(in_float)) == (1, unfused, 0)
    assert unlike > usual - 3  # as factors are powers of two, a bit may be lost in part


def test_a_concat_of_a_concat_is_scaled_as_one(make, draw, weigh):
    join = """[join] c = Concat <axis = 1> (a, b) [max] m = MaxPool <kernel_shape = [1, 1]> (c)
        [second] d = Concat <axis = 1> (m, h) [last] y = Conv (d, w) }"""
    last = weigh(4, 24, 1, 1)
    (usual, none, *_), (unlike, evened, *_) = (measure(make(join, ratio, last), draw) for ratio in (1.0, 64.0))
    assert (none, evened) == (0, 2) and unlike > usual - 2


@pytest.mark.parametrize("first", ["x", "k"])
def test_inputs_and_constants_are_joined_too(make, draw, run, weigh, first):
    join = f"[join] c = Concat <axis = 1> ({first}, b) [last] y = Conv (c, w) }}"
    net = make(join, last=weigh(4, 12, 1, 1), k=draw(1, 4, 8, 8), wl=1000 * weigh(8, 8, 1, 1))
    net.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1  # as a constant has no batch axis
    weight = next(t for t in net.graph.initializer if t.name == "w")
    values = np.frombuffer(weight.raw_data, np.float32).reshape(4, 12, 1, 1).copy()
    values[:, 4:] /= 1000
    weight.raw_data = values.tobytes()
    samples = draw(8, 4, 8, 8)
    (before,) = run(net, samples[:1])
    assert list(even(net, samples)) == ["join"]
    np.testing.assert_allclose(run(net, samples[:1])[0], before, rtol=1e-5, atol=1e-5)


def test_what_was_found_is_told(make, draw):
    (line,) = even(make(SIMPLE, 64.0), draw(8, 4, 8, 8)).values()
    assert line.startswith("join: b reaches ") and line.endswith(
        " times as far as a; they are scaled alike in front of it"
    )


def test_factors_are_powers_of_two_and_tensors_that_change_get_new_names(make, draw, run):
    net = make(JOINS["through a pool"], 64.0)
    samples = draw(8, 4, 8, 8)
    (before,) = run(net, samples)
    even(net, samples)
    index = Index(net.graph)
    assert "c" not in index.producer and "p" not in index.producer and "a" in index.producer
    np.testing.assert_allclose(run(net, samples)[0], before, rtol=1e-6, atol=1e-6)


ALONE = {
    "like ranges": (SIMPLE, 1.0),
    "a Sigmoid behind": ("[join] c = Concat <axis = 1> (a, b) [act2] t = Sigmoid (c) [last] y = Conv (t, w) }", 64.0),
    "an Add behind": (
        "[join] c = Concat <axis = 1> (a, b) [o] o = Conv (h, w16) [add] t = Add (c, o) [last] y = Conv (t, w) }",
        64.0,
    ),
    "another axis": ("[join] c = Concat <axis = 2> (a, b) [last] y = Conv <strides = [2, 1]> (c, w8) }", 64.0),
}


@pytest.mark.parametrize(("join", "ratio"), ALONE.values(), ids=ALONE)
def test_other_joins_stay_as_they_are(make, draw, weigh, join, ratio):
    net = make(join, ratio, w8=weigh(4, 8, 1, 1))
    before = net.SerializeToString()
    assert not even(net, draw(8, 4, 8, 8)) and net.SerializeToString() == before


def test_small_values_that_hardly_count_stay_small(build, weigh, draw):
    net = build(
        MAKERS + SIMPLE,
        w0=weigh(8, 4, 1, 1), ws=weigh(8, 8, 1, 1), wl=64 * weigh(8, 8, 1, 1), w=weigh(4, 16, 1, 1),
    )  # fmt: skip
    assert not even(net, draw(8, 4, 8, 8))


@pytest.mark.parametrize("target", ["qnn", "xint8"])
def test_a_target_of_whole_groups_gets_members_of_unlike_ranges_scaled_by_a_mul_that_rounds_nothing(make, draw, target):
    config = QuantizeConfig(target=target, pipeline="light", threads=1, data={"shape": "4,4,8,8"})

    def run(ratio):
        result = quantize(make(SIMPLE, ratio), draw(48, 4, 8, 8), config, test=draw(16, 4, 8, 8))
        assert not [line for line in result.report.warnings if "Concat" in line]
        assert result.lint is not None
        assert not result.lint.violations
        return result

    unlike, alike = run(64.0), run(1.0)
    assert unlike.report.passes["even_joins"] == 1
    # The larger one reaches 47 times as far, and the factor is 32.
    assert unlike.report.outputs[0].sqnr_db > alike.report.outputs[0].sqnr_db - 3
    assert any(node.op_type == "Mul" for node in unlike.model.graph.node)


def test_a_concat_that_cannot_be_evened_is_told_with_its_members_for_a_target_of_whole_groups(make, draw):
    config = QuantizeConfig(target="qnn", pipeline="light", threads=1, data={"shape": "4,4,8,8"})
    net = make("[join] y = Concat <axis = 1> (a, b) }", 64.0)
    warnings = quantize(net, draw(48, 4, 8, 8), config, test=draw(16, 4, 8, 8)).report.warnings
    (warning,) = (line for line in warnings if "Concat" in line)
    assert warning.startswith("join: b reaches ")
    assert " times as far as a, and the Concat gives both on one grid; at most 16 times leaves the smaller" in warning
    assert warning.endswith("; scale it up in the model, or exclude the Concat")
