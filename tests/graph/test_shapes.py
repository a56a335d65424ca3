import numpy as np
from onnx import TensorProto, helper

from onnxcalib.graph import shapes, weightless
from onnxcalib.graph.shapes import describe_outputs, infer_shapes


def test_shapes_follow_from_the_inputs_with_none_for_what_is_free(build, draw):
    model = build(
        "g (float[N, 4] x) => (float[N, 3] y) <float[7, 9] a> { a = MatMul (x, w) y = Relu (a) }", w=draw(4, 3)
    )
    assert infer_shapes(model) == {"x": (None, 4), "w": (4, 3), "a": (None, 3), "y": (None, 3)}


def test_a_wrong_shape_of_an_output_is_not_believed(build, draw):
    model = build(
        "g (float[N, 4] x) => (float[1, 4] a, float[N, 3] y) { a = Relu (x) y = MatMul (a, w) }", w=draw(4, 3)
    )
    assert infer_shapes(model)["a"] == (None, 4)
    assert describe_outputs(model) == 0 and model.graph.output[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_a_large_initializer_counts_by_its_type_alone(build, draw, monkeypatch):
    monkeypatch.setattr(weightless, "MOST_VALUE_BYTES", 64)
    model = build("g (float[N, 40] x) => (float[N, 3] y) { a = MatMul (x, w) y = Relu (a) }", ir=8, w=draw(40, 3))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [40, 3]))
    assert infer_shapes(model)["a"] == (None, 3)


def test_a_graph_that_inference_refuses_has_the_shapes_of_its_initializers(build):
    model = build("g (float[2] x) => (float[2] y) { y = Add (x, w) }", w=np.ones(2, np.float32))
    del model.opset_import[:]
    assert infer_shapes(model) == {"w": (2,)}


def test_an_output_without_a_shape_is_given_the_inferred_one(build):
    model = build("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    assert describe_outputs(model) == 1
    assert [d.dim_value or d.dim_param for d in model.graph.output[0].type.tensor_type.shape.dim] == ["N", 4]
    assert describe_outputs(model) == 0


def test_an_output_of_unknown_rank_stays_as_it_is(build):
    model = build("g (float[N] x, int64[M] s) => (float[N] y) { y = Reshape (x, s) }")
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    assert describe_outputs(model) == 0


def test_computed_shapes_are_not_followed_in_a_graph_with_vectors_that_are_too_long_for_it(build, monkeypatch):
    body = "r = Range (a, b, c)  n = Size (r)  m = Mul (n, c)  s = Unsqueeze (m, d)  y = Expand (x, s)"
    counts = {"a": np.int64(0), "b": np.int64(40), "c": np.int64(1), "d": np.array([0])}
    model = build(f"g (float[1] x) => (float[K] y) {{ {body} }}", **counts)
    assert infer_shapes(model)["y"] == (40,)
    monkeypatch.setattr(shapes, "LONGEST_VECTOR", 39)
    assert infer_shapes(model)["r"] == (40,)
    assert infer_shapes(model).get("y") in (None, (None,))


def test_a_function_that_calls_itself_has_no_shapes_that_inference_finds(build, draw):
    model = build("g (float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }")
    node = helper.make_node("again", ["a"], ["b"], domain="own")
    model.functions.append(helper.make_function("own", "again", ["a"], ["b"], [node], [helper.make_opsetid("own", 1)]))
    model.opset_import.add(domain="own", version=1)
    model.graph.node[0].op_type, model.graph.node[0].domain = "again", "own"
    assert infer_shapes(model) == {}
