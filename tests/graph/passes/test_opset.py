import numpy as np
import pytest
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper, version_converter

from onnxcalib.errors import ModelError
from onnxcalib.graph import weightless
from onnxcalib.graph.index import all_nodes
from onnxcalib.graph.passes.opset import opset_of, raise_opset


@pytest.fixture
def conv_then(draw):
    """A model of Conv and one more node in the old style: initializers among the inputs, output without a shape."""

    def make(op: str, opset: int, *operands: np.ndarray, **attributes) -> ModelProto:
        values = {"w": draw(6, 6, 3, 3)} | {f"k{i}": np.asarray(value) for i, value in enumerate(operands)}
        tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node(op, ["c", *list(values)[1:]], ["y"], name="last", **attributes),
        ]
        listed = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6, 8, 8]), *listed]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
        graph = helper.make_graph(nodes, "old", inputs, outputs, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)
        helper.set_model_props(model, {"author": "someone"})
        return model

    return make


def raised(model: ModelProto, least: int) -> ModelProto:
    """A copy at opset ``least``, which the model is below."""
    copy = ModelProto()
    copy.CopyFrom(model)
    assert raise_opset(copy, least)
    return copy


ONES = np.ones(6, np.float32)
CASES = [
    ("Relu", 7, (), {}),
    ("MaxPool", 7, (), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", 7, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("Dropout", 7, (), {"ratio": 0.3}),
    ("Dropout", 9, (), {}),
    ("BatchNormalization", 7, (ONES * 2, ONES, ONES * 3, ONES * 4), {"epsilon": 1e-3}),
    ("BatchNormalization", 9, (ONES * 2, ONES, ONES * 3, ONES * 4), {}),
    ("Reshape", 7, (np.array([0, -1]),), {}),
    ("Upsample", 7, (), {"mode": "nearest", "scales": [1.0, 1.0, 1.5, 2.0]}),
    ("Upsample", 9, (np.array([1, 1, 1.5, 1.7], np.float32),), {"mode": "nearest"}),
    ("Upsample", 9, (np.array([1, 1, 2, 3], np.float32),), {"mode": "linear"}),
    ("Resize", 10, (np.array([1, 1, 1.5, 1.7], np.float32),), {"mode": "nearest"}),
    ("Resize", 10, (np.array([1, 1, 0.5, 0.6], np.float32),), {"mode": "nearest"}),
    ("Resize", 10, (np.array([1, 1, 2, 2], np.float32),), {"mode": "linear"}),
    ("Clip", 7, (), {"min": 0.0, "max": 6.0}),
    ("Pad", 9, (), {"pads": [0, 0, 1, 1, 0, 0, 2, 2], "mode": "constant", "value": 0.5}),
    ("Pad", 9, (), {"pads": [0, 0, 1, 1, 0, 0, 2, 2], "mode": "reflect", "value": 0.0}),
    ("Softmax", 9, (), {}),
    ("ReduceMean", 9, (), {"axes": [2, 3], "keepdims": 0}),
    ("Unsqueeze", 11, (), {"axes": [0]}),
]


@pytest.mark.parametrize("least", [13, 21])
@pytest.mark.parametrize(("op", "opset", "operands", "attributes"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_a_raised_model_computes_the_same(conv_then, run, draw, op, opset, operands, attributes, least):
    old = conv_then(op, opset, *operands, **attributes)
    x = draw(2, 6, 8, 8)
    before = run(old, x)[0]
    new = raised(old, least)
    assert opset_of(new) == least
    checker.check_model(new, full_check=True)
    after = run(new, x)[0]
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("op", "opset", "operands", "attributes"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_large_weights_are_not_handed_to_the_converter(
    conv_then, run, draw, monkeypatch, op, opset, operands, attributes
):
    monkeypatch.setattr(weightless, "MOST_VALUE_BYTES", 1000)
    old, x, seen = conv_then(op, opset, *operands, **attributes), draw(2, 6, 8, 8), []

    def spy(module, name: str) -> None:
        call = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda given, *rest, **more: (seen.append(given), call(given, *rest, **more))[1]
        )

    spy(version_converter, "convert_version")
    spy(checker, "check_model")
    new = raised(old, 21)
    assert len(seen) == 2
    assert not any(tensor.name == "w" for given in seen for tensor in given.graph.initializer)
    assert [value.name for value in new.graph.input] == ["x"]
    monkeypatch.undo()
    checker.check_model(new, full_check=True)
    np.testing.assert_allclose(run(new, x)[0], run(old, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("op", "opset", "scale"), [("Upsample", 9, 1.5), ("Resize", 10, 0.5)])
def test_resizes_inside_a_graph_keep_their_meaning_and_their_tensors(build, run, draw, op, opset, scale):
    text = f"""g (float[1, 2, 4, 4] x, bool flag) => (float[1, 2, 8, 8] y, float[1, 2, M, M] z) {{
        a = {op} (x, two)  b = Relu (a)  c = {op} <mode = "linear"> (b, other)  z = Neg (c)
        y = If (flag) <
            then_branch = yes () => (float[1, 2, 8, 8] p) {{ p = Neg (a) }},
            else_branch = no () => (float[1, 2, 8, 8] q) {{ n = Neg (x)  r = {op} (n, two)  q = Add (r, a) }}
        >
    }}"""
    scales = {"two": np.float32([1, 1, 2, 2]), "other": np.float32([1, 1, scale, scale])}
    old = build(text, opset=opset, ir=4, **scales)
    new = raised(old, 13)
    made = {name for node in all_nodes(new.graph) for name in node.output}
    assert {name for node in all_nodes(old.graph) for name in node.output} <= made
    for flag in (True, False):
        feeds = draw(1, 2, 4, 4), np.array(flag)
        for given, wanted in zip(run(new, *feeds), run(old, *feeds), strict=True):
            np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)


def test_names_inputs_outputs_and_metadata_survive(conv_then):
    old = conv_then("Upsample", 7, mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])
    new = raised(old, 13)
    assert [node.name for node in new.graph.node] == ["conv", "last"]
    assert [value.name for value in new.graph.input] == ["x"]
    assert [value.name for value in new.graph.output] == ["y"]
    assert {entry.key: entry.value for entry in new.metadata_props} == {"author": "someone"}
    assert new.graph.name == "old"


@pytest.mark.parametrize(("least", "version"), [(13, 7), (21, 10)])
def test_the_representation_is_one_that_knows_the_opset(conv_then, least, version):
    assert raised(conv_then("Relu", 9), least).ir_version == version


def test_a_model_that_is_new_enough_stays_as_it_is(build):
    model = build("g (float[2] x) => (float[2] y) { y = Relu (x) }", opset=17)
    before = model.SerializeToString()
    assert not raise_opset(model, 13)
    assert model.SerializeToString() == before


def test_recorded_shapes_that_contradict_the_operators_are_no_obstacle(conv_then, run, draw):
    model, x = conv_then("Relu", 9), draw(2, 6, 8, 8)
    wanted = run(model, x)[0]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6, 9, 9]))
    assert raise_opset(model, 13)
    np.testing.assert_array_equal(run(model, x)[0], wanted)


def test_other_domains_keep_their_version(conv_then):
    old = conv_then("Relu", 9)
    old.opset_import.append(helper.make_opsetid("com.example", 3))
    new = raised(old, 13)
    assert {entry.domain: entry.version for entry in new.opset_import} == {"": 13, "com.example": 3}


def test_an_operator_that_cannot_be_converted_is_refused_with_the_reason(conv_then):
    old = conv_then("Upsample", 9, np.array([1, 1, 2, 2], np.float32), mode="nearest")
    old.graph.node[1].op_type = "Strange"
    with pytest.raises(ModelError, match=r"graph old: opset 9 cannot be raised to 13 \(.*Strange.*; opset 13 or newer"):
        raise_opset(old, 13)


def test_a_converted_model_that_is_not_valid_is_refused_with_the_reason(conv_then, draw):
    old = conv_then("Relu", 9)
    old.graph.node[1].attribute.append(helper.make_attribute("surprise", 1))
    with pytest.raises(ModelError, match=r"graph old: opset 9 cannot be raised to 13 \(.*surprise"):
        raise_opset(old, 13)


@pytest.mark.parametrize("least", [13, 21])
@pytest.mark.parametrize("flag", [True, False])
def test_bodies_are_raised_too_nested_ones_and_what_they_capture_included(build, run, draw, least, flag):
    old = build(
        """
        g (float[2,3] x, bool flag) => (float[2,3] y, float[2,3] z)
        {
          k = Softmax (x)
          chosen = If (flag) <
            then_branch = yes () => (float[2,3] p) { s = ReduceSum <axes = [1]> (k) p = Add (s, x) },
            else_branch = no () => (float[2,3] q) {
              t = Softmax <axis = 0> (x)
              q = If (flag) <
                then_branch = no () => (float[2,3] r) { r = Softmax <axis = 0> (k) },
                else_branch = no () => (float[2,3] w) {
                  u = Unsqueeze <axes = [0]> (t)
                  v = Squeeze <axes = [0]> (u)
                  w = Clip (v, low)
                }
              >
            }
          >
          y = Softmax <axis = 0> (chosen)
          z = Loop (n, go, k) <
            body = again (int64 i, bool more, float[2,3] a) => (bool on, float[2,3] b) {
              on = Identity (more)
              c = Softmax <axis = 0> (a)
              b = Sub (c, x)
            }
          >
        }
        """,
        opset=11,
        low=np.float32(0.2),
        n=np.int64(3),
        go=np.bool_(True),
    )
    feeds = draw(2, 3), np.array(flag)
    before = run(old, *feeds)
    new = raised(old, least)
    assert opset_of(new) == least
    checker.check_model(new, full_check=True)
    for given, wanted in zip(run(new, *feeds), before, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-6)


def test_an_operator_in_a_body_that_cannot_be_converted_is_refused_with_the_reason(build):
    old = build(
        """
        g (float[2] x, bool flag) => (float[2] y)
        {
          y = If (flag) <
            then_branch = yes () => (float[2] p) { p = Strange (x) },
            else_branch = no () => (float[2] q) { q = Abs (x) }
          >
        }
        """,
        opset=11,
    )
    with pytest.raises(ModelError, match=r"graph g: opset 11 cannot be raised to 13 \(.*Strange"):
        raise_opset(old, 13)


def test_a_nearest_resize_that_shrinks_and_stretches_is_refused(conv_then):
    old = conv_then("Resize", 10, np.array([1, 1, 0.5, 2], np.float32), mode="nearest")
    with pytest.raises(ModelError, match="node last: a nearest Resize that shrinks one axis and stretches another"):
        raise_opset(old, 13)
