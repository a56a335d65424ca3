"""Ifs that the declared sizes decide are replaced by the branch that is taken."""

import numpy as np
import onnx
import pytest

from onnxcalib.graph.passes.branches import take_branches

TEXT = """
g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z)
{
  s = Shape (x)
  size = Gather (s, axis)
  one = Squeeze (size)
  flag = Cast <to = 9> (one)
  many = Equal (size, four)
  y = If (flag) <
    then_branch = yes () => (float[N, 4] p) { a = Relu (x) p = Add (a, b) },
    else_branch = no () => (float[N, 4] q) { q = Neg (x) }
  >
  z = If (many) <
    then_branch = yes2 () => (float[N, 4] a) { a = Identity (y) },
    else_branch = no2 () => (float[N, 4] r) { c = Constant <value_float = 2.0> () r = Mul (y, c) }
  >
}
"""


def make(build, axis):
    return build(TEXT, axis=np.array([axis], np.int64), four=np.array([4], np.int64), b=np.ones(4, np.float32))


def test_sizes_that_the_model_declares_decide(build, run):
    model, x = make(build, 1), np.arange(-4, 8, dtype=np.float32).reshape(3, 4)
    wanted = run(model, x)
    assert take_branches(model) == 2
    assert "If" not in [node.op_type for node in model.graph.node]
    onnx.checker.check_model(model, full_check=True)
    assert all(map(np.array_equal, run(model, x), wanted))


def test_an_open_size_decides_nothing(build):
    assert take_branches(make(build, 0)) == 0


@pytest.mark.parametrize(("given", "taken"), [(True, "Relu"), (False, "Neg")])
def test_a_constant_decides(build, given, taken):
    text = """
    g (float[2] x) => (float[2] y) {
      y = If (flag) <
        then_branch = yes () => (float[2] p) { p = Relu (x) }, else_branch = no () => (float[2] q) { q = Neg (x) }
      >
    }
    """
    model = build(text, flag=np.array(given))
    assert take_branches(model) == 1
    assert [node.op_type for node in model.graph.node] == [taken]


def test_the_number_of_axes_decides(build):
    text = """
    g (float[N, 4] x) => (float[N, 4] y) {
      s = Shape (x) n = Size (s) flag = Equal (n, two)
      y = If (flag) <
        then_branch = yes () => (float[N, 4] p) { p = Relu (x) }, else_branch = no () => (float[N, 4] q) { q = Neg (x) }
      >
    }
    """
    model = build(text, two=np.array(2, np.int64))
    assert take_branches(model) == 1


def test_a_value_that_is_no_whole_number_decides_nothing(build):
    text = """
    g (float[2] x) => (float[2] y) {
      n = Cast <to = 7> (endless) flag = Greater (n, two)
      y = If (flag) <
        then_branch = yes () => (float[2] p) { p = Relu (x) }, else_branch = no () => (float[2] q) { q = Neg (x) }
      >
    }
    """
    assert take_branches(build(text, endless=np.float32(np.inf), two=np.array(2, np.int64))) == 0
