import numpy as np
import pytest
from onnx import TensorProto, checker, helper

from onnxcalib.graph.extract import extract, infer_types, needed_inputs, needed_nodes
from onnxcalib.graph.index import Index

BODY = """g (float[N, 4, 8, 8] x, bool flag) => (float[N, 4, 8, 8] y) {
    [a] c = Conv (x, w1)  [b] r = Relu (c)  [d] d = Conv (r, w2)  [e] s = Add (d, r)  [f] y = Neg (s)
}"""


@pytest.fixture
def model(build, draw):
    return build(BODY, w1=draw(4, 4, 1, 1), w2=draw(4, 4, 1, 1))


def test_a_part_gives_what_the_whole_gives(model, run, draw):
    part = extract(model, infer_types(model), inputs=["r"], outputs=["s"])
    checker.check_model(part, full_check=True)
    assert [n.name for n in part.graph.node] == ["d", "e"]
    assert [t.name for t in part.graph.initializer] == ["w2"]
    x = draw(2, 4, 8, 8)
    front = extract(model, infer_types(model), inputs=["x"], outputs=["r"])
    (r,) = run(front, x)
    np.testing.assert_allclose(run(part, r)[0], -run(model, x, np.array(True))[0], rtol=1e-5, atol=1e-6)


def test_named_nodes_alone_are_taken(model):
    part = extract(model, infer_types(model), nodes=["d"], inputs=["r"], outputs=["d"])
    assert [n.name for n in part.graph.node] == ["d"]


def test_the_source_is_not_shared_with_the_part(model):
    part = extract(model, infer_types(model), inputs=["x"], outputs=["r"])
    part.graph.node[0].name = "other"
    part.graph.initializer[0].name = "other"
    assert model.graph.node[0].name == "a" and model.graph.initializer[0].name == "w1"


def test_needed_nodes_go_back_no_further_than_the_inputs(model):
    index = Index(model.graph)
    assert needed_nodes(index, ["r"], ["s"]) == {"d", "e"}
    assert needed_nodes(index, [], ["r"]) == {"a", "b"}
    assert needed_nodes(index, ["r"], ["r"]) == set()


def test_types_are_inferred_and_recorded_ones_fill_the_gaps(build):
    model = build(
        """g (float[N, 4] x) => (float[N, 2] y)
           <float[N, 9] a, int64[3] u> {
               a = Relu (x)  u = com.example.Op (x)  s = Shape (a)  y = com.example.Op (u, s) }"""
    )
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    types = infer_types(model)
    dims = types["a"].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["N", 4]
    assert types["s"].type.tensor_type.elem_type == TensorProto.INT64
    assert types["u"].type.tensor_type.elem_type == TensorProto.INT64


def test_a_part_that_starts_at_an_output_of_wrong_shape_takes_what_the_tensor_is(build, run, draw):
    model = build("g (float[N, 4] x) => (float[1, 4] a, float[N, 4] y) { [a] a = Relu (x) [b] y = Neg (a) }")
    a = draw(3, 4)
    np.testing.assert_array_equal(run(extract(model, infer_types(model), inputs=["a"], outputs=["y"]), a)[0], -a)


def test_what_nothing_knows_is_a_float_input_or_an_open_output(build):
    model = build("g (float[N] x) => (float[M] y) { [a] u = com.example.Op (x) [b] v = Relu (u) [d] y = Neg (v) }")
    part = extract(model, {}, inputs=["u"], outputs=["v"])
    assert part.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert not part.graph.input[0].type.tensor_type.HasField("shape")
    assert not part.graph.output[0].HasField("type")


def test_what_a_subgraph_captures_comes_along(build, run, draw):
    model = build(
        """g (float[N, 4] x, bool flag) => (float[N, 4] z) {
            [a] c = MatMul (x, w)
            [if] z = If (flag) <then_branch = g1 () => (float[N, 4] u) { u = Add (c, k) },
                                else_branch = g2 () => (float[N, 4] v) { v = Neg (c) }> }""",
        w=draw(4, 4), k=np.ones(4, np.float32),
    )  # fmt: skip
    part = extract(model, infer_types(model), inputs=["c", "flag"], outputs=["z"])
    assert [t.name for t in part.graph.initializer] == ["k"]
    c = draw(2, 4)
    np.testing.assert_array_equal(run(part, c, np.array(True))[0], c + 1)
    assert needed_nodes(Index(model.graph), ["flag"], ["z"]) == {"a", "if"}


def test_opset_and_ir_version_are_kept(build, draw):
    model = build("g (float[N, 4] x) => (float[N, 4] y) { [a] y = MatMul (x, w) }", opset=21, ir=10, w=draw(4, 4))
    part = extract(model, infer_types(model), inputs=["x"], outputs=["y"])
    assert part.ir_version == 10 and [(e.domain, e.version) for e in part.opset_import] == [("", 21)]


def test_the_inputs_on_which_outputs_depend_are_told_from_the_others(build):
    model = build("g (float[4] a, float[4] b, float[4] c) => (float[4] y) { [s] t = Add (a, b)  [u] y = Mul (t, c) }")
    index = Index(model.graph)
    assert needed_inputs(index, ["a", "b", "c"], ["t"]) == ["a", "b"]
    assert needed_inputs(index, ["a", "t", "c"], ["y"]) == ["t", "c"]
    assert needed_inputs(index, ["a", "c"], ["c"]) == ["c"]


def test_with_an_index_the_work_is_that_of_the_part(build, count_lines):
    def work(count):
        chain = " ".join(f"[n{i}] t{i + 1} = Neg (t{i})" for i in range(count))
        model = build(f"g (float[N] x) => (float[N] y) {{ [first] t0 = Neg (x) {chain} [last] y = Neg (t{count}) }}")
        index, part = Index(model.graph), {"inputs": ["t3"], "outputs": ["t6"]}
        assert extract(model, {}, index=index, **part) == extract(model, {}, **part)
        return count_lines(lambda: extract(model, {}, index=index, **part))

    assert work(10) == work(100)
