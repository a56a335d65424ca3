import numpy as np
import pytest

from onnxcalib.graph.index import (
    Index,
    attribute_of,
    captured,
    constant,
    index_graphs,
    is_op,
    tensors_behind,
    walk_back,
)

BRANCHES = """
g (float[2] x, bool flag, float[2] w) => (float[2] y)
{
  [scale] a = Mul (x, w)
  [choose] y = If (flag) <
    then_branch = yes () => (float[2] p) { q = Add (a, w) p = Neg (q) },
    else_branch = no () => (float[2] r) { r = Sub (a, x) }
  >
}
"""


@pytest.fixture
def branches(build):
    return build(BRANCHES, w=np.array([3.0, 4.0], np.float32))


def test_each_tensor_is_found_with_its_producer_and_its_readers(branches):
    index = Index(branches.graph)
    assert index.producer["a"].name == "scale"
    assert index.producer["y"].name == "choose"
    assert [node.name for node in index.consumers["a"]] == ["choose"]
    assert index.readers("y") == []
    assert index.position == {"scale": 0, "choose": 1}


def test_initializers_are_no_inputs_even_where_the_file_lists_them(branches):
    index = Index(branches.graph)
    assert index.inputs == ["x", "flag"]
    assert index.outputs == ["y"]
    assert list(index.initializers) == ["w"]


def test_what_a_subgraph_captures_has_its_node_as_a_reader(branches):
    index = Index(branches.graph)
    assert captured(branches.graph.node[1]) == {"a", "w", "x"}
    assert [node.name for node in index.consumers["w"]] == ["scale", "choose"]


def test_nested_subgraphs_capture_only_what_no_graph_around_them_makes(build):
    model = build(
        """
        g (float[2] x, bool flag) => (float[2] y)
        {
          y = If (flag) <
            then_branch = yes () => (float[2] p) {
              near = Abs (x)
              p = If (flag) <
                then_branch = inner () => (float[2] q) { q = Add (near, x) },
                else_branch = other () => (float[2] s) { s = Neg (near) }
              >
            },
            else_branch = no () => (float[2] r) { r = Neg (x) }
          >
        }
        """
    )
    assert captured(model.graph.node[0]) == {"x", "flag"}


def test_a_body_knows_what_it_can_read_from_outside(branches):
    graphs = list(index_graphs(branches.graph))
    assert [graph.name for graph, _ in graphs] == ["g", "yes", "no"]
    outer, inner, _ = (index for _, index in graphs)
    assert constant(inner, "w") is not None and inner.producer["a"].name == "scale"
    assert "p" not in outer.producer and [node.op_type for node in inner.readers("a")] == ["Add"]


def test_a_body_does_not_know_what_its_own_names_hide(build):
    """An input of a Scan's body may have the name of a tensor outside in files of some tools."""
    body = "turn (float[4] w) => (float[4] out) { a = Neg (w) out = Abs (a) }"
    nodes = f"a = Add (x, w) y = Scan <num_scan_inputs = 1, body = {body}> (a)"
    model = build(f"g (float[3, 4] x) => (float y) {{ {nodes} }}", w=np.ones(4, np.float32))
    _, (_, inner) = index_graphs(model.graph)
    assert constant(inner, "w") is None and inner.producer["a"].op_type == "Neg"


def test_a_node_that_reads_a_tensor_twice_is_listed_once(build):
    index = Index(build("g (float[2] x) => (float[2] y) { [square] y = Mul (x, x) }").graph)
    assert [node.name for node in index.consumers["x"]] == ["square"]


def test_the_value_of_an_initializer_is_an_array_and_other_tensors_have_none(branches):
    index = Index(branches.graph)
    np.testing.assert_array_equal(constant(index, "w"), np.array([3.0, 4.0], np.float32))
    assert constant(index, "a") is None
    assert constant(index, "nothing") is None


def test_an_operator_of_another_domain_is_not_the_standard_one(branches):
    node = branches.graph.node[0]
    assert is_op(node, "Add", "Mul") and not is_op(node, "Add")
    node.domain = "com.example"
    assert not is_op(node, "Mul")


def test_an_attribute_left_out_has_the_default(build):
    node = build("g (float[2, 2] x) => (float[2, 2] y) { y = Gemm <alpha = 2.0> (x, x) }").graph.node[0]
    assert attribute_of(node, "alpha", 1.0) == 2.0
    assert attribute_of(node, "beta", 1.0) == 1.0


def test_a_walk_back_meets_each_node_once_and_none_behind_an_end(build):
    model = build(
        """g (float[4] x) => (float[4] y) {
            [far] a = Neg (x)  [end] b = Abs (a)  [parts] c, d = Split <axis = 0> (b)  [one] e = Sqrt (c)
            [join] f = Concat <axis = 0> (e, d)  [last] y = Add (f, x) }"""
    )
    index = Index(model.graph)
    found = [node.name for node in walk_back(index, ["y", "f"], lambda node: node.op_type == "Abs")]
    assert sorted(found) == ["end", "join", "last", "one", "parts"]


def test_what_lies_behind_nodes_is_what_they_make_and_all_that_is_made_of_it(branches, build):
    assert tensors_behind(Index(branches.graph), ["scale"]) == {"a", "y"}
    model = build("g (float[2] x) => (float[2] y, float[2] z) { [a] p = Abs (x) [b] y = Neg (p) [c] z = Neg (x) }")
    assert tensors_behind(Index(model.graph), ["b", "c"]) == {"y", "z"}
