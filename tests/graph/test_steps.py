import numpy as np
import pytest
from onnx import ModelProto

from onnxcalib.graph.extract import infer_types
from onnxcalib.graph.index import Index
from onnxcalib.graph.steps import cut_tail, find_layers_before, find_steps
from onnxcalib.runtime.session import Session


def find(model: ModelProto):
    return find_steps(model, Index(model.graph), infer_types(model))


STEPS = {
    "Floor": "z = Floor (x)",
    "Cast": "i = Cast <to = 7> (x) z = Cast <to = 1> (i)",
    "Greater": "g = Greater (x, k) z = Cast <to = 1> (g)",
    "Hardmax": "z = Hardmax (x)",
    "If": """m = ReduceMax <keepdims = 0> (x) g = IsNaN (m)
        z = If (g) <then_branch = t () => (float[N, 4] p) { p = Round (x) },
                    else_branch = e () => (float[N, 4] q) { q = Neg (x) }>""",
}


@pytest.mark.parametrize("op", STEPS)
def test_operators_that_jump_are_found_with_the_floats_that_they_read(build, op):
    model = build(f"g (float[N, 4] x) => (float[N, 4] y) {{ {STEPS[op]} y = Abs (z) }}", k=np.float32(0.5))
    for node in model.graph.node:
        node.name = node.output[0]
    (step,) = find(model)
    assert (step.op, step.tensors, step.mixed) == (op, ("x",), op == "If")


def test_smooth_operators_and_steps_of_whole_numbers_are_none(build):
    text = "g (float[N, 4] x) => (bool[N] b) { [s] y = Sigmoid (x) [h] n = Shape (y) [e] b = Equal (n, n) }"
    assert find(build(text)) == []


def test_topk_jumps_in_its_indices(build):
    text = "g (float[N, 4] x) => (float[N, 2] v, int64[N, 2] i) { [t] v, i = TopK (x, two) }"
    assert find(build(text, two=np.int64([2])))[0].output == "i"


CHAIN = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] x2)
    { [first] h = MatMul (x, w) [half] s = Mul (h, k) [floor] f = Floor (s) [sum] y = Add (f, h)
      [other] x2 = Neg (x) }"""


def test_the_part_behind_a_step_reads_a_copy_and_what_else_it_needs(build, draw):
    model = build(CHAIN, w=draw(4, 4), k=np.float32(3))
    tail = cut_tail(model, find(model))
    assert (tail.given, tail.copies, tail.outputs) == (("h",), {("floor", "s"): "s_of_floor"}, ("y",))
    h, s = draw(2, 4), draw(2, 4)
    given = Session(tail.model).run({"h": h, "s_of_floor": s})
    np.testing.assert_array_equal(given["y"], np.floor(s) + h)
    assert find_layers_before(Index(model.graph), find(model)[0]) == ["first"]
