import onnx
import pytest
from onnx import TensorProto, helper

from onnxcalib.errors import ModelError
from onnxcalib.graph import weightless
from onnxcalib.graph.check import check_model, correct_shapes


def test_large_weights_are_not_handed_to_the_checker(build, draw, monkeypatch):
    monkeypatch.setattr(weightless, "MOST_VALUE_BYTES", 40)
    model = build("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", w=draw(4, 3))
    seen = []
    check = onnx.checker.check_model
    monkeypatch.setattr(
        onnx.checker, "check_model", lambda given, **options: (seen.append(given), check(given, **options))
    )
    check_model(model)
    assert [len(given.graph.initializer) for given in seen] == [0]
    assert len(model.graph.initializer) == 1


@pytest.fixture
def contradicting(build, draw):
    """A model that records 5 columns for an output of 3, and a shape for a tensor inside."""
    model = build("g (float[2, 4] x) => (float[2, 5] y) { a = Relu (x) y = MatMul (a, w) }", w=draw(4, 3))
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [2, 4]))
    return model


def test_a_check_changes_nothing(contradicting):
    before = contradicting.SerializeToString(deterministic=True)
    with pytest.raises(ModelError, match=r"the quantized model fails onnx's checker: .*; one that onnx accepts is"):
        check_model(contradicting)
    assert contradicting.SerializeToString(deterministic=True) == before


def test_shapes_that_contradict_the_operators_are_replaced(contradicting):
    assert correct_shapes(contradicting)
    assert contradicting.graph.output[0] == helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    check_model(contradicting)


def test_shapes_that_agree_with_the_operators_stay(contradicting):
    contradicting.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    before = contradicting.SerializeToString(deterministic=True)
    assert not correct_shapes(contradicting)
    assert contradicting.SerializeToString(deterministic=True) == before


def test_a_model_that_is_not_valid_is_refused(build):
    model = build("g (float[2] x) => (float[2] y) { y = Relu <surprise = 1> (x) }")
    with pytest.raises(
        ModelError, match=r"the quantized model fails onnx's checker: .*surprise.*; one that onnx accepts is"
    ):
        check_model(model)


BRANCH = """g (float[2, 4] x, bool flag) => (float[2, 4] y) { y = If (flag) <
    then_branch = a () => (float[2, 9] p) { p = Relu (x) }, else_branch = b () => (float[2, 4] q) { q = Neg (x) }> }"""


def test_shapes_that_contradict_the_operators_inside_of_bodies_are_dropped(build):
    model = build(BRANCH)
    with pytest.raises(ModelError, match="fails onnx's checker"):
        check_model(model)
    assert correct_shapes(model)
    check_model(model)


@pytest.mark.parametrize("place", ["input", "output"])
def test_inputs_and_outputs_of_unknown_rank_are_accepted(build, draw, place):
    model = build("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", w=draw(4, 3))
    getattr(model.graph, place)[0].type.tensor_type.ClearField("shape")
    check_model(model)
    model.graph.node[0].input.pop()
    with pytest.raises(ModelError, match="fails onnx's checker"):
        check_model(model)


def test_an_output_without_a_type_is_accepted(build):
    model = build("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    model.graph.output[0].ClearField("type")
    check_model(model)
