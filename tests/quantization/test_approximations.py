"""Operators that stand for those that a target has not."""

from __future__ import annotations

import pytest

from onnxcalib import QuantizeConfig, quantize

SWISH = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
    { [first] a = Conv (x, w0) [gate] s = Sigmoid (a) [swish] m = Mul (a, s) [last] y = Conv (m, w) }"""


@pytest.fixture
def report(build, weigh, draw):
    """The result of a net with a swish for a target."""
    net = build(SWISH, w0=weigh(4, 3, 1, 1), w=weigh(4, 4, 1, 1))

    def make(target):
        config = QuantizeConfig(target=target, pipeline="light", threads=1)
        return quantize(net, draw(16, 3, 8, 8), config, test=draw(8, 3, 8, 8))

    return make


def test_a_sigmoid_is_written_as_hard_sigmoid_where_the_target_has_none_and_the_loss_is_told(report):
    result = report("xint8")
    operators = {node.op_type for node in result.model.graph.node}
    assert "HardSigmoid" in operators
    assert "Sigmoid" not in operators
    (told,) = [text for text in result.report.warnings if text.startswith("Sigmoid: found 1; target 'xint8' takes")]
    assert "which brings output y to" in told
    assert "a model that was trained with HardSigmoid loses nothing" in told
    assert not result.lint.violations


def test_other_targets_keep_it(report):
    result = report("onnxruntime")
    assert "Sigmoid" in {node.op_type for node in result.model.graph.node}
    assert not [text for text in result.report.warnings if "Sigmoid" in text]
