"""What the report says of weights in float, and when a run warns of the file's size."""

import re

import numpy as np
import pytest

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.quantization.in_float import find_fault_of_size
from onnxcalib.report import FloatRecord

EXPERTS = [
    FloatRecord("a", "MatMul", "many", 600),
    FloatRecord("b", "MatMul", "many", 100),
    FloatRecord("c", "Add", ""),
]


@pytest.mark.parametrize(
    ("in_float", "sizes", "told"),
    [
        (EXPERTS, (4000, 1000), r"size: found 1,000 bytes, where .* 4,000; 700 .* weights in float, most in 2 MatMul"),
        (EXPERTS, (4000, 1600), None),
        ([], (1000, 1000), "scales, zero points, new nodes and metadata take more than so few weights save"),
        ([], (1000, 999), None),
    ],
)
def test_a_file_that_is_no_smaller_or_mostly_float_is_told_of_with_the_cause(in_float, sizes, told):
    found = find_fault_of_size(in_float, *sizes)
    assert found is None if told is None else re.search(told, found)


def test_weights_in_float_are_in_the_report_and_excluded_ones_are_not(build, draw):
    model = build(
        "g (float[N, 3, 4] x) => (float[N, 2] z) {"
        " [one] a = MatMul (x, w) [two] y = MatMul (a, v) [sum] s = ReduceSum <keepdims = 0> (y, i)"
        " [table] t = Einsum <equation = \"nk,nk->nk\"> (s, c) [out] z = Relu (t) }",
        w=draw(4, 4), v=draw(4, 2), i=np.array([1]), c=draw(1, 2),
    )  # fmt: skip
    report = quantize(model, draw(16, 3, 4), QuantizeConfig(reconstruct=False, exclude=["two"])).report
    assert [(each.name, each.op, each.bytes) for each in report.in_float] == [("table", "Einsum", 8)]
    assert any(text.startswith("size: found") for text in report.warnings)


def test_what_the_settings_exclude_is_not_listed_whatever_the_rules_say_of_it(build, weigh, draw):
    model = build(
        """g (float[N, 4] x, int64[N, 1] pos) => (float[N, 4] y) {
            p = Cast <to = 1> (pos)  [angles] a = MatMul (p, row)  s = Sin (a)  [in] h = MatMul (x, w)
            [turn] t = Mul (h, s)  [out] y = MatMul (t, w) }""",
        w=weigh(4, 4), row=draw(1, 4),
    )  # fmt: skip
    samples = {"x": draw(16, 4), "pos": np.arange(16)[:, None]}
    report = quantize(model, samples, QuantizeConfig(reconstruct=False, exclude=["angles"])).report
    assert [each.name for each in report.in_float] == ["turn"]
