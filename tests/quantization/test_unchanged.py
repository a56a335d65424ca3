import re

import numpy as np
import pytest

from onnxcalib.errors import ModelError
from onnxcalib.quantization.unchanged import TOLERANCE, check_unchanged
from onnxcalib.runtime.session import Session
from tests.small_models import change_constant


def check(original, prepared, x, **options):
    feeds = {"x": x}
    return check_unchanged(original, prepared, Session(original).run(feeds), feeds, **options)


@pytest.fixture
def model(build, draw):
    return build(
        "g (float[N, 4] x) => (float[N, 5] y) { h = MatMul (x, u) [last] y = Add (h, k) }", u=draw(4, 5), k=draw(5)
    )


def test_a_change_by_reordered_sums_is_told(model, draw):
    found = check(model, change_constant(model, "k", lambda k: k * (1 + 1e-5)), draw(4, 4))
    assert 0 < found.largest < TOLERANCE
    (line,) = found.lines()
    assert line.startswith("outputs unchanged by preparation to ") and line.endswith(" of their largest value")


@pytest.mark.parametrize("factor", [1.1, np.nan])
def test_a_changed_output_is_a_fault_and_the_node_where_it_begins_is_named(model, draw, factor):
    expected = (
        r"^output y: preparation changed \d+% of its values, by .* the largest, from node last \(Add\) on; "
        "1e-03, or what onnxruntime's own optimizations change, is allowed; export the model at another opset, or"
    )
    with pytest.raises(ModelError, match=expected):
        check(model, change_constant(model, "k", lambda k: k * factor), draw(4, 4))


def test_an_output_of_another_shape_is_a_fault(build, draw):
    one = build("g (float[N, 4] x) => (float[a, b] y) { y = Relu (x) }")
    two = build("g (float[N, 4] x) => (float[a, b] y) { y = Transpose (x) }")
    with pytest.raises(ModelError, match=r"^output y: preparation changed its shape, from node y \(Relu\) on; "):
        check(one, two, draw(3, 4))


def test_values_that_were_never_finite_are_no_fault_of_preparation(build):
    model = build("g (float[N] x) => (float[N] y) { y = Log (x) }")
    assert check(model, model, np.float32([-1, 0, 1, 2])).largest == 0
    assert check(model, model, np.float32([-1, -2])).largest == 0


def test_outputs_that_are_no_float_tensors_are_not_compared(build, draw):
    text = "g (float[N, 4] x) => ({}[N{}] y) {{ y = {} (x{}) }}"
    one = build(text.format("int64", "", "ArgMax <axis = 1, keepdims = 0>", ""))
    two = build(text.format("int64", "", "ArgMin <axis = 1, keepdims = 0>", ""))
    lists = build("g (float[N, 4] x) => (seq(float[N, 2]) s) { s = SplitToSequence <axis = 1> (x, k) }", k=np.int64(2))
    for before, after in ((one, two), (lists, lists)):
        assert check(before, after, draw(3, 4)).lines() == [
            "outputs unchanged by preparation to 0.0e+00 of their largest value"
        ]


STEPS = {
    "TopK": "v, i = TopK <axis = 1> (h, two)  y = Cast <to = 1> (i)",
    "ArgMax": "i = ArgMax <axis = 1> (h)  y = Cast <to = 1> (i)",
    "Round": "r = Round (h)  y = Mul (r, r)",
    "Greater": "b = Greater (h, half)  y = Cast <to = 1> (b)",
    "Cast": "i = Cast <to = 6> (h)  y = Cast <to = 1> (i)",
    "If": """m = ReduceMax <keepdims = 0> (h)  b = Not (off)  y = If (b) <
        then_branch = then () => (float[c, d] p) { g = Greater (h, half)  p = Cast <to = 1> (g) },
        else_branch = other () => (float[c, d] q) { q = Identity (h) }>""",
    "NonZero": "b = Greater (h, half)  n = NonZero (b)  y = Cast <to = 1> (n)",
}


@pytest.mark.parametrize("kind", STEPS)
def test_jumps_by_the_rounding_of_what_an_operator_reads_are_told_and_a_fault_before_it_is_named(build, draw, kind):
    half = np.float32(2 if kind == "Cast" else 0.5)
    # All values of h are equal, on the edge of each operator's jump, before preparation adds the least change.
    model = build(
        f"g (float[N, 3] x) => (float[a, b] y, float[N, 3] h) {{ o = Mul (x, no) [sum] h = Add (o, k) {STEPS[kind]} }}",
        no=np.float32(0), k=np.full(3, half), half=half, two=np.int64([2]), off=np.bool_(False),
    )  # fmt: skip
    least = change_constant(model, "k", lambda k: k * np.float32([1 - 1e-6, 1 + 1e-6, 1 - 1e-6]))
    lines = check(model, least, draw(8, 3)).lines()
    what = "its shape" if kind == "NonZero" else r"[\d.]+% of its values, by .* the largest"
    named = "Greater" if kind == "NonZero" else kind
    because = rf"as {named} \(\w+\) jumps where its input is rounded otherwise; what it reads is unchanged"
    assert re.fullmatch(f"output y: preparation changed {what}, {because}", lines[0])
    assert lines[1].startswith("all other outputs unchanged by preparation to ")
    with pytest.raises(ModelError, match=r"^output \w: preparation changed .*, from node sum \(Add\) on; "):
        check(model, change_constant(model, "k", lambda k: k * np.float32([0.9, 1.1, 0.9])), draw(8, 3))


def test_a_change_of_very_few_values_is_told(build, draw):
    model = build("g (float[N, 3000] x) => (float[N, 3000] y) { y = Add (x, k) }", k=np.zeros(3000, np.float32))
    changed = change_constant(model, "k", lambda k: k + (np.arange(3000) == 7))
    (line,) = check(model, changed, draw(2, 3000)).lines()
    assert re.match(r"output y: preparation changed 0.0333% of its values, by .*; all others are unchanged$", line)


def test_what_the_optimizations_of_onnxruntime_change_too_is_told(build, draw):
    model = build("g (float[N, 4] x) => (float[N, 4] y) { y = Mul (x, k) }", k=np.ones(4, np.float32))
    x = draw(9, 4)
    wanted = {"y": x * np.float32(1.002)}  # as if optimizations made it so
    found = check_unchanged(model, change_constant(model, "k", lambda k: k * 1.004), wanted, {"x": x})
    assert found.remarks[0].endswith(", as onnxruntime's own optimizations do; float rounding decides these values")
