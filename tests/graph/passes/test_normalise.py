import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, checker, helper, numpy_helper, parser

from onnxcalib.errors import ModelError
from onnxcalib.graph import weightless
from onnxcalib.graph.edit import copy_model, drop_dead, refill, unused_name
from onnxcalib.graph.index import all_nodes, reads
from onnxcalib.graph.passes.normalise import (
    drop_identities,
    drop_initializer_inputs,
    drop_traces,
    inline_functions,
    lift_constants,
    name_nodes,
    normalise,
    sort_nodes,
    spell_domain,
    tidy,
)
from tests.graph.strategies import SHAPE, models, whole_numbers
from tests.small_models import run_model


def ops(model):
    return [node.op_type for node in model.graph.node]


def test_the_spelled_out_standard_domain_becomes_the_empty_one(build):
    model = build("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    model.opset_import[0].domain = "ai.onnx"
    model.graph.node[0].domain = "ai.onnx"
    assert spell_domain(model) == 2
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.graph.node[0].domain == ""
    assert spell_domain(model) == 0


def test_functions_are_inlined_and_compute_the_same(run):
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (float[2] x) => (float[2] y) { y = mine.twice (x) }
        <domain: "mine", opset_import: ["" : 17]>
        twice (a) => (b) { b = Add (a, a) }
        """
    )
    x = np.array([1.0, -3.0], np.float32)
    assert inline_functions(model) == 1
    assert ops(model) == ["Add"] and not model.functions
    np.testing.assert_array_equal(run(model, x)[0], x + x)
    assert inline_functions(model) == 0


def test_large_weights_are_not_handed_to_the_inliner(run, draw, monkeypatch):
    monkeypatch.setattr(weightless, "MOST_VALUE_BYTES", 40)
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (float[N, 4] x) => (float[N, 3] y) { y = mine.layer (x, w, b) }
        <domain: "mine", opset_import: ["" : 17]>
        layer (a, v, c) => (d) { p = MatMul (a, v) d = Add (p, c) }
        """
    )
    w, b, x = draw(4, 3), draw(3), draw(2, 4)
    model.graph.initializer.extend([numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")])
    seen = []
    inline = onnx.inliner.inline_local_functions
    monkeypatch.setattr(onnx.inliner, "inline_local_functions", lambda given: (seen.append(given), inline(given))[1])
    assert inline_functions(model) == 1
    assert [[tensor.name for tensor in given.graph.initializer] for given in seen] == [["b"]]
    assert ops(model) == ["MatMul", "Add"] and [value.name for value in model.graph.input] == ["x"]
    np.testing.assert_allclose(run(model, x)[0], x @ w + b, rtol=1e-5)


def test_attributes_that_a_call_leaves_out_have_the_defaults_of_the_function(run):
    model = parser.parse_model(
        """
        <ir_version: 9, opset_import: ["" : 17, "mine" : 1]>
        g (float[2] x) => (float[2] y) { z = mine.outer (x)  y = mine.leak <alpha = 0.5> (z) }
        <domain: "mine", opset_import: ["" : 17, "mine" : 1]>
        outer (a) => (b) { b = mine.leak (a) }
        <domain: "mine", opset_import: ["" : 17]>
        leak <alpha: float = 0.25> (a) => (b) { b = LeakyRelu <alpha: float = @alpha> (a) }
        """
    )
    x = np.array([1.0, -8.0], np.float32)
    wanted = run(model, x)[0]
    assert inline_functions(model) == 2
    assert wanted.tolist() == run(model, x)[0].tolist() == [1, -1]


def test_functions_that_call_each_other_in_a_cycle_are_refused():
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (float[2] x) => (float[2] y) { y = mine.again (x) }
        <domain: "mine", opset_import: ["" : 17, "mine" : 1]>
        again (a) => (b) { c = mine.again (a) b = Neg (c) }
        """
    )
    with pytest.raises(ModelError, match=r"graph g: its 1 functions cannot be inlined \(Cycle detected"):
        inline_functions(model)


def test_a_function_written_for_another_opset_stays_a_function():
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (float[2] x) => (float[2] y) { y = mine.old (x) }
        <domain: "mine", opset_import: ["" : 9]>
        old (a) => (b) { b = Neg (a) }
        """
    )
    assert inline_functions(model) == 0
    assert len(model.functions) == 1


def test_initializers_are_taken_off_the_inputs_and_the_version_allows_it(build):
    model = build("g (float[2] x, float[2] w) => (float[2] y) { y = Add (x, w) }", ir=3, w=np.ones(2, np.float32))
    assert drop_initializer_inputs(model) == 1
    assert [value.name for value in model.graph.input] == ["x"]
    assert model.ir_version == 4


def test_nodes_out_of_order_are_sorted(build):
    model = build("g (float[2] x) => (float[2] y) { a = Relu (x) b = Neg (a) y = Abs (b) }")
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])
    assert sort_nodes(model) == 2
    assert ops(model) == ["Relu", "Neg", "Abs"]
    assert sort_nodes(model) == 0


def test_a_cycle_is_refused_with_a_node_of_it(build):
    model = build("g (float[2] x) => (float[2] y) { [one] a = Add (x, b) [two] b = Relu (a) y = Abs (b) }")
    with pytest.raises(ModelError, match="node one: is part of a cycle"):
        sort_nodes(model)


def test_constants_of_every_kind_become_initializers(build):
    model = build(
        """
        g (float[2] x) => (float[2] y)
        {
          a = Constant <value = float[2] {1, 2}> ()
          b = Constant <value_float = 3.0> ()
          c = Constant <value_ints = [4, 5]> ()
          s = Constant <value_string = "text"> ()
          d = Add (x, a)
          y = Mul (d, b)
        }
        """
    )
    assert lift_constants(model) == 4
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(values["a"], np.array([1, 2], np.float32))
    assert values["b"].dtype == np.float32 and values["b"].shape == () and values["b"] == 3
    assert values["c"].dtype == np.int64 and list(values["c"]) == [4, 5]
    assert values["s"].item() in ("text", b"text")
    assert ops(model) == ["Add", "Mul"]


def test_a_constant_that_is_an_output_or_sparse_stays_a_node(build):
    model = build("g () => (float[1] y) { y = Constant <value = float[1] {1}> () }")
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("i", TensorProto.INT64, [1], [0]),
        [4],
    )
    model.graph.node.append(helper.make_node("Constant", [], ["z"], sparse_value=sparse))
    assert lift_constants(model) == 0
    assert ops(model) == ["Constant", "Constant"]


def test_every_node_gets_a_name_of_its_own_and_the_first_holder_keeps_it(build):
    model = build("g (float[2] x) => (float[2] y) { [n] a = Relu (x) [n] b = Neg (a) [n_1] c = Abs (b) y = Relu (c) }")
    assert name_nodes(model) == 2
    assert [node.name for node in model.graph.node] == ["n", "n_2", "n_1", "Relu_y"]
    assert name_nodes(model) == 0


def test_nodes_of_bodies_get_names_that_the_whole_model_has_once(build):
    model = build(
        """g (float[2] x, bool c) => (float[2] y) { [a] h = Neg (x) Abs_k = Neg (x) [b] y = If (c) <
            then_branch = t () => (float[2] p) { [a] k = Abs (h) p = Neg (k) },
            else_branch = e () => (float[2] q) { [inner] k = Abs (h) q = Neg (k) }> }"""
    )
    assert name_nodes(model) == 4
    names = [node.name for node in all_nodes(model.graph)]
    assert names == ["a", "Neg_Abs_k", "b", "a_1", "Neg_p", "inner", "Neg_q"]


def test_an_unused_name_is_the_wish_if_it_is_free():
    assert unused_name("a", {"b"}) == "a"
    assert unused_name("a", {"a", "a_1"}) == "a_2"


def test_identity_and_dropout_go_and_the_output_keeps_its_name(build, run):
    model = build(
        """
        g (float[2] x) => (float[2] y)
        { a = Relu (x) b = Identity (a) c, mask = Dropout (b) d = Neg (c) e = Identity (d) y = Identity (e) }
        """
    )
    x = np.array([1.0, -1.0], np.float32)
    before = run(model, x)[0]
    assert drop_identities(model) == 4
    assert ops(model) == ["Relu", "Neg"]
    assert list(model.graph.node[1].input) == ["a"] and list(model.graph.node[1].output) == ["y"]
    np.testing.assert_array_equal(run(model, x)[0], before)


def test_a_tensor_that_takes_an_outputs_name_is_renamed_for_its_other_readers_too(build, run):
    model = build(
        "g (float[2] x) => (float[2] y, float[2] z) { a = Relu (x) b = Identity (a) y = Identity (b) z = Neg (b) }"
    )
    x = np.array([1.0, -1.0], np.float32)
    before = run(model, x)
    assert drop_identities(model) == 2
    assert ops(model) == ["Relu", "Neg"]
    np.testing.assert_array_equal(run(model, x), before)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2] x) => (float[2] y) { y = Identity (x) }",
        "g (float[2] x) => (float[2] a, float[2] y) { a = Relu (x) y = Identity (a) }",
        "g (float[2] x) => (float[2] y, bool[2] m) { a = Relu (x) b, m = Dropout (a) y = Neg (b) }",
        "g (float[2] x, bool t) => (float[2] y) { a = Relu (x) b = Dropout (a, , t) y = Neg (b) }",
    ],
    ids=["input to output", "between outputs", "mask used", "training"],
)
def test_an_identity_or_dropout_that_a_rename_cannot_replace_stays(build, text):
    model = build(text)
    before = ops(model)
    assert drop_identities(model) == 0
    assert ops(model) == before


def test_a_dropout_whose_training_mode_is_constantly_off_goes(build):
    model = build("g (float[2] x) => (float[2] y) { a = Relu (x) b = Dropout (a, , t) y = Neg (b) }", t=np.array(False))
    assert drop_identities(model) == 1
    model = build("g (float[2] x) => (float[2] y) { a = Relu (x) b = Dropout (a, , t) y = Neg (b) }", t=np.array(True))
    assert drop_identities(model) == 0


def test_an_identity_whose_tensor_a_branch_captures_stays(build):
    model = build(
        """
        g (float[2] x, bool flag) => (float[2] y)
        {
          a = Relu (x)
          b = Identity (a)
          y = If (flag) <
            then_branch = yes () => (float[2] p) { p = Neg (b) },
            else_branch = no () => (float[2] q) { q = Abs (b) }
          >
        }
        """
    )
    assert drop_identities(model) == 0


def test_dead_nodes_unread_initializers_and_their_shapes_go(build):
    model = build(
        "g (float[2] x) => (float[2] y) <float[2] b> { y = Relu (x) a = Neg (x) b = Add (a, w) }",
        w=np.ones(2, np.float32),
    )
    assert drop_dead(model) == 3
    assert ops(model) == ["Relu"] and not model.graph.initializer and not model.graph.value_info
    assert drop_dead(model) == 0


def test_what_only_a_branch_reads_is_alive(build):
    model = build(
        """
        g (bool flag) => (float[2] y)
        {
          a = Neg (w)
          y = If (flag) <
            then_branch = yes () => (float[2] p) { p = Neg (a) },
            else_branch = no () => (float[2] q) { q = Abs (a) }
          >
        }
        """,
        w=np.ones(2, np.float32),
    )
    assert drop_dead(model) == 0


def test_all_passes_together_count_what_they_did_and_change_no_output(build, run, draw):
    model = build(
        """
        g (float[2, 3] x, float[3, 3] w) => (float[2, 3] y)
        { k = Constant <value_float = 2.0> () a = MatMul (x, w) b = Identity (a) dead = Neg (b) y = Mul (b, k) }
        """,
        ir=4,
        w=draw(3, 3),
    )
    x = draw(2, 3)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    expected = x @ weight * 2
    assert normalise(model) == {
        "spell_domain": 0,
        "inline_functions": 0,
        "name_draws": 0,
        "drop_initializer_inputs": 1,
        "sort_nodes": 0,
        "lift_constants": 1,
        "drop_identities": 1,
        "drop_dead": 1,
        "name_nodes": 2,
        "drop_traces": 0,
        "describe_outputs": 0,
    }
    np.testing.assert_allclose(run(model, x)[0], expected, rtol=1e-5, atol=1e-6)


def test_stack_traces_of_the_exporter_are_left_out_in_bodies_too_and_no_other_entry(build):
    bodies = "then_branch = t () => (float[2] a) { a = Neg (x) }, else_branch = e () => (float[2] b) { b = Abs (x) }"
    model = build(f"g (bool c, float[2] x) => (float[2] y) {{ y = If (c) <{bodies}> }}")
    node = model.graph.node[0]
    for each in (node, node.attribute[0].g.node[0]):
        for key in ("pkg.torch.onnx.stack_trace", "namespace"):
            each.metadata_props.add(key=key, value="here")
    assert drop_traces(model) == 2 and drop_traces(model) == 0
    assert [entry.key for entry in (*node.metadata_props, *node.attribute[0].g.node[0].metadata_props)] == [
        "namespace"
    ] * 2


def test_sorting_takes_linear_work_in_the_worst_order(build, count_lines):
    def work(count):
        chain = " ".join(f"t{i + 1} = Neg (t{i})" for i in range(count))
        model = build(f"g (float[N] x) => (float[N] y) {{ t0 = Neg (x) {chain} y = Neg (t{count}) }}")
        nodes = [node.SerializeToString() for node in model.graph.node]
        del model.graph.node[:]
        for node in reversed(nodes):
            model.graph.node.add().ParseFromString(node)
        lines = count_lines(lambda: sort_nodes(model))
        assert [node.SerializeToString() for node in model.graph.node] == nodes
        return lines

    assert work(80) < 2.2 * work(40)


@st.composite
def spellings(draw):
    """A model, and another way to write it: nodes in any order, some of one name, constants among the inputs."""
    model = draw(models())
    other = copy_model(model)
    refill(other.graph.node, draw(st.permutations(list(model.graph.node))))
    for node in other.graph.node:
        node.name = draw(st.sampled_from(("", "a", "b")))
        node.domain = draw(st.sampled_from(("", "ai.onnx")))
    if draw(st.booleans()):
        other.opset_import[0].domain = "ai.onnx"
    for tensor in draw(st.lists(st.sampled_from(list(other.graph.initializer)), unique_by=lambda each: each.name)):
        other.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    return model, other


@settings(max_examples=60, deadline=None)
@given(both=spellings(), x=whole_numbers(SHAPE, 3))
def test_all_spellings_of_a_model_become_one_form_that_computes_the_same(both, x):
    model, other = both
    before = run_model(model, x)
    normalise(other)
    checker.check_model(other, full_check=True)
    assert [value.name for value in other.graph.input] == ["x"]
    assert other.graph.output == model.graph.output
    for one, same in zip(before, run_model(other, x), strict=True):
        np.testing.assert_array_equal(one, same)
    names = [node.name for node in other.graph.node]
    assert all(names) and len(set(names)) == len(names)
    given_ = {"x", *(tensor.name for tensor in other.graph.initializer)}
    for node in other.graph.node:
        assert given_.issuperset(reads(node)) and node.op_type != "Constant"
        given_.update(node.output)
    once = other.SerializeToString()
    assert not any(normalise(other).values()) and other.SerializeToString() == once
    assert tidy(other).SerializeToString() == once
