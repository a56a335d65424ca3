"""Float16 models compute in float32, and keep the types of their inputs and outputs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxcalib.graph.passes.float16 import widen_float16
from onnxcalib.runtime.session import Session


@pytest.fixture
def half_weight(draw):
    return (draw(4, 4) / 4).astype(np.float16)


def types_of(values):
    return [value.type.tensor_type.elem_type for value in values]


def outputs(model, **feeds):
    return next(iter(Session(model).run(feeds).values()))


def check_same(model, x):
    before = outputs(model, x=x)
    count = widen_float16(model)
    onnx.checker.check_model(model, full_check=True)
    after = outputs(model, x=x)
    assert after.dtype == before.dtype
    np.testing.assert_allclose(after.astype(np.float32), before.astype(np.float32), rtol=2e-2, atol=2e-2)
    assert all(tensor.data_type != TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return count


def test_weights_become_float32_between_casts_at_the_ends(build, draw, half_weight):
    model = build(
        """g (float16[N, 4] x) => (float16[N, 4] y) <float16[N, 4] h> {
           h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }""",
        w=half_weight,
        v=half_weight,
    )
    assert check_same(model, draw(3, 4).astype(np.float16)) == 2
    assert [node.op_type for node in model.graph.node] == ["Cast", "MatMul", "Relu", "MatMul", "Cast"]
    assert types_of((*model.graph.input, *model.graph.output)) == [TensorProto.FLOAT16] * 2
    assert types_of(model.graph.value_info) == [TensorProto.FLOAT]


def test_an_output_that_is_read_inside_stays_an_output(build, draw, half_weight):
    model = build(
        "g (float16[N, 4] x) => (float16[N, 4] h, float16[N, 4] y) { h = MatMul (x, w) y = Relu (h) }", w=half_weight
    )
    x = draw(3, 4).astype(np.float16)
    before = Session(model).run({"x": x})
    widen_float16(model)
    after = Session(model).run({"x": x})
    for name, value in before.items():
        np.testing.assert_allclose(after[name].astype(np.float32), value.astype(np.float32), atol=2e-2)


def test_casts_and_constants_inside_are_float32_too(build, draw, half_weight):
    model = build(
        """g (float[N, 4] x) => (float[N, 4] y) {
           a = Cast <to = 10> (x) h = MatMul (a, w)
           s = Shape (h) f = ConstantOfShape <value = float16[1] {15872}> (s) t = Mul (h, f) y = Cast <to = 1> (t) }""",
        w=half_weight,
    )
    assert check_same(model, draw(3, 4)) == 2


def test_bodies_are_widened_with_their_node(build, draw, half_weight):
    model = build(
        """g (float16[2, 4] x) => (float16[2, 4] y) {
           h = MatMul (x, w)
           c = Constant <value = bool {1}> ()
           y = If (c) <then_branch = t () => (float16[2, 4] a) { a = Add (h, x) },
                       else_branch = e () => (float16[2, 4] b) { b = Sub (h, x) }> }""",
        w=half_weight,
    )
    check_same(model, draw(2, 4).astype(np.float16))


def test_a_float32_model_is_left_alone(build, draw):
    model = build("g (float[N, 4] x) => (float16[N, 4] y) { h = MatMul (x, w) y = Cast <to = 10> (h) }", w=draw(4, 4))
    before = model.SerializeToString()
    assert widen_float16(model) == 0
    assert model.SerializeToString() == before


def test_an_output_that_is_a_constant_keeps_its_type_too(build, draw, half_weight):
    bias = draw(4).astype(np.float16)
    model = build(
        "g (float16[N, 4] x) => (float16[N, 4] y, float16[4] b) { h = MatMul (x, w) y = Add (h, b) }",
        w=half_weight,
        b=bias,
    )
    widen_float16(model)
    onnx.checker.check_model(model, full_check=True)
    assert (Session(model).run({"x": draw(3, 4).astype(np.float16)})["b"] == bias).all()
