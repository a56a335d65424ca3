import onnx
import pytest
from onnx import TensorProto, helper

from onnxcalib.errors import ModelError
from onnxcalib.graph import weightless as skeleton
from onnxcalib.graph.check import check_model


def test_large_weights_are_not_handed_to_the_checker(build, draw, monkeypatch):
    monkeypatch.setattr(skeleton, "MOST_VALUE_BYTES", 40)
    model = build("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", w=draw(4, 3))
    seen = []
    check = onnx.checker.check_model
    monkeypatch.setattr(
        onnx.checker, "check_model", lambda given, **options: (seen.append(given), check(given, **options))
    )
    check_model(model)
    assert [len(given.graph.initializer) for given in seen] == [0]
    assert len(model.graph.initializer) == 1


def test_shapes_that_contradict_the_operators_are_replaced(build, draw):
    model = build("g (float[2, 4] x) => (float[2, 5] y) { y = MatMul (x, w) }", w=draw(4, 3))
    check_model(model)
    assert model.graph.output[0] == helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])


def test_a_model_that_is_not_valid_is_refused(build):
    model = build("g (float[2] x) => (float[2] y) { y = Relu <surprise = 1> (x) }")
    with pytest.raises(ModelError, match=r"the quantized model fails onnx's checker: .*surprise.*; please report this"):
        check_model(model)
