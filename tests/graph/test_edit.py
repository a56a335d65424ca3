import numpy as np

from onnxcalib.graph.edit import write_operand
from onnxcalib.graph.index import Index, constant


def test_an_operand_of_one_reader_is_overwritten(build, draw):
    model = build("g (float[N, 4] x) => (float[N, 3] y) { [fc] y = Gemm (x, w) }", w=draw(4, 3))
    write_operand(model.graph, Index(model.graph), model.graph.node[0], 1, np.zeros((4, 3), np.float32))
    assert list(model.graph.node[0].input) == ["x", "w"]
    assert not constant(Index(model.graph), "w").any()


def test_a_shared_operand_is_copied_until_one_reader_is_left(build, draw):
    model = build("g (float[N, 4] x) => (float[N, 4] y) { [one] a = Gemm (x, w) [two] y = Gemm (a, w) }", w=draw(4, 4))
    index = Index(model.graph)
    first, second = model.graph.node
    write_operand(model.graph, index, first, 1, np.full((4, 4), 1, np.float32))
    write_operand(model.graph, index, second, 1, np.full((4, 4), 2, np.float32))
    assert [first.input[1], second.input[1]] == ["one.w", "w"]
    assert [constant(index, name)[0, 0] for name in ("one.w", "w")] == [1, 2]
    assert len(model.graph.initializer) == 2


def test_an_operand_that_a_node_reads_twice_is_copied(build, draw):
    model = build("g (float[4, 4] x) => (float[4, 4] y) { [fc] y = Gemm (w, w) }", w=draw(4, 4))
    write_operand(model.graph, Index(model.graph), model.graph.node[0], 1, np.zeros((4, 4), np.float32))
    assert list(model.graph.node[0].input) == ["w", "fc.w"]
    assert constant(Index(model.graph), "w").any()


def test_a_missing_operand_is_added_under_a_name_that_is_free(build, draw):
    model = build("g (float[N, 4] x) => (float[N, 3] y) { [fc] w_bias = Gemm (x, w) y = Relu (w_bias) }", w=draw(4, 3))
    index = Index(model.graph)
    write_operand(model.graph, index, model.graph.node[0], 2, np.ones(3, np.float32))
    assert list(model.graph.node[0].input) == ["x", "w", "w_bias_1"]
    np.testing.assert_array_equal(constant(index, "w_bias_1"), np.ones(3, np.float32))
