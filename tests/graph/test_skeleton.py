from onnx import helper

from onnxcalib.graph.skeleton import copy_without_initializers


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
