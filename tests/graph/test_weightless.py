from onnx import TensorProto, helper

from onnxcalib.graph import weightless
from onnxcalib.graph.weightless import (
    copy_without_initializers,
    copy_without_weights,
    held_bytes,
    replace_around_weights,
)


def test_everything_but_the_initializers_is_copied(build, draw):
    model = build("g (float[N, 4] x) => (float[N, 3] y) { [fc] y = MatMul (x, w) }", w=draw(4, 3))
    model.producer_name = "someone"
    helper.set_model_props(model, {"key": "value"})
    bare = copy_without_initializers(model)
    assert len(model.graph.initializer) == 1 and not bare.graph.initializer
    bare.graph.initializer.extend(model.graph.initializer)
    assert bare == model


def test_the_copy_is_deep(build, draw):
    model = build("g (float[N, 4] x) => (float[N, 3] y) { [fc] y = MatMul (x, w) }", w=draw(4, 3))
    copy_without_initializers(model).graph.node[0].name = "changed"
    assert model.graph.node[0].name == "fc"


def test_large_initializers_become_inputs_of_their_type_and_small_ones_stay(build, draw, monkeypatch):
    monkeypatch.setattr(weightless, "MOST_VALUE_BYTES", 40)
    model = build("g (float[N, 4] x) => (float[N, 3] y) { a = MatMul (x, w) y = Add (a, b) }", w=draw(4, 3), b=draw(3))
    light = copy_without_weights(model)
    assert [tensor.name for tensor in light.graph.initializer] == ["b"]
    assert [value.name for value in light.graph.input] == ["x", "w"]
    assert light.graph.input[1] == helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3])


def test_a_large_initializer_that_is_an_input_already_is_listed_once(build, draw, monkeypatch):
    monkeypatch.setattr(weightless, "MOST_VALUE_BYTES", 40)
    model = build("g (float[N, 4] x, float[4, 3] w) => (float[N, 3] y) { y = MatMul (x, w) }", w=draw(4, 3))
    light = copy_without_weights(model)
    assert [value.name for value in light.graph.input] == ["x", "w"]
    replace_around_weights(model, light)
    assert [value.name for value in model.graph.input] == ["x", "w"]


def test_what_was_made_of_the_copy_goes_around_the_weights_that_stayed(build, draw, monkeypatch):
    monkeypatch.setattr(weightless, "MOST_VALUE_BYTES", 40)
    model = build("g (float[N, 4] x) => (float[N, 3] y) { a = MatMul (x, w) y = Add (a, b) }", w=draw(4, 3), b=draw(3))
    model.producer_name = "before"
    wanted = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
    light = copy_without_weights(model)
    light.producer_name, light.graph.node[0].name = "after", "fc"
    replace_around_weights(model, light)
    assert {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer} == wanted
    assert [value.name for value in model.graph.input] == ["x"] and len(model.graph.node) == 2
    assert (model.producer_name, model.graph.node[0].name) == ("after", "fc")


def test_the_size_of_a_tensor_is_that_of_its_array():
    tensor = TensorProto(data_type=TensorProto.FLOAT16, dims=[3, 5])
    assert held_bytes(tensor) == 30
