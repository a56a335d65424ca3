import numpy as np
import pytest

from onnxcalib.data import open_calibration
from onnxcalib.graph.load import inputs_of
from onnxcalib.quantization.ordering import describe_orders
from onnxcalib.report import OutputRecord

DATA = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


def describe(model, other, sqnr_db=3.0, output="y"):
    samples = open_calibration(DATA, inputs_of(model))
    records = (OutputRecord(output, sqnr_db, None, None),)
    return [line for _, line in describe_orders(model, other, samples, records, batches=(4, 2), threads=1)]


def make(build, text, factor=1.0):
    return build(f"g (float[N, 6] x) => ({text} }}", k=np.float32(factor), two=np.int64([2]), axis=np.int64([1]))


BOXES = """float[N, 2] y) { [head] s = Mul (x, k)  b = Mul (s, k)
    [best] v, i = TopK <axis = 1> (s, two)  y = GatherElements <axis = 1> (b, i)"""


def test_an_output_that_topk_orders_is_judged_by_what_is_ordered(build):
    assert describe(make(build, BOXES), make(build, BOXES, 1.01)) == [
        "output y: its order is that of TopK (best), in which values that are nearly equal change places; judge it by"
        " what is ordered: b 33.9 dB, s 40.0 dB"
    ]


def test_an_output_that_is_as_good_as_what_is_ordered_needs_no_words(build):
    assert describe(make(build, BOXES), make(build, BOXES, 1.01), 33.0) == []
    assert len(describe(make(build, BOXES), make(build, BOXES, 1.01), 30.0)) == 1


CHOICES = {
    "ArgMax": "float[N, 1] y) { s = Mul (x, k) i = ArgMax <axis = 1> (s) y = Cast <to = 1> (i)",
    "Unique": "float[M] y) { s = Mul (x, k) y = Unique (s)",
    "NonMaxSuppression": """int64[M, 3] y) { s = Mul (x, k)  u = Unsqueeze (s, axis)
        t = Transpose <perm = [1, 0]> (s)  f = Slice (s, zero, four, axis)  g = Unsqueeze (f, zero)
        h = ReduceMax <axes = [1], keepdims = 0> (s)  j = Unsqueeze (h, both)  y = NonMaxSuppression (g, j, two)""",
}


@pytest.mark.parametrize("kind", CHOICES)
def test_other_operators_that_choose_are_known(build, kind):
    def fill(factor):
        text = f"g (float[N, 6] x) => ({CHOICES[kind]} }}"
        constants = {"axis": [1], "two": [2], "zero": [0], "four": [4], "both": [0, 1]}
        return build(text, k=np.float32(factor), **{name: np.int64(value) for name, value in constants.items()})

    (line,) = describe(fill(1), fill(1.01), None)
    assert f"its order is that of {kind} (" in line and " 40.0 dB" in line


def test_outputs_that_nothing_orders_have_no_line(build):
    text = "float[N, 6] y) { y = Mul (x, k)"
    assert describe(make(build, text), make(build, text, 1.01)) == []
