import numpy as np
import pytest
from onnx import AttributeProto, TypeProto, helper, numpy_helper

from onnxcalib.errors import ModelError
from onnxcalib.graph.load import inputs_of, load_model

NET = """g (float[N, 4] x) => (float[N, 3] y) {
    [mul] h = MatMul (x, w)  [k] c = Constant <value = float[3] {1.0, 2.0, 3.0}> ()  [add] y = Add (h, c) }"""
LOOP = """g (float[2] x) => (float[2] y) { [lp] y = Loop (n, c, x) <
    body = b (int64 i, bool go, float[2] s) => (bool on, float[2] t) { on = Identity (go)  t = Add (s, s) }> }"""


@pytest.fixture
def net(build, draw):
    return build(NET, w=draw(4, 3))


def refuse(model, message):
    with pytest.raises(ModelError, match=message):
        load_model(model)


@pytest.mark.parametrize("field", ["name", "op_type", "domain", "input", "attribute", "tensor", "metadata"])
def test_texts_that_are_not_utf_8_are_refused(net, tmp_path, field):
    net.metadata_props.add(key="QQQ" if field == "metadata" else "key")
    node = net.graph.node[0]
    if field in ("name", "op_type", "domain"):
        setattr(node, field, "QQQ")
    elif field == "input":
        node.input[0] = "QQQ"
    elif field == "attribute":
        node.attribute.add(name="QQQ")
    elif field == "tensor":
        net.graph.initializer[0].name = "QQQ"
    (tmp_path / "m.onnx").write_bytes(net.SerializeToString().replace(b"QQQ", b"\xff\xfe\xfd"))
    refuse(tmp_path / "m.onnx", r"m\.onnx: a name or text that is not UTF-8 found, b'\\xff\\xfe\\xfd'")


def _make_twice(graph):
    graph.node.add(op_type="Neg", name="again", input=["x"], output=["h"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_make_twice, "tensor h is made twice, by node mul and node again"),
        (lambda g: g.node.add(op_type="Neg", name="n", input=["h"], output=["w"]), "tensor w is made twice, by init"),
        (lambda g: g.node.add(op_type="Neg", name="n", input=["h"], output=["x"]), "tensor x is made twice, as an in"),
        (lambda g: g.initializer.append(g.initializer[0]), "tensor w is made twice, by initializers and initializers"),
        (lambda g: g.input.append(g.input[0]), "input x is listed twice"),
        (lambda g: g.input.append(helper.make_tensor_value_info("", 1, [1])), "an input without a name"),
        (lambda g: g.initializer.append(numpy_helper.from_array(np.ones(1), "")), "an initializer without a name"),
        (lambda g: g.output.append(helper.make_tensor_value_info("", 1, [1])), "an output without a name"),
    ],
)  # fmt: skip
def test_names_that_are_missing_or_used_twice_are_refused(net, change, message):
    change(net.graph)
    refuse(net, message)


@pytest.mark.parametrize("kind", [0, 99, -3])
@pytest.mark.parametrize("place", ["input", "output"])
def test_unknown_element_types_are_refused(net, kind, place):
    getattr(net.graph, place)[0].type.tensor_type.elem_type = kind
    refuse(net, f"model: {place} [xy]: element type {kind} found")


def test_unknown_element_types_inside_are_refused(net):
    net.graph.value_info.append(helper.make_tensor_value_info("h", 99, [1]))
    refuse(net, "model: tensor h: element type 99 found")
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(77, [1]))
    for kind in (sequence, helper.make_optional_type_proto(sequence)):
        net.graph.value_info[0].type.CopyFrom(kind)
        refuse(net, "model: tensor h: element type 77 found")
    net.graph.value_info[0].type.CopyFrom(TypeProto(map_type=TypeProto.Map(value_type=sequence)))
    refuse(net, "model: tensor h: element type 77 found")


@pytest.mark.parametrize("size", [-2, -(2**63), 2**41])
def test_dimensions_that_no_tensor_has_are_refused(net, size):
    net.graph.input[0].type.tensor_type.shape.dim[1].dim_value = size
    refuse(net, f"model: input x: dimension {size} found; 0 to 1,099,511,627,776 are allowed")


def test_a_dimension_of_minus_1_is_one_that_is_not_fixed(net):
    for value in (net.graph.input[0], net.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    loaded = load_model(net)
    assert inputs_of(loaded)[0].shape == (None, 4)
    assert not loaded.graph.output[0].type.tensor_type.shape.dim[0].HasField("dim_value")


@pytest.mark.parametrize(
    ("op", "count", "outputs", "attributes", "message"),
    [
        ("Relu", 2, 1, {}, "model: node bad: .*Relu"),
        ("MatMul", 1, 1, {}, "model: node bad: .*MatMul"),
        ("Relu", 1, 2, {}, "model: node bad: "),
        ("Relu", 1, 1, {"surprise": 1}, "model: node bad: .*surprise"),
        ("Softmax", 1, 1, {"axis": "first"}, "model: node bad: .*axis"),
        ("Transpose", 1, 1, {"perm": 1.5}, "model: node bad: .*perm"),
        ("MaxPool", 1, 1, {}, "model: node bad: .*kernel_shape"),
        ("If", 1, 1, {}, "model: node bad: .*(then|else)_branch"),
        ("Upsample", 2, 1, {}, "model: node bad: .*deprecated"),
        ("", 1, 1, {}, "model: node bad: has no operator"),
    ],
)  # fmt: skip
def test_nodes_that_their_operator_does_not_allow_are_refused(net, op, count, outputs, attributes, message):
    inputs, names = ["x", "w"][:count], ["p", "q"][:outputs]
    net.graph.node.append(helper.make_node(op, inputs, names, "bad", **attributes))
    refuse(net, message)
    net.graph.node[-1].domain = "ai.onnx"
    refuse(net, message)


def test_an_attribute_that_is_given_twice_is_refused(net):
    net.graph.node.append(helper.make_node("Softmax", ["x"], ["p"], "bad", axis=1))
    net.graph.node[-1].attribute.append(helper.make_attribute("axis", 0))
    refuse(net, "model: node bad: .*axis")


@pytest.mark.parametrize("value", [b"\xff", [b"NOTSET", b"\xff"]])
def test_attributes_that_hold_text_other_than_utf_8_are_refused(net, value):
    net.graph.node.append(helper.make_node("MaxPool", ["x"], ["p"], "bad", kernel_shape=[1], auto_pad=value))
    refuse(net, "model: node bad: attribute auto_pad holds text that is not UTF-8")
    net.graph.node[-1].domain = "com.microsoft"  # where attributes may hold any bytes
    load_model(net)


@pytest.mark.parametrize(
    "attributes", [{}, {"value_float": 1.0, "value_int": 1}, {"value": 1.0}, {"value_ints": 1.5}, {"surprise": 1}]
)
def test_a_constant_without_one_value_is_refused(net, attributes):
    node = net.graph.node[1]
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    refuse(net, "node k: 0 inputs, 1 outputs and attributes .* found; a Constant has one output and one of value, ")


def test_nodes_inside_of_bodies_are_checked_and_may_read_what_is_outside(build, draw):
    text = """g (float[N, 4] x, bool flag) => (float[N, 4] y) { h = Neg (x)  y = If (flag) <
        then_branch = yes () => (float[N, 4] p) { [inner] p = Relu (h) },
        else_branch = no () => (float[N, 4] q) { q = MatMul (h, w) }> }"""
    model = build(text, w=draw(4, 4))
    load_model(model)
    body = next(a.g for a in model.graph.node[1].attribute if a.name == "then_branch")
    body.node[0].input.append("w")
    refuse(model, "model: node inner: ")


def test_operators_that_onnx_does_not_know_are_left_to_onnxruntime(net):
    net.graph.node.append(helper.make_node("Gelu", ["x"], ["p"], domain="com.microsoft"))
    net.graph.node.append(helper.make_node("LayerNormalization", ["x", "c"], ["q"]))
    net.opset_import[0].version = 13
    load_model(net)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_trip_count_of_one_number_is_accepted(build, shape):
    load_model(build(LOOP, n=np.full(shape, 2), c=np.array(True)))


@pytest.mark.parametrize("stored", [True, False])
def test_a_trip_count_that_is_no_single_number_is_refused(build, stored):
    model = build(LOOP, n=np.zeros(0, np.int64), c=np.array(True))
    if not stored:
        value = model.graph.initializer.pop(0)
        model.graph.node.insert(0, helper.make_node("Constant", [], ["n"], value=value))
    refuse(model, r"model: node lp: trip count n of dimensions \[0\] found; one number is needed")


def test_what_only_training_needs_is_left_out(net):
    net.training_info.add().algorithm.node.add(op_type="Nothing")
    assert not load_model(net).training_info


def test_attributes_without_a_type_are_refused(net):
    net.graph.node[0].attribute.append(AttributeProto(name="alpha", f=1.0))
    refuse(net, "model: node mul: ")


def test_metadata_that_are_given_twice_are_refused(net):
    for value in "12":
        net.metadata_props.add(key="author", value=value)
    refuse(net, "model: metadata 'author' are given twice; every key is needed once; export the model again")


def test_functions_that_grow_without_bound_are_refused(net):
    net.opset_import.add(domain="own", version=1)
    for number in range(30):
        kind = ("own", f"f{number - 1}") if number else ("", "Neg")
        nodes = [helper.make_node(kind[1], [a], [b], domain=kind[0]) for a, b in ("ab", "bc")]
        opsets = [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
        net.functions.append(helper.make_function("own", f"f{number}", ["a"], ["c"], nodes, opsets))
    net.graph.node.add(op_type="f29", domain="own", name="call", input=["y"], output=["z"])
    refuse(net, r"model: graph g: 1,073,741,827 nodes with those of its functions found; 1,000,000 are allowed")


@pytest.mark.parametrize(("count", "go"), [("", "go"), ("", ""), ("n", "go"), ("n", "")])
def test_a_loop_that_never_ends_is_refused(build, count, go):
    text = LOOP.replace("(n, c, x)", "(n, go, x)")
    model = build(text, n=np.array(2**63 - 1), go=np.array(True))
    model.graph.node[0].input[:2] = [count, go]
    refuse(model, "node lp: no trip count, and a condition that is always true found; a loop that ends is needed")


def test_loops_that_may_end_are_taken(build):
    bounded = build(LOOP.replace("(n, c, x)", "(n, go, x)"), n=np.array(3), go=np.array(True))
    load_model(bounded)
    text = LOOP.replace("on = Identity (go)", "m = ReduceSum <keepdims = 0> (s)  on = Less (m, m)").replace(
        "(n, c, x)", "(n, go, x)"
    )
    load_model(build(text, n=np.array(2**63 - 1), go=np.array(True)))
