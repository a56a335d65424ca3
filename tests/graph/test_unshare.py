"""int8 constants that several nodes read, and zero points that are left out."""

from collections import Counter

import numpy as np
from onnx import TensorProto, numpy_helper

from onnxcalib.graph.unshare import unshare_integers

NET = """g (float[N, 4] x) => (float[N, 4] y) {
    w1 = DequantizeLinear <axis = 1> (v, s, z) a = MatMul (x, w1)
    w2 = DequantizeLinear <axis = 1> (v, s, z) b = MatMul (a, w2)
    w3 = DequantizeLinear <axis = 1> (u, s) c = MatMul (b, w3)
    w4 = DequantizeLinear (t, k) y = MatMul (c, w4) }"""


def test_every_reader_has_a_constant_of_its_own_and_values_stay(build, run, draw):
    rng = np.random.default_rng(0)
    integers = {name: rng.integers(-9, 9, (4, 4)).astype(np.int8) for name in "vut"}
    model = build(NET, s=abs(draw(4)), z=np.zeros(4, np.int8), k=np.float32(0.5), **integers)
    before = model.SerializeToString()
    parted = unshare_integers(model)
    assert model.SerializeToString() == before
    tensors = {tensor.name: tensor for tensor in parted.graph.initializer}
    reads = Counter(name for node in parted.graph.node for name in node.input)
    assert all(reads[name] <= 1 for name, tensor in tensors.items() if tensor.data_type == TensorProto.INT8)
    dequantized = [node for node in parted.graph.node if node.op_type == "DequantizeLinear"]
    for node in dequantized:
        zero_point = numpy_helper.to_array(tensors[node.input[2]])
        assert zero_point.shape == numpy_helper.to_array(tensors[node.input[1]]).shape and not zero_point.any()
    x = draw(2, 4)
    np.testing.assert_array_equal(run(parted, x)[0], run(model, x)[0])


def test_zero_points_of_other_types_and_of_what_is_computed_are_left_alone(build):
    model = build(
        """g (int8[N, 4] q, float[N, 4] x) => (float[N, 4] y, float[N, 4] a, float[N, 4] b) {
        y = DequantizeLinear (q, k) n = QuantizeLinear (x, k, z) a = DequantizeLinear (n, k, z)
        b = DequantizeLinear (n, k, z) }""",
        k=np.float32(0.5), z=np.uint8(3),
    )  # fmt: skip
    assert unshare_integers(model) == model
